"""Evidence to an anomaly map and a score: phase 3 of U-Flow. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import segmentation
from .segmentation import anomaly_map_from_energies

if TYPE_CHECKING:
    import torch

__all__ = ["Blend", "Evidence", "anomaly_map", "anomaly_map_from_energies", "blend_maps", "map_of_evidence"]

MAP_ROUNDING = 2.0**-24  # below this, 1 - map is rounding in float32
DISTANCE_WEIGHT = (
    3.0  # times that the distance's rise inside a change counts in the map's share: docs/notebook/accuracy.md
)


@dataclass(frozen=True)
class Evidence:
    """What a network says of a batch of B images: how unlikely their latents are, how far their features lie from good.

    Attributes:
        energies: per scale (B, h, w) float32, finest first: the sum of the squared latents of each cell.
        distances: per scale (B, h, w) float32: squared distances to the features of good images, about 1 on good
            images (see `memory.MemoryBank`); empty for a detector of latents alone.
    """

    energies: list[NDArray[np.float32]]
    distances: list[NDArray[np.float32]] = field(default_factory=list)

    @property
    def maps(self) -> list[NDArray[np.float32]]:
        """The energies, then the distances."""
        return [*self.energies, *self.distances]

    def with_maps(self, maps: Sequence[NDArray[np.float32]]) -> Evidence:
        """The same kind of evidence, of other images: as many maps, in the order of `maps`."""
        scales = len(self.energies)
        return Evidence(list(maps[:scales]), list(maps[scales:]))


@dataclass(frozen=True)
class Blend:
    """How much of the anomaly map is of the distance to good images, the rest of the latents.

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
    def from_changes(
        cls, before: Evidence, after: Evidence, areas: NDArray[np.bool_], latent_channels: Sequence[int]
    ) -> Blend:
        """Each counts by how much it rises where good images' features are changed (`memory.change_features`).

        In the map by the mean rise inside the areas, that of the distance `DISTANCE_WEIGHT` times; in the score by the
        mean rise of the image's largest value. A flow that has learnt from many images rises steeply, and from few
        hardly.

        Args:
            before, after: of N images as they are and as changed.
            areas: (N, H, W), the cells of the finest scale that were changed.
            latent_channels: per scale.

        Raises:
            ValueError: maps that are not finite or fit no others, or areas of another number of images, or empty.
        """
        size = (areas.shape[1], areas.shape[2])
        rises_inside, rises_of_largest = [], []
        for good, changed in zip(
            _two_energies(before, latent_channels, size), _two_energies(after, latent_channels, size), strict=True
        ):
            if not good.shape == changed.shape == areas.shape or not areas.any():
                counts = f"{len(good)} good and {len(changed)} changed images"
                raise ValueError(
                    f"a blend needs areas that were changed in as many images, got {len(areas)} for {counts}"
                )
            rises_inside.append((changed - good)[areas].mean())
            rises_of_largest.append((changed.max(axis=(1, 2)) - good.max(axis=(1, 2))).mean())
        return cls(_share(rises_inside[0], DISTANCE_WEIGHT * rises_inside[1]), _share(*rises_of_largest))


def _two_energies(
    evidence: Evidence, latent_channels: Sequence[int], size: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What latents and distances say, both as an energy a degree of freedom: (N, H, W) each."""
    latent_map = anomaly_map_from_energies(evidence.energies, latent_channels, size)
    latent = -2 * np.log(np.maximum(1 - latent_map, np.float32(MAP_ROUNDING)))
    return latent, segmentation.resized_mean(evidence.distances, size)


def _share(latent_rise: float, distance_rise: float) -> float:
    latent_rise, distance_rise = max(latent_rise, 1e-6), max(distance_rise, 1e-6)  # what falls counts nothing
    return float(distance_rise / (latent_rise + distance_rise))


def anomaly_map(latents: Sequence[np.ndarray | torch.Tensor], size: int | tuple[int, int] = 256) -> np.ndarray:
    """How anomalous each pixel is, from the likelihood of its latents: the paper's anomaly map.

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


def map_of_evidence(
    evidence: Evidence, latent_channels: Sequence[int], size: int | tuple[int, int] = 256, blend: Blend | None = None
) -> np.ndarray:
    """The anomaly map of all evidence: the paper's where there are latents alone, else `blend_maps`.

    Args:
        evidence: of B images.
        latent_channels: per scale.
        size: side, or (height, width), of the map.
        blend: None is half of each.

    Returns:
        (B, height, width) float32 in [0, 1].

    Raises:
        ValueError: maps of other shapes, of unequal batches, or not finite.
    """
    latent_map = anomaly_map_from_energies(evidence.energies, latent_channels, size)
    if not evidence.distances:
        return latent_map
    distance = segmentation.resized_mean(evidence.distances, size)
    if len(distance) != len(latent_map):
        raise ValueError(f"energies are of {len(latent_map)} images and distances of {len(distance)}")
    blended: np.ndarray = blend_maps(latent_map, distance, blend or Blend(), np)
    return blended


def blend_maps(latent_map: Any, distance: Any, blend: Blend, xp: Any) -> Any:
    """The anomaly map of latents and distances; arrays or tensors, so that exported networks compute just this.

    With p the map of the latents, q = 1 - exp(-d / 2) and the blend's shares w and s, the map is ``(1 - w) p + w q``,
    scaled so that its largest value in the image is that of ``(1 - s) p + s q``: where the anomaly is, and how
    anomalous the image is, are answered by shares of their own (docs/notebook/accuracy.md has the figures).

    Args:
        latent_map: (B, H, W) in [0, 1].
        distance: (B, H, W), mean over scales of the resized distances.
        blend: the shares.
        xp: numpy or torch, whose arrays they are.

    Returns:
        (B, H, W) in [0, 1].
    """
    rise = -xp.expm1(distance * -0.5) - latent_map
    largest = {"axis": (1, 2), "keepdims": True}
    score = xp.amax(latent_map + blend.score_share * rise, **largest)
    blended = latent_map + blend.map_share * rise
    return blended * (score / xp.clip(xp.amax(blended, **largest), MAP_ROUNDING, None))
