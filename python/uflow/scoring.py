"""Latents to an anomaly map: phase 3 of U-Flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from . import segmentation
from .segmentation import anomaly_map_from_energies

if TYPE_CHECKING:
    import torch

__all__ = ["Blend", "anomaly_map", "anomaly_map_from_energies", "anomaly_map_with_neighbours"]

LIKELY = 2.0**-24  # below this 1 - p is rounding in float32


@dataclass(frozen=True)
class Blend:
    """How much of an image's score is of the latents, and how much of the distance to neighbours.

    Each counts by the inverse of its variance over held-out good images, and both have the same mean there.

    Attributes:
        share: of the largest distance in the score, in [0, 1].
        offset: what is added to the largest distance for good images' mean to be that of the latents.
    """

    share: float = 0.0
    offset: float = 0.0

    @classmethod
    def of(
        cls, energies: Sequence[Sequence[ArrayLike]], dof: Sequence[float], sizes: Sequence[tuple[int, int]]
    ) -> Blend:
        """Of held-out good images: of each its energies and distances, as `anomaly_map_with_neighbours` takes them."""
        if len(energies) < 5:
            return cls()  # too few to say how much they vary: the latents alone
        largest = [
            (
                _energy(anomaly_map_from_energies(e[: len(dof)], dof, size)).max(),
                segmentation.resized_mean(e[len(dof) :], size).max(),
            )
            for e, size in zip(energies, sizes, strict=True)
        ]
        mean, (latent, near) = np.mean(largest, axis=0), np.var(largest, axis=0, ddof=1)
        return cls(float(latent / max(latent + near, 1e-12)), float(mean[0] - mean[1]))


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

    With p the map of the energies (see `anomaly_map`) and d the mean over scales of the resized distances, the map is
    ``(p + 1 - exp(-d / 2)) / 2``, scaled so that its largest value in the image is 1 - exp(-x / 2) with x =
    ``(1 - share) * max(-2 ln(1 - p)) + share * (max(d) + offset)``, share and offset the blend's. Where in the image
    the anomaly is, both say; how anomalous the image is, rather the one that varies less among good images
    (docs/accuracy.md has the figures).

    Args:
        energies: per scale (B, h, w), and at the end what `neighbours.Neighbours` gives, per scale (B, h, w), or not.
        dof: channels per scale.
        size: side, or (height, width), of the map.
        blend: None is the latents' own score.

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
    largest = [x.max(axis=(1, 2), keepdims=True) for x in (values, near)]
    wanted = (1 - blend.share) * _energy(largest[0]) + blend.share * (largest[1] + blend.offset)
    near *= -0.5  # in place from here on: images can be large
    values -= np.expm1(near, out=near)
    values *= -np.expm1(-0.5 * np.maximum(wanted, 0)) / values.max(axis=(1, 2), keepdims=True).clip(min=LIKELY)
    return values


def _energy(p: np.ndarray) -> np.ndarray:
    """The energy a degree of freedom that a value of the map stands for: of all scales alike."""
    energy: np.ndarray = -2 * np.log(np.maximum(1 - p, np.float32(LIKELY)))
    return energy
