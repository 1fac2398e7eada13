"""How far features lie from those of good images: what the anomaly map takes in beside the latents.

A flow makes every kind of normal part equally likely, a smooth background as well as a rough object: its latents say
how strange a cell is for its kind. Distances between features are larger on what varies more, where most defects are.
docs/accuracy.md has the figures of both and of their blends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

if TYPE_CHECKING:
    from .features import FeatureCache

__all__ = ["MemoryBank", "change_features", "greedy_coreset"]

# What each distance counts in the mean, and how much of a cell's own features is their mean over 3 x 3 cells.
SCALE_WEIGHTS = (1.0, 2.0)
NEIGHBOURHOOD_SHARES = (1.0, 0.875)
# Areas changed to see what responds: their side as a share of the image's, and by how many standard deviations.
CHANGE_SIDES = (1 / 8, 1 / 4)
CHANGE_STD = 0.5


class MemoryBank(nn.Module):
    """The squared distance of each cell's features to the nearest of M vectors of good images, over its typical value.

    For each of the two finest scales, or the only one. A cell's vector at the finest scale is the mean of the features
    over 3 x 3 cells, zeros beyond the border. At the second, those vectors, averaged over the cell, come first, then
    seven eighths of the same mean of its own scale and one of the cell's features. (The means, and scales joined, are
    PatchCore's, arXiv 2106.08265.)

    Args:
        vectors: per scale (M_l, C_l) float32, the second's C_l the sum of both scales' channels.
        typical: per scale, the mean squared distance of good images' cells to the nearest vector of others, over what
            the scale counts: 2/3 and 4/3, or 1 where there is one scale.

    Raises:
        ValueError: features of fewer scales, or of another number of channels, than the vectors, or of a second scale
            that is not half as fine as the first.

    >>> memory = MemoryBank([torch.zeros(1, 3)], typical=[2.0])
    >>> memory([torch.ones(1, 3, 3, 4)])[0][0, 1]
    tensor([0.6667, 1.5000, 1.5000, 0.6667])
    """

    typical: Tensor

    def __init__(self, vectors: Sequence[Tensor], typical: Sequence[float]) -> None:
        super().__init__()
        self.scales = len(vectors)
        for scale, kept in enumerate(vectors):
            self.register_buffer(f"vectors_{scale}", kept)
        self.register_buffer("typical", torch.tensor(typical, dtype=torch.float32))

    @classmethod
    def from_features(cls, features: FeatureCache, images: Sequence[int], count: int, seed: int = 0) -> MemoryBank:
        """`count` vectors a scale of good images, or all where there are fewer; no typical value yet, but 1.

        Of five times as many drawn at random, those that cover them best: each next one is the farthest from all
        before (Gonzalez 1985; PatchCore's coreset).
        """
        rng = np.random.default_rng(seed)
        drawn = [
            _draw_cells(features, images, scale, 5 * count, rng)
            for scale in range(len(SCALE_WEIGHTS))[: len(features.shapes)]
        ]
        vectors = [x if len(x) <= count else x[greedy_coreset(x, count).sort().values] for x in drawn]
        return cls(vectors, [1.0] * len(vectors))

    def measure(self, features: FeatureCache, images: Sequence[int]) -> None:
        """Set the typical distances: those of good images that the vectors are not of."""
        device = self.typical.device
        means = [[d.mean() for d in self._distances(features.batch([index], device))] for index in images]
        counts = torch.tensor(SCALE_WEIGHTS[: self.scales])
        self.typical.copy_((torch.tensor(means).mean(dim=0) / (counts / counts.mean())).clamp(min=1e-6))

    @property
    def vectors(self) -> list[Tensor]:
        """(M_l, C_l) float32 per scale."""
        return [self.get_buffer(f"vectors_{scale}") for scale in range(self.scales)]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features, a (B, C_l, H_l, W_l) per scale, finest first -> (B, H_l, W_l) float32 each, on average 1."""
        return [d / typical for d, typical in zip(self._distances(features), self.typical, strict=True)]

    def _distances(self, features: Sequence[Tensor]) -> list[Tensor]:
        if len(features) < self.scales:
            raise ValueError(f"features of {len(features)} scales, and the vectors of good images are of {self.scales}")
        return [
            _nearest(x, kept) for x, kept in zip(_neighbourhood_means(features, self.scales), self.vectors, strict=True)
        ]


def change_features(
    features: Sequence[Tensor], deviations: Sequence[Tensor], rng: np.random.Generator
) -> tuple[list[Tensor], NDArray[np.bool_]]:
    """Change one square area of each image: how a defect might look, to features that know of none.

    All cells of the area are shifted alike, each channel by a normal random number times half its standard deviation.

    Args:
        features: per scale (N, C_l, H_l, W_l).
        deviations: per scale (C_l,), the channels' standard deviations.
        rng: says where the areas are, of an eighth to a quarter of the image's side, and how they change.

    Returns:
        The changed features, and the cells of the finest scale that were, (N, H_0, W_0).

    Raises:
        ValueError: not one deviation for each channel of each scale.
    """
    channels, given = [x.shape[1] for x in features], [len(deviation) for deviation in deviations]
    if channels != given:
        raise ValueError(f"one standard deviation a channel is needed: {channels} channels, {given} deviations")
    changed = [x.clone() for x in features]
    areas = np.zeros((len(features[0]), *features[0].shape[2:]), bool)
    for image, area in enumerate(areas):
        side = rng.uniform(*CHANGE_SIDES)
        place = rng.uniform(0, 1 - side, size=2)
        for scale, (x, deviation) in enumerate(zip(changed, deviations, strict=True)):
            (top, bottom), (left, right) = (
                (int(start * n), max(round((start + side) * n), int(start * n) + 1))
                for start, n in zip(place, x.shape[2:], strict=True)
            )
            shift = torch.from_numpy(rng.standard_normal((len(deviation), 1, 1))) * deviation.cpu().view(-1, 1, 1)
            x[image, :, top:bottom, left:right] += (CHANGE_STD * shift).to(x)
            if scale == 0:
                area[top:bottom, left:right] = True
    return changed, areas


def _neighbourhood_means(features: Sequence[Tensor], scales: int) -> list[Tensor]:
    """What a cell's vector is made of, of one scale or two: (B, C_l, H_l, W_l) each."""
    found: list[Tensor] = []
    for x, share in zip(features[:scales], NEIGHBOURHOOD_SHARES, strict=False):
        x = x.float()
        x = torch.lerp(x, F.avg_pool2d(x, 3, stride=1, padding=1), share)
        if found:
            fine = F.avg_pool2d(found[0], 2)
            if fine.shape[2:] != x.shape[2:]:
                sizes = " and ".join("{} x {}".format(*f.shape[2:]) for f in features[:2])
                raise ValueError(f"the finest scale must have twice the cells of the next on each side, got {sizes}")
            x = torch.cat([fine, x], dim=1)
        found.append(x)
    return found


def _nearest(x: Tensor, vectors: Tensor) -> Tensor:
    """Squared distance (B, H, W) of each cell of (B, C, H, W) to the nearest of (M, C) vectors."""
    if x.shape[1] != vectors.shape[1]:
        raise ValueError(f"features of {x.shape[1]} channels, and the vectors of good images have {vectors.shape[1]}")
    cells = x.permute(0, 2, 3, 1).flatten(0, 2)
    squares, others = vectors.square().sum(dim=1), -2 * vectors.T
    # Few cells at a time: the products of more do not stay in the processor's cache. An exported net takes all.
    parts = [cells] if torch.compiler.is_compiling() else torch.split(cells, 256)
    nearest = torch.cat([torch.addmm(squares, part, others).amin(dim=1) for part in parts])
    return (nearest + cells.square().sum(dim=1)).clamp(min=0).view(x.shape[0], *x.shape[2:])


def _draw_cells(
    features: FeatureCache, images: Sequence[int], scale: int, count: int, rng: np.random.Generator
) -> Tensor:
    cells = math.prod(features.shapes[scale][1:])
    numbers = np.sort(rng.permutation(len(images) * cells)[:count])
    of_image = np.split(numbers % cells, np.searchsorted(numbers // cells, np.arange(1, len(images))))
    parts = [
        _neighbourhood_means(features.batch([index]), scale + 1)[scale][0].flatten(1).T[torch.from_numpy(kept)]
        for index, kept in zip(images, of_image, strict=True)
        if len(kept)
    ]
    return torch.cat(parts).contiguous()


def greedy_coreset(x: Tensor, count: int, first: int = 0) -> Tensor:
    """Indices of `count` rows of x: `first`, and then each time the farthest from those before (k-center greedy).

    Raises:
        ValueError: x has fewer rows.
    """
    if len(x) < count:
        raise ValueError(f"a coreset of {count} rows cannot be chosen from {len(x)}: ask for fewer")
    norms = x.square().sum(1)
    distance = torch.full_like(norms, torch.inf)
    chosen = [first]
    for _ in range(count - 1):
        centre = chosen[-1]
        torch.minimum(distance, norms - 2 * (x @ x[centre]) + norms[centre], out=distance)
        distance[centre] = -torch.inf
        chosen.append(int(distance.argmax()))
    return torch.tensor(chosen)
