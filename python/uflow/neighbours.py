"""How far features lie from those of good images: what the anomaly map takes in beside the latents.

A flow makes every kind of normal part equally likely, a smooth background as well as a rough object: its latents say
how strange a cell is for its kind. Distances between features are larger on what varies more, where most defects are.
docs/accuracy.md has the figures of both and of their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from .training import FeatureCache

__all__ = ["Neighbours"]

# Of each cell's vector, per scale, this share is the mean over 3 x 3 cells and the rest the cell's own.
AROUND = (1.0, 0.75)


class Neighbours(nn.Module):
    """The squared distance of each cell's features to the nearest of M vectors of good images, over its usual value.

    For each of the two finest scales, or the only one. A cell's vector at the finest scale is the mean of the features
    over 3 x 3 cells, zeros beyond the border (as in PatchCore, arXiv 2106.08265); at the second three quarters of it
    are, and a quarter is the cell's own features.

    Args:
        vectors: (M_l, C_l) float32 per scale.
        usual: per scale, the mean squared distance of good images' cells to the nearest vector of others.

    Raises:
        ValueError: features of fewer scales, or of another number of channels, than the vectors.

    >>> near = Neighbours([torch.zeros(1, 3)], usual=[2.0])
    >>> near([torch.ones(1, 3, 3, 4)])[0][0, 1]
    tensor([0.6667, 1.5000, 1.5000, 0.6667])
    """

    usual: Tensor

    def __init__(self, vectors: Sequence[Tensor], usual: Sequence[float]) -> None:
        super().__init__()
        self.scales = len(vectors)
        for scale, kept in enumerate(vectors):
            self.register_buffer(f"vectors_{scale}", kept)
        self.register_buffer("usual", torch.tensor(usual, dtype=torch.float32))

    @classmethod
    def of(cls, features: FeatureCache, images: Sequence[int], count: int, seed: int = 0) -> Neighbours:
        """`count` vectors a scale at random of good images, or all where there are fewer; no usual value yet, but 1."""
        rng = np.random.default_rng(seed)
        vectors = [
            _draw(features, images, scale, count, rng) for scale in range(min(len(AROUND), len(features.arrays)))
        ]
        return cls(vectors, [1.0] * len(vectors))

    def measure(self, features: FeatureCache, images: Sequence[int]) -> None:
        """Set the usual distances: those of good images that the vectors are not of."""
        device = self.usual.device
        means = [[d.mean() for d in self._distances(features.batch([index], device))] for index in images]
        self.usual.copy_(torch.tensor(means).mean(dim=0).clamp(min=1e-6))

    @property
    def vectors(self) -> list[Tensor]:
        """(M_l, C_l) float32 per scale."""
        return [self.get_buffer(f"vectors_{scale}") for scale in range(self.scales)]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features, a (B, C_l, H_l, W_l) per scale, finest first -> per scale (B, H_l, W_l) float32, usually 1."""
        return [d / usual for d, usual in zip(self._distances(features), self.usual, strict=True)]

    def _distances(self, features: Sequence[Tensor]) -> list[Tensor]:
        if len(features) < self.scales:
            raise ValueError(f"features of {len(features)} scales, and the vectors of good images are of {self.scales}")
        return [_nearest(_around(features[scale], scale), kept) for scale, kept in enumerate(self.vectors)]


def _around(features: Tensor, scale: int) -> Tensor:
    x = features.float()
    return torch.lerp(x, F.avg_pool2d(x, 3, stride=1, padding=1), AROUND[scale])


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


def _draw(features: FeatureCache, images: Sequence[int], scale: int, count: int, rng: np.random.Generator) -> Tensor:
    cells = features.arrays[scale][0, 0].size
    numbers = np.sort(rng.permutation(len(images) * cells)[:count])
    of_image = np.split(numbers % cells, np.searchsorted(numbers // cells, np.arange(1, len(images))))
    parts = [
        _around(features.batch([index])[scale], scale)[0].flatten(1).T[torch.from_numpy(kept)]
        for index, kept in zip(images, of_image, strict=True)
        if len(kept)
    ]
    return torch.cat(parts).contiguous()
