"""Evidence to an anomaly map and a score: phase 3 of U-Flow. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import segmentation
from .roi import RegionOfInterest
from .schema import parse
from .segmentation import anomaly_map_from_energies

if TYPE_CHECKING:
    import torch

__all__ = [
    "MAP_ROUNDING",
    "Blend",
    "Evidence",
    "EvidenceWeights",
    "anomaly_map",
    "anomaly_map_from_energies",
    "largest_map_values",
    "squash",
]

MAP_ROUNDING = 2.0**-24  # below this, 1 - map is rounding in float32
SCORED_SHARE = 1 / 512  # of a network's input: 2 cells at 256 x 256, 6 at 448 x 448


@dataclass(frozen=True)
class Evidence:
    """What a network says of a batch of B images: how unlikely their latents are, how far their features lie from good.

    Attributes:
        energies: per scale (B, h, w) float32, finest first: the sum of the squared latents of each cell.
        distances: per scale (B, h, w) float32: squared distances to the features of good images, see
            `memory.MemoryBank`; empty for a detector of latents alone.
        roi: whose cells alone count, see `within`; None is all.
    """

    energies: list[NDArray[np.float32]]
    distances: list[NDArray[np.float32]] = field(default_factory=list)
    roi: RegionOfInterest | None = None

    @property
    def maps(self) -> list[NDArray[np.float32]]:
        """The energies, then the distances."""
        return [*self.energies, *self.distances]

    def with_maps(self, maps: Sequence[NDArray[np.float32]]) -> Evidence:
        """The same kind of evidence, of other images: as many maps, in the order of `maps`."""
        scales = len(self.energies)
        return Evidence(list(maps[:scales]), list(maps[scales:]), self.roi)

    def within(self, roi: RegionOfInterest | None) -> Evidence:
        """The evidence of whole images in a region of interest: nought in all cells that lie outside altogether."""
        if roi is None:
            return self
        inside = [np.where(roi.cells(values.shape[1:3]), values, np.float32(0)) for values in self.maps]
        return replace(self.with_maps(inside), roi=roi)


@dataclass(frozen=True)
class EvidenceWeights:
    """How the sources of evidence add up to one field: each counts by how far it reaches on good images.

    A source is worth as much as it stands out from what good images show, wherever they show it: in the sum, each
    source's largest value in a typical good image counts 1. A distance of vectors that join two scales is evidence of
    both, and counts 2. No share is tuned (docs/notebook/accuracy.md compares others).

    Attributes:
        energy_means: per scale, the mean energy of good images.
        latents: what the latents' energy counts, see `field`.
        distances: per scale, what a distance counts; empty for a detector of latents alone.

    Raises:
        ValueError: a number that is not positive and finite.
    """

    energy_means: tuple[float, ...]
    latents: float
    distances: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for number in (*self.energy_means, self.latents, *self.distances):
            if not (math.isfinite(number) and number > 0):
                raise ValueError(f"means and weights of evidence must be positive and finite, got {number}")

    @classmethod
    def from_good_images(cls, evidence: Sequence[Evidence]) -> EvidenceWeights:
        """Learn from good images that were not trained on.

        All numbers are medians over the images, so that an odd one among few does not decide.

        Args:
            evidence: of each image, or of batches of them.

        Raises:
            ValueError: no images; evidence that is nought, or is not finite.
        """
        if not evidence:
            raise ValueError("the evidence of at least one good image is needed, got none")
        scales = range(len(evidence[0].energies))
        means = tuple(_median([_means(image.energies[k], image.roi) for image in evidence]) for k in scales)
        alone = cls(means, 1.0)
        of_latents = (Evidence(image.energies, roi=image.roi) for image in evidence)
        latents = _median([alone.field(each).max(axis=(1, 2)) for each in of_latents])
        levels = [
            _median([image.distances[k].max(axis=(1, 2)) for image in evidence])
            for k in range(len(evidence[0].distances))
        ]
        return cls(means, 1 / latents, tuple((k + 1) / level for k, level in enumerate(levels)))

    def field(self, evidence: Evidence) -> NDArray[np.float32]:
        """The sum of all evidence on the finest grid: (B, h, w) float32, not negative.

        The latents' part is ``-2 ln mean over scales of exp(-e / (2 mean))``: with the means that standard normal
        latents have, the energy that the paper's anomaly map stands for. Coarser maps are resized bilinearly
        (align_corners=False). Outside the region of interest it is 0: no region there has a level above any other.

        Raises:
            ValueError: maps of other shapes or number, of unequal batches, or not finite.
        """
        size = evidence.energies[0].shape[1:]
        likely = 1 - anomaly_map_from_energies(evidence.energies, self.energy_means, size)
        latents: NDArray[np.float32] = np.log(np.maximum(likely, np.float32(MAP_ROUNDING))) * np.float32(
            -2 * self.latents
        )
        if len(evidence.distances) != len(self.distances):
            raise ValueError(
                f"{len(self.distances)} distances are weighed, and the evidence has {len(evidence.distances)}"
            )
        if not self.distances:
            return _zero_outside(latents, evidence.roi)
        distances = segmentation.weighted_sum(evidence.distances, self.distances, size)
        return _zero_outside(latents + distances, evidence.roi)

    def drawing(self, evidence: Evidence) -> NDArray[np.float32]:
        """What outlines are drawn on, (B, h, w): the distances, which blur least; the latents where there are none.

        Both distances count alike here: the one that joins two scales says more, and blurs more.
        """
        if not self.distances:
            return self.field(evidence)
        alike = [weight / (k + 1) for k, weight in enumerate(self.distances)]
        drawing = segmentation.weighted_sum(evidence.distances, alike, evidence.energies[0].shape[1:])
        return _zero_outside(drawing, evidence.roi)


def _means(values: NDArray[np.float32], roi: RegionOfInterest | None) -> NDArray[np.float32]:
    """The mean of each of B maps (B, h, w), over the cells that count: (B,)."""
    means: NDArray[np.float32]
    means = np.mean(values, axis=(1, 2)) if roi is None else values[:, roi.cells(values.shape[1:3])].mean(axis=1)
    return means


def _zero_outside(values: NDArray[np.float32], roi: RegionOfInterest | None) -> NDArray[np.float32]:
    """Maps (B, h, w), changed in place: 0 in cells that lie outside."""
    if roi is not None:
        values[:, ~roi.cells(values.shape[1:3])] = 0
    return values


def _median(values: Sequence[NDArray[Any]]) -> float:
    median = float(np.median(np.concatenate(values)))
    if not 0 < median < math.inf:
        raise ValueError(f"good images' evidence is nought, or is not finite: {median:g}")
    return median


@dataclass(frozen=True)
class Blend:
    """The anomaly map of all evidence: the field, squashed into [0, 1).

    Attributes:
        weights: how evidence adds up to a field.
        reference: the field's value that becomes 0.5: the largest in a typical good image (median over images).

    Raises:
        ValueError: a reference that is not positive and finite.
    """

    weights: EvidenceWeights
    reference: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.reference) and self.reference > 0):
            raise ValueError(f"the map's reference must be positive and finite, got {self.reference}")

    @classmethod
    def from_good_images(cls, evidence: Sequence[Evidence]) -> Blend:
        """Learn from good images that were not trained on; see `EvidenceWeights.from_good_images`."""
        weights = EvidenceWeights.from_good_images(evidence)
        maxima = [image.max() for batch in evidence for image in weights.field(batch)]
        return cls(weights, float(np.median(maxima)))

    def anomaly_map(self, evidence: Evidence, size: int | tuple[int, int] = 256) -> NDArray[np.float32]:
        """The map of B images: (B, height, width) float32 in [0, 1)."""
        field = segmentation.weighted_sum([self.weights.field(evidence)], [1.0], size)
        squashed: NDArray[np.float32] = squash(field, self.reference)
        return squashed

    def scores(self, evidence: Evidence, input_cells: int) -> NDArray[np.float32]:
        """How anomalous each of B images is: (B,) float32 in [0, 1), the map's value for the mean of the largest cells.

        As many cells as are `SCORED_SHARE` of an input: a single largest one is the noisier the more cells there are.

        Args:
            evidence: of whole images.
            input_cells: of the finest scale in one input of the network. Of an image in tiles no more cells count: a
                small defect in a large image is as strange as in a small one.
        """
        fields = self.weights.field(evidence)
        cells = fields.reshape(len(fields), -1)
        count = min(max(round(SCORED_SHARE * input_cells), 1), cells.shape[1])
        largest = np.partition(cells, -count, axis=1)[:, -count:]
        scores: NDArray[np.float32] = squash(largest.mean(axis=1), self.reference)
        return scores

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; `from_dict` reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Any) -> Blend:
        """Read what `to_dict` made.

        Raises:
            ValueError: unknown or missing entries, numbers that are not finite or out of range.
        """
        return parse(cls, content, "the blend is damaged: it")


def largest_map_values(
    evidence: Sequence[Evidence], latent_channels: Sequence[int], blend: Blend | None = None
) -> list[float]:
    """The largest value of each image's anomaly map, on the grid of the finest scale.

    Args:
        evidence: of each image, or of batches of them.
        latent_channels: of each scale's latents, for the paper's map.
        blend: the map of all evidence; None is the paper's.
    """
    found: list[float] = []
    for images in evidence:
        size = (images.energies[0].shape[1], images.energies[0].shape[2])
        if blend is None:
            maps = anomaly_map_from_energies(images.energies, latent_channels, size)
        else:
            maps = blend.anomaly_map(images, size)
        maps = _zero_outside(maps, images.roi)
        found += maps.max(axis=(1, 2)).tolist()
    return found


def squash(field: Any, reference: float) -> Any:
    """``field / (field + reference)``: order is kept, however large; arrays or tensors."""
    return field / (field + reference)


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
