"""A memory of good images: how far features lie from those that were seen.

A flow makes every kind of normal part equally likely, a smooth background as well as a rough object: its latents say
how strange a cell is for its kind. Distances between features are larger on what varies more, where most defects are.
docs/notebook/accuracy.md has the figures of both and of their sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .features import FeatureSource

__all__ = ["MemoryBank", "greedy_coreset"]

SCALES = 2  # the finest ones: coarser cells are larger than most defects
POOL_SIZE = 100_000  # vectors that a memory is chosen from: of fewer, rare kinds of normal cells are missing
PROJECTED_CHANNELS = 48  # in which the choice is made: distances keep to within a tenth (Johnson, Lindenstrauss 1984)
CELLS_AT_A_TIME = 256  # whose products with all vectors stay in a processor's cache


class MemoryBank(nn.Module):
    """The squared distance of each cell's features to the nearest of M vectors of good images, at two scales.

    A cell's vector at the finest scale is the mean of the features over 3 x 3 cells, zeros beyond the border. At the
    second, those vectors, averaged over the cell, come first, then the same mean of its own scale. (Means over a
    neighbourhood, scales joined, and a memory that covers the features of good images are PatchCore's, Roth et al.,
    arXiv 2106.08265.)

    Args:
        vectors: per scale (M_l, C_l) float32, the second's C_l the sum of both scales' channels.

    Raises:
        ValueError: features of fewer scales, or of another number of channels, than the vectors, or of a second scale
            that is not half as fine as the first.

    >>> memory = MemoryBank([torch.zeros(1, 3)])
    >>> memory([torch.ones(1, 3, 3, 4)])[0][0, 1]
    tensor([1.3333, 3.0000, 3.0000, 1.3333])
    """

    def __init__(self, vectors: Sequence[Tensor]) -> None:
        super().__init__()
        self.scales = len(vectors)
        for scale, kept in enumerate(vectors):
            self.register_buffer(f"table_{scale}", _table(kept))

    @classmethod
    def from_features(cls, features: FeatureSource, tiles: Sequence[int], size: int, seed: int = 0) -> MemoryBank:
        """`size` vectors a scale of good images, or all where there are fewer.

        Of `POOL_SIZE` drawn at random, those that cover them best: each next one is the farthest from all before
        (Gonzalez 1985; PatchCore's coreset), in a random projection.

        Args:
            features: of good images.
            tiles: which of them to remember.
            size: vectors a scale.
            seed: of the draw and of the projection.
        """
        generator = torch.Generator().manual_seed(seed)
        pools = _draw_cells(features, tiles, np.random.default_rng(seed))
        return cls([x[_choose(x, size, generator)] for x in pools])

    def with_unknown_cells(
        self, features: Sequence[Tensor], radii: Sequence[float], inside: Sequence[Tensor] | None = None
    ) -> MemoryBank:
        """A memory that holds the cells of further good images too, but for those that it knows.

        Args:
            features: as for `forward`.
            radii: per scale, the squared distance up to which a cell is known.
            inside: per scale (B, h, w) bool, the cells that count; None is all.
        """
        joined = []
        means = _neighbourhood_means(features[: self.scales])
        known = zip(means, self.vectors, self._tables, radii, strict=True)
        for scale, (cells, kept, table, radius) in enumerate(known):
            is_new = _nearest(cells, table) > radius
            if inside is not None:
                is_new &= inside[scale].to(is_new.device)
            unknown = cells.permute(0, 2, 3, 1)[is_new]
            joined.append(torch.cat([kept, unknown]))
        return MemoryBank(joined)

    @property
    def vectors(self) -> list[Tensor]:
        """(M_l, C_l) float32 per scale."""
        return [table[:, :-1] / -2 for table in self._tables]

    @property
    def _tables(self) -> list[Tensor]:
        return [self.get_buffer(f"table_{scale}") for scale in range(self.scales)]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features, a (B, C_l, H_l, W_l) per scale, finest first -> squared distances (B, H_l, W_l) float32 each."""
        if len(features) < self.scales:
            raise ValueError(f"features of {len(features)} scales, and the vectors of good images are of {self.scales}")
        cells = _neighbourhood_means(features[: self.scales])
        return [_nearest(x, table) for x, table in zip(cells, self._tables, strict=True)]


def _neighbourhood_means(features: Sequence[Tensor]) -> list[Tensor]:
    """What a cell's vector is made of, of one scale or two: (B, C_l, H_l, W_l) each."""
    fine, *second = (F.avg_pool2d(x.float(), 3, stride=1, padding=1) for x in features)
    if not second:
        return [fine]
    pooled = F.avg_pool2d(fine, 2)
    if pooled.shape[2:] != second[0].shape[2:]:
        sizes = " and ".join("{} x {}".format(*f.shape[2:]) for f in features)
        raise ValueError(f"the finest scale must have twice the cells of the next on each side, got {sizes}")
    return [fine, torch.cat([pooled, second[0]], dim=1)]


def _table(vectors: Tensor) -> Tensor:
    """What products with cells are made of: (M, C + 1), -2 v and |v|^2 of each of (M, C) vectors v."""
    return torch.cat([-2 * vectors, vectors.square().sum(dim=1, keepdim=True)], dim=1)


def _nearest(x: Tensor, table: Tensor) -> Tensor:
    """Squared distance (B, H, W) of each cell of (B, C, H, W) to the nearest of the vectors of a `_table`.

    |x - v|^2 is |x|^2 + (x, 1) . (-2 v, |v|^2): one product, as the cells get a channel of ones.
    """
    channels = table.shape[1] - 1
    if x.shape[1] != channels:
        raise ValueError(f"features of {x.shape[1]} channels, and the vectors of good images have {channels}")
    cells = x.permute(0, 2, 3, 1).flatten(0, 2)
    cells_and_one = torch.cat([cells, torch.ones_like(cells[:, :1])], dim=1)
    # The products of more cells do not stay in the processor's cache. An exported net takes all at once.
    whole = torch.compiler.is_compiling()
    parts = [cells_and_one] if whole else torch.split(cells_and_one, CELLS_AT_A_TIME)
    nearest = torch.cat([torch.mm(part, table.T).amin(dim=1) for part in parts])
    return (nearest + cells.square().sum(dim=1)).clamp(min=0).view(x.shape[0], *x.shape[2:])


def _draw_cells(features: FeatureSource, tiles: Sequence[int], rng: np.random.Generator) -> list[Tensor]:
    """`POOL_SIZE` cells of each scale that count, as many of each tile: (N_l, C_l). Each tile is read once."""
    scales = min(SCALES, len(features.shapes))
    drawn: list[list[Tensor]] = [[] for _ in range(scales)]
    for tile in tiles:
        masks: Sequence[Tensor | None] = features.cells_inside([tile]) or [None] * scales
        means = _neighbourhood_means(features.batch([tile])[:scales])
        for pool, x, mask in zip(drawn, means, masks[:scales], strict=True):
            cells = x[0].flatten(1).T if mask is None else x[0, :, mask[0]].T
            count = min(len(cells), math.ceil(POOL_SIZE / len(tiles)))
            pool.append(cells[torch.from_numpy(rng.permutation(len(cells))[:count])])
    return [torch.cat(pool) for pool in drawn]


def _choose(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices of at most `count` rows of (N, C) that cover all, in ascending order."""
    if len(x) <= count:
        return torch.arange(len(x))
    if x.shape[1] > PROJECTED_CHANNELS:
        projection = torch.randn(x.shape[1], PROJECTED_CHANNELS, generator=generator, dtype=x.dtype)
        x = x @ projection / math.sqrt(PROJECTED_CHANNELS)
    return greedy_coreset(x.contiguous(), count).sort().values


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
