"""The tiles of images as a backbone is shown them: cut, turned, painted over outside the region of interest.

Turned copies are the business of this room alone. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from . import tiling
from .images import ImageLike, read_image
from .roi import RegionOfInterest

__all__ = ["TileReader", "masks_of_tiles", "turned_copies"]


class TileReader:
    """The tile of a number, its copies counted: each image is read once where numbers follow one another."""

    def __init__(
        self,
        sources: Sequence[ImageLike],
        tilings: Sequence[tiling.Tiling],
        copies: int,
        bit_depth: int = 16,
        roi: RegionOfInterest | None = None,
        gain: float = 1,
    ) -> None:
        self.sources, self.tilings, self.copies = sources, tilings, copies
        self.bit_depth, self.roi, self.gain = bit_depth, roi, gain
        self.ends = np.cumsum([len(t) for t in tilings])
        self.image, self.tiles = -1, list[NDArray[np.uint8]]()

    def __call__(self, number: int) -> NDArray[np.uint8]:
        tile, copy = divmod(number, self.copies)
        image = int(np.searchsorted(self.ends, tile, side="right"))
        if image != self.image:
            pixels = read_image(self.sources[image], self.bit_depth, self.gain)
            self.tiles = list(self.tilings[image].cut(pixels if self.roi is None else self.roi.paint(pixels)))
            self.image = image
        pixels = self.tiles[tile - int(self.ends[image]) + len(self.tilings[image])]
        return turned_copies(pixels)[copy] if copy else pixels


def masks_of_tiles(
    roi: RegionOfInterest, tilings: Sequence[tiling.Tiling], sizes: Sequence[tuple[int, int]], copies: int
) -> list[NDArray[np.bool_]]:
    """The cells of each tile and copy that count: (n, h, w) a scale, whose (h, w) are `sizes`."""
    scales = []
    for height, _ in sizes:
        parts = {}
        for each in set(tilings):
            stride = each.tile[0] // height
            whole = roi.cells((each.size[0] // stride, each.size[1] // stride))
            turned = [copy for part in each.split(whole) for copy in (turned_copies(part) if copies > 1 else [part])]
            parts[each] = np.stack(turned)
        scales.append(np.concatenate([parts[each] for each in tilings]))
    return scales


def turned_copies(image: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """An (H, W, 3) image, itself first, and its turned and mirrored copies: 8 in all of a square one, else 4.

    >>> [copy[0, 0, 0].item() for copy in turned_copies(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))]
    [0, 3, 9, 6, 3, 0, 6, 9]
    """
    turns = range(4) if image.shape[0] == image.shape[1] else (0, 2)
    return [np.rot90(flipped, turn) for flipped in (image, image[:, ::-1]) for turn in turns]
