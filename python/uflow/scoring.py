"""Latents to an anomaly map: phase 3 of U-Flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import segmentation
from .segmentation import anomaly_map_from_energies

if TYPE_CHECKING:
    import torch

__all__ = ["Blend", "anomaly_map", "anomaly_map_from_energies", "anomaly_map_with_neighbours"]

LIKELY = 2.0**-24  # below this 1 - p is rounding in float32


@dataclass(frozen=True)
class Blend:
    """How much of the anomaly map is of the distance to neighbours, the rest of the latents.

    Attributes:
        map_share: in each pixel of the map, in [0, 1].
        score_share: in the map's largest value, the image's score, in [0, 1].

    Raises:
        ValueError: a share outside [0, 1].
    """

    map_share: float = 0.5
    score_share: float = 0.5

    def __post_init__(self) -> None:
        for name, share in asdict(self).items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is a share between 0 and 1, got {share}")

    @classmethod
    def of(
        cls, good: Sequence[ArrayLike], changed: Sequence[ArrayLike], areas: NDArray[np.bool_], dof: Sequence[float]
    ) -> Blend:
        """Each counts by how much it rises where good images' features are changed (`neighbours.change`).

        In the map by the mean rise inside the areas, that of the distance thrice; in the score by the mean rise of the
        image's largest value. A flow that has learnt from many images rises steeply, and from few hardly.

        Args:
            good, changed: of N images as they are and as changed, what `anomaly_map_with_neighbours` takes.
            areas: (N, H, W), the cells of the finest scale that were changed.
            dof: channels per scale.

        Raises:
            ValueError: maps that are not finite or fit no others, or areas of another number of images, or empty.
        """

        def seen(energies: Sequence[ArrayLike]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            size = (areas.shape[1], areas.shape[2])
            latent = _energy(anomaly_map_from_energies(energies[: len(dof)], dof, size))
            return latent, segmentation.resized_mean(energies[len(dof) :], size)

        inside, largest = [], []
        for before, after in zip(seen(good), seen(changed), strict=True):
            if not before.shape == after.shape == areas.shape or not areas.any():
                counts = f"{len(before)} good and {len(after)} changed images"
                raise ValueError(
                    f"a blend needs areas that were changed in as many images, got {len(areas)} for {counts}"
                )
            inside.append((after - before)[areas].mean())
            largest.append((after.max(axis=(1, 2)) - before.max(axis=(1, 2))).mean())
        return cls(_share(inside[0], 3 * inside[1]), _share(*largest))


def _share(latent: float, near: float) -> float:
    return float(max(near, 1e-6) / (max(latent, 1e-6) + max(near, 1e-6)))  # what falls counts nothing


def anomaly_map(latents: Sequence[np.ndarray | torch.Tensor], size: int | tuple[int, int] = 256) -> np.ndarray:
    """How anomalous each pixel is, from the likelihood of its latents.

    ``1 - mean over scales of exp(-t_l / 2)``, t_l the mean of z^2 over the channels of a cell, each scale resized
    bilinearly (align_corners=False) to `size` (U-Flow, JMIV 2024, doi 10.1007/s10851-024-01193-y).

    Args:
        latents: one (B, C, h, w) array or tensor a scale.
        size: side, or (height, width), of the map.

    Returns:
        (B, height, width) float32 in [0, 1].

    >>> anomaly_map([np.zeros((1, 4, 2, 2), np.float32)], size=3)[0, 0]
    array([0., 0., 0.], dtype=float32)
    """
    energies = segmentation.energies(latents)
    return anomaly_map_from_energies(energies, [z.shape[1] for z in latents], size)


def anomaly_map_with_neighbours(
    energies: Sequence[ArrayLike], dof: Sequence[float], size: int | tuple[int, int] = 256, blend: Blend | None = None
) -> np.ndarray:
    """The anomaly map of the latents' energies and, where there are more, the distances to neighbours.

    With p the map of the energies (see `anomaly_map`), q = 1 - exp(-d / 2) with d the mean over scales of the resized
    distances, and the blend's shares w and s, the map is ``(1 - w) p + w q``, scaled so that its largest value in the
    image is that of ``(1 - s) p + s q``: where the anomaly is, and how anomalous the image is, are answered by shares
    of their own (docs/accuracy.md has the figures).

    Args:
        energies: per scale (B, h, w), and at the end what `neighbours.Neighbours` gives, per scale (B, h, w), or not.
        dof: channels per scale.
        size: side, or (height, width), of the map.
        blend: None is half of each.

    Returns:
        (B, height, width) float32 in [0, 1].

    Raises:
        ValueError: maps of other shapes, of unequal batches, or not finite.
    """
    scales = len(dof)
    values = anomaly_map_from_energies(energies[:scales], dof, size)
    if len(energies) == scales:
        return values
    blend = blend or Blend()
    near = segmentation.resized_mean(energies[scales:], size)
    if len(near) != len(values):
        raise ValueError(f"energies are of {len(values)} images and distances of {len(near)}")
    near *= -0.5  # in place from here on: images can be large
    np.negative(np.expm1(near, out=near), out=near)
    near -= values
    score = (values + np.float32(blend.score_share) * near).max(axis=(1, 2), keepdims=True)
    near *= np.float32(blend.map_share)
    values += near
    values *= score / values.max(axis=(1, 2), keepdims=True).clip(min=LIKELY)
    return values


def _energy(p: np.ndarray) -> np.ndarray:
    """The energy a degree of freedom that a value of the map stands for: of all scales alike."""
    energy: np.ndarray = -2 * np.log(np.maximum(1 - p, np.float32(LIKELY)))
    return energy
