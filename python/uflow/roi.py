"""The region of interest: where in an image parts are judged, and what of it is ignored. Needs no torch.

What lies outside is not seen: its pixels are painted over before the network, and its cells count nowhere. So nothing
out there can change what is said of the inside, however bright or large it is. docs/guide/products.md shows it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .files import PathLike
from .images import MAX_PIXELS, read_mask

__all__ = ["Mask", "Polygon", "RegionOfInterest", "Roi", "as_roi", "effective_roi"]

PAINT = (124, 116, 104)  # the mean colour of ImageNet, which is nought behind the network's normalisation
FAR = 1e9  # pixels, that no corner lies beyond
MAX_KEPT = 16  # sizes that a region has been scaled to and is kept at

Mask = NDArray[np.bool_]
Polygon = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class RegionOfInterest:
    """Where images of one camera are judged: inside polygons or a mask, but for what is ignored.

    Attributes:
        size: (height, width) of the images that it was drawn on. Others of the same shape are taken too.
        polygons: corners of each, x and y in pixels from the upper left corner of the image, as in
            `prediction.DetectedRegion`; a pixel is inside where its centre is inside any of them. None at all is the
            whole image.
        ignore: polygons that are left out again.
        runs: of a mask: how many pixels, row by row, are outside, then inside, then outside, and so on.

    Raises:
        ValueError: a size that no image has, polygons of fewer than three corners or beside a mask, or no pixel inside.

    >>> roi = RegionOfInterest((2, 4), polygons=(((1, 0), (4, 0), (4, 1), (1, 1)),))
    >>> roi.pixels((2, 4)).astype(int).tolist()
    [[0, 1, 1, 1], [0, 0, 0, 0]]
    """

    size: tuple[int, int]
    polygons: tuple[Polygon, ...] = ()
    ignore: tuple[Polygon, ...] = ()
    runs: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("size", "polygons", "ignore", "runs"):
            object.__setattr__(self, name, _as_tuples(getattr(self, name)))
        if min(self.size) < 1 or math.prod(self.size) > MAX_PIXELS:
            raise ValueError(f"size is (height, width) of an image of at most {MAX_PIXELS} pixels, got {self.size}")
        if short := [each for each in (*self.polygons, *self.ignore) if len(each) < 3]:
            raise ValueError(f"a polygon has at least 3 corners, got {list(short[0])}")
        if far := [x_y for each in (*self.polygons, *self.ignore) for x_y in each if not max(map(abs, x_y)) < FAR]:
            raise ValueError(f"corners of polygons are x and y in pixels, got {far[0]}")
        if self.runs is not None and self.polygons:
            raise ValueError("a region is a mask or polygons, not both")
        if self.runs is not None and (min(self.runs, default=0) < 0 or sum(self.runs) != math.prod(self.size)):
            raise ValueError(f"the runs of the mask are {sum(self.runs)} pixels, its size is {self.size}")
        kept: dict[tuple[str, tuple[int, int]], NDArray[Any]] = {}
        object.__setattr__(self, "_kept", kept)
        if not (self._is_bare or self._drawn.any()):
            raise ValueError("the region of interest has no pixel inside")

    @classmethod
    def from_mask(cls, mask: Mask, ignore: Sequence[Polygon] = ()) -> RegionOfInterest:
        """The region where an (H, W) bool mask is true.

        Raises:
            ValueError: not 2-D, not bool, or true nowhere.
        """
        if mask.ndim != 2 or mask.dtype != np.bool_:
            raise ValueError(f"the mask of a region of interest must be (H, W) bool, got {mask.shape} {mask.dtype}")
        flat = np.concatenate([[False], mask.ravel(), [False]])
        changes = np.flatnonzero(flat[1:] != flat[:-1])
        runs = np.diff(np.concatenate([[0], changes, [mask.size]]))
        return cls((mask.shape[0], mask.shape[1]), ignore=tuple(ignore), runs=tuple(runs.tolist()))

    @property
    def is_full(self) -> bool:
        """Whether all of the image is inside."""
        return self._is_bare or bool(self._drawn.all())

    @property
    def _is_bare(self) -> bool:
        """Whether there is nothing to draw, however large the size."""
        return not (self.polygons or self.ignore) and self.runs is None

    def pixels(self, size: tuple[int, int]) -> Mask:
        """Which pixels of a map (height, width) of the image are inside: those whose centre is; not to be changed."""
        return self._scaled("pixels", size)

    def cells(self, grid: tuple[int, int]) -> Mask:
        """Which cells of a grid (h, w) over the image count: those with any part of them inside; not to be changed."""
        return self._scaled("cells", grid)

    def paint(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A copy of an (H, W, 3) image, all one colour outside.

        Raises:
            ValueError: an image of another shape than those that the region was drawn on.
        """
        size = (image.shape[0], image.shape[1])
        self.check_size(size)
        kept, painted = self._scaled("kept", size), self._scaled("painted", size)
        seen: NDArray[np.uint8] = image & kept  # a sixth of the time that a choice by a mask takes
        seen |= painted
        return seen

    def veil(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A copy of an (H, W, 3) image, half as bright outside: to be looked at."""
        inside = self.pixels((image.shape[0], image.shape[1]))
        return np.where(inside[:, :, None], image, image // 2)

    def check_size(self, size: tuple[int, int], name: str = "the image") -> None:
        """Raise ValueError, which names it, for an image of another shape than those the region was drawn on."""
        (height, width), (own_height, own_width) = size, self.size
        # Sides in proportion, but for the rounding of either to whole pixels.
        if abs(height * own_width - width * own_height) > max(own_height, own_width, height, width) / 2:
            raise ValueError(
                f"{name} has {height} x {width} pixels (height x width), and the region of interest was drawn on "
                f"{own_height} x {own_width}, another shape: draw it anew on such an image"
            )

    def is_same(self, other: RegionOfInterest | None) -> bool:
        """Whether both are the same pixels of images of the same size, however they were drawn; None is all."""
        if other is None:
            return self.is_full
        return self.size == other.size and bool(np.array_equal(self._drawn, other._drawn))

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    def _scaled(self, kind: str, size: tuple[int, int]) -> NDArray[Any]:
        """What `kind` is at a size, kept for the next image of that size."""
        kept: dict[tuple[str, tuple[int, int]], NDArray[Any]] = self._kept  # type: ignore[attr-defined]
        found = kept.get((kind, size))
        if found is None:
            found = self._make(kind, size)
            if len(kept) >= MAX_KEPT:
                kept.clear()
            kept[kind, size] = found
        return found

    def _make(self, kind: str, size: tuple[int, int]) -> NDArray[Any]:
        if kind == "drawn":
            return self._draw()
        if kind == "cells":
            return _touched(self._drawn, size)
        if kind == "pixels":
            return _nearest(self._drawn, size)
        inside = self.pixels(size)[:, :, None]  # and for `paint`, (H, W, 3) uint8
        if kind == "kept":
            return np.where(inside, np.uint8(255), np.zeros(3, np.uint8))
        return np.where(inside, np.uint8(0), np.array(PAINT, np.uint8))

    @property
    def _drawn(self) -> Mask:
        return self._scaled("drawn", self.size)

    def _draw(self) -> Mask:
        """At its own size."""
        if self.runs is not None:
            inside = np.repeat(np.arange(len(self.runs)) % 2 == 1, self.runs).reshape(self.size)
        else:
            inside = np.full(self.size, not self.polygons)
            for each in self.polygons:
                inside |= _fill(each, self.size)
        for each in self.ignore:
            inside &= ~_fill(each, self.size)
        return inside


Roi = RegionOfInterest | NDArray[np.bool_] | PathLike | None


def _as_tuples(values: Any) -> Any:
    """Lists of any depth as tuples: what JSON and users write."""
    return tuple(map(_as_tuples, values)) if isinstance(values, list | tuple) else values


def as_roi(roi: Roi) -> RegionOfInterest | None:
    """A region of interest from what a user gives: itself, an (H, W) bool mask, or the path of a mask's picture.

    Raises:
        FileNotFoundError, ValueError: a picture or a mask that cannot be used; see `images.read_mask`.
        TypeError: anything else.
    """
    if roi is None or isinstance(roi, RegionOfInterest):
        return roi
    if isinstance(roi, str | os.PathLike):
        return RegionOfInterest.from_mask(read_mask(roi))
    if isinstance(roi, np.ndarray):
        return RegionOfInterest.from_mask(roi)
    raise TypeError(f"roi is a RegionOfInterest, a bool mask, or the path of one; got {roi!r:.80}")


def effective_roi(roi: RegionOfInterest | None) -> RegionOfInterest | None:
    """The region, or None where all is inside: then nothing needs to be done."""
    return None if roi is None or roi.is_full else roi


def _fill(polygon: Polygon, size: tuple[int, int]) -> Mask:
    """The pixels whose centre is inside a polygon, by the even-odd rule: (H, W) bool."""
    height, width = size
    starts = np.zeros((height, width + 1), bool)  # where along a row inside and outside change
    for (x0, y0), (x1, y1) in pairwise((*polygon, polygon[0])):
        first, last = (min(max(math.ceil(y - 0.5), 0), height) for y in sorted((y0, y1)))
        if first == last:
            continue
        rows = np.arange(first, last)
        crossings = np.ceil(x0 + (rows + 0.5 - y0) / (y1 - y0) * (x1 - x0) - 0.5)
        starts[rows, np.clip(crossings, 0, width).astype(int)] ^= True
    return np.logical_xor.accumulate(starts, axis=1)[:, :width]


def _nearest(mask: Mask, size: tuple[int, int]) -> Mask:
    """A mask at another size: each pixel is what is at its centre."""
    if mask.shape == size:
        return mask
    rows, columns = ((2 * np.arange(n) + 1) * own // (2 * n) for n, own in zip(size, mask.shape, strict=True))
    return mask[np.ix_(rows, columns)]


def _touched(mask: Mask, grid: tuple[int, int]) -> Mask:
    """Which cells of a grid over a mask hold any part of what is true in it."""
    for axis, count in enumerate(grid):
        length = mask.shape[axis]
        parts = [slice(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]
        mask = np.stack([mask[part].any(axis=0) if axis == 0 else mask[:, part].any(axis=1) for part in parts], axis)
    return mask
