"""Large images: cut into overlapping tiles of the network's size; what comes out is put together, one grid a scale."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .images import resize_image
from .roi import RegionOfInterest
from .scoring import Evidence


@dataclass(frozen=True)
class Tiling:
    """How images of one size pass through the network; made by `whole` or `tiled`.

    Attributes:
        size: (H, W) that the image is resized to, multiples of the coarsest stride.
        tile: (h, w) of the network's input.
        tops, lefts: where the rows and columns of tiles start, multiples of the coarsest stride.
        stride: the coarsest, pixels a cell.
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    stride: int

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def cut(self, image: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
        """The tiles (h, w, 3) of an (H, W, 3) uint8 image, row by row."""
        resized = resize_image(image, self.size)
        for top in self.tops:
            for left in self.lefts:
                yield resized[top : top + self.tile[0], left : left + self.tile[1]]

    def split(self, whole: NDArray[Any]) -> list[NDArray[Any]]:
        """The tiles' parts of a map (H / s, W / s) of the whole, in the order of `cut`; s is a scale's stride."""
        stride = self.size[0] // whole.shape[0]
        rows, columns = self.tile[0] // stride, self.tile[1] // stride
        starts = itertools.product(self.tops, self.lefts)
        return [whole[y // stride :, x // stride :][:rows, :columns] for y, x in starts]

    def stitch(self, maps: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """One (H / s, W / s) map from the tiles' (h / s, w / s), in the order of `cut`; s is the scale's stride.

        Neighbouring tiles meet in the middle of their overlap, where both are farthest from their borders.
        """
        if len(maps) == 1:
            return maps[0]
        stride = self.tile[0] // maps[0].shape[0]
        whole = np.empty((self.size[0] // stride, self.size[1] // stride), np.float32)
        rows = _kept(self.tops, self.tile[0], self.size[0], self.stride)
        columns = _kept(self.lefts, self.tile[1], self.size[1], self.stride)
        tile = iter(maps)
        for top, (row, row_end) in zip(self.tops, rows, strict=True):
            for left, (column, column_end) in zip(self.lefts, columns, strict=True):
                part = next(tile)[
                    (row - top) // stride : (row_end - top) // stride,
                    (column - left) // stride : (column_end - left) // stride,
                ]
                whole[row // stride : row_end // stride, column // stride : column_end // stride] = part
        return whole


def whole(tile: tuple[int, int], stride: int) -> Tiling:
    """The whole image resized to the network's input."""
    return Tiling(tile, tile, (0,), (0,), stride)


def tiled(image: tuple[int, int], tile: tuple[int, int], stride: int) -> Tiling:
    """Tiles over an image at its own resolution: an eighth of a tile from each border (at least a cell) is not used.

    Args:
        image: (H, W) of the image. It is resized to the nearest multiples of the stride, at least one tile.
        tile: (h, w) of the network's input.
        stride: the coarsest, pixels a cell.

    >>> tiled((300, 256), (256, 256), 32).tops
    (0, 32)
    """
    size = tuple(max(round(n / stride) * stride, t) for n, t in zip(image, tile, strict=True))
    tops, lefts = (_starts(n, t, stride) for n, t in zip(size, tile, strict=True))
    return Tiling((size[0], size[1]), tile, tops, lefts, stride)


def _starts(length: int, tile: int, stride: int) -> tuple[int, ...]:
    """As few tiles as overlap by twice the margin, evenly spread."""
    margin = max(tile // 8 // stride * stride, stride)
    step = max(tile - 2 * margin, stride)
    count = math.ceil((length - tile) / step) + 1
    cells = (length - tile) // stride
    return tuple(i * cells // max(count - 1, 1) * stride for i in range(count))


def _kept(starts: Sequence[int], tile: int, length: int, stride: int) -> list[tuple[int, int]]:
    """The part [begin, end) of the whole that each tile gives."""
    edges = [(a + tile + b) // (2 * stride) * stride for a, b in itertools.pairwise(starts)]
    return list(zip([0, *edges], [*edges, length], strict=True))


def evidence_of_tiles(
    tilings: Sequence[Tiling], found: Sequence[Evidence], roi: RegionOfInterest | None = None
) -> list[Evidence]:
    """The evidence of whole images, in a region of interest, from that of their tiles; these in batches of any size."""
    tiles = iter([maps for batch in found for maps in zip(*batch.maps, strict=True)])
    return [
        found[0]
        .with_maps([t.stitch(scale)[None] for scale in zip(*itertools.islice(tiles, len(t)), strict=True)])
        .within(roi)
        for t in tilings
    ]
