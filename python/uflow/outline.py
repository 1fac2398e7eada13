"""Which pixels a found region is: the outline, drawn on the distances to good images and by colour. Needs no torch.

Where a region is, the threshold has decided; the outline never changes that. Cells are coarse and blurred: a cell sees
a neighbourhood, so that the map around an edge is a slope, as wide as the blur. Where on the slope the edge lies, the
image's own colours say. docs/guide/mask.md shows it in pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import segmentation
from .conformal import ROUNDING_ROOM

__all__ = ["Drawing", "clip_regions", "draw_regions", "drop_small_regions", "polygon"]


@dataclass(frozen=True)
class Drawing:
    """What good images say of the map that outlines are drawn on.

    Attributes:
        usual: its median.
        quiet: its largest value in a typical good image.

    Raises:
        ValueError: levels that are not finite, or a quiet one below the usual.
    """

    usual: float
    quiet: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.usual) and math.isfinite(self.quiet) and self.usual <= self.quiet):
            raise ValueError(f"levels of a drawing must be finite and in order, got {self.usual} and {self.quiet}")

    @classmethod
    def from_good_images(cls, maps: Sequence[NDArray[np.float32]]) -> Drawing:
        """Learn from maps of good images, (B, h, w) each."""
        images = [image for values in maps for image in values]
        usual = np.median(np.concatenate([image.ravel() for image in images]).astype(np.float64))
        return cls(float(usual), float(np.median([image.max() for image in images])))


def draw_regions(
    values: NDArray[np.float32],
    found: NDArray[np.bool_],
    drawing: Drawing,
    size: tuple[int, int],
    counted: NDArray[np.bool_] | None = None,
    image: NDArray[np.uint8] | None = None,
) -> NDArray[np.bool_]:
    """The pixels of the regions that were found.

    Heights are counted from the image's own background, the median of the cells where nothing was found: light and
    focus differ from image to image, and lift all distances of one alike. A pixel belongs to a region if it is
    connected to its cells through pixels that are

    - higher than a typical good image is anywhere, but half of the strongest region's height is enough, and a quarter
      of it is needed;
    - no halo of something stronger: above 0.8 of the height of what is so high within the blur's reach, the root of its
      mean square. Where the image is given, less of it is enough, down to half of that, the more the pixel has the
      colour of a defect, and more is needed, up to one and a half of it, the more it has that of the surroundings.

    Holes are filled. A region of which nothing is left so is the halo or the echo of a stronger one, and goes with it.
    Where nothing at all would be left, as where the distances see nothing, the cells are kept. docs/theory.md has the
    reasons; the drawing itself is in C++ (csrc/include/uflow/outline.hpp).

    Args:
        values: (h, w), the map to draw on.
        found: (h, w), the cells of the regions.
        drawing: what good images say of such maps.
        size: (height, width) of the result.
        counted: (h, w), the cells that are of the background where nothing was found; None is all.
        image: (H, W, 3), what the map was made of, of any size; None draws by the map alone.

    Returns:
        (height, width) bool.

    Raises:
        ValueError: values, found and counted of unequal shapes; an image of another shape.
    """
    for cells, name in ((found, "found"), (counted, "counted")):
        if cells is not None and cells.shape != values.shape:
            raise ValueError(f"{name} must have a cell for each value of shape {values.shape}, got {cells.shape}")
    return segmentation.draw_regions(values, found, drawing.usual, drawing.quiet, size, counted, image)


def clip_regions(mask: NDArray[np.bool_], found: NDArray[np.bool_], inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What `draw_regions` drew, (H, W), as far as it is inside; the found cells' part of it where nothing is.

    A cell counts where any part of it is inside, so that something of it is left; but for an image of fewer pixels than
    cells, where the cells are taken as they are.
    """
    clipped = mask & inside
    if clipped.any():
        return clipped
    cells = _nearest_cells(found, (mask.shape[0], mask.shape[1]))
    return cells & inside if (cells & inside).any() else cells


def _nearest_cells(found: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The cells at the image's size, without interpolation; each keeps the pixel at its centre at least."""
    rows, columns = (np.arange(n) * cells // n for n, cells in zip(size, found.shape, strict=True))
    nearest: NDArray[np.bool_] = found.take(rows, axis=0).take(columns, axis=1)
    centres = (
        (2 * at + 1) * n // (2 * cells) for at, n, cells in zip(np.nonzero(found), size, found.shape, strict=True)
    )
    nearest[tuple(centres)] = True
    return nearest


def drop_small_regions(mask: NDArray[np.bool_], log_nfa: NDArray[np.float32], min_area: int) -> None:
    """Take regions of fewer pixels out of a mask; their log NFA becomes 0, just not detected.

    Where none is left, the lowest is as far from 0 as the p-value of a part that is not flagged takes.
    """
    labels, _ = segmentation.connected_components(mask)
    small = np.bincount(labels.ravel()) < min_area
    dropped = mask & small[labels]
    mask[dropped], log_nfa[dropped] = False, 0
    if not mask.any():
        np.maximum(log_nfa, np.float32(2 * ROUNDING_ROOM), out=log_nfa)


# Outlines as polygons -------------------------------------------------------------------------------------------------


def polygon(mask: NDArray[np.bool_], origin: tuple[int, int] = (0, 0)) -> list[NDArray[np.float32]]:
    """The polygon around a 4-connected region: its outer ring, then a ring for each hole.

    A ring goes through the middles between pixels inside and outside, and cuts corners; so the polygon's area is that
    of the region but for half a pixel a ring. Points on straight lines are left out.

    Args:
        mask: (h, w), the region's pixels.
        origin: (x, y) of the mask's upper left corner in the image.

    Returns:
        Rings of (n, 2) float32: x and y in pixels from the upper left corner of the image, so that the pixel in row r
        and column c goes from (c, r) to (c + 1, r + 1). The last point is not the first again.

    Raises:
        ValueError: an empty mask, or more than one region.

    >>> polygon(np.ones((1, 2), bool))[0].tolist()
    [[0.0, 0.5], [0.5, 0.0], [1.5, 0.0], [2.0, 0.5], [1.5, 1.0], [0.5, 1.0]]
    """
    from contourpy import FillType, contour_generator  # only where a polygon is asked for

    padded = np.pad(mask, 1)
    # The padding's first pixel has its centre half a pixel outside.
    x, y = (np.arange(n) + (start - 0.5) for n, start in zip(padded.shape[::-1], origin, strict=True))
    found: Any = contour_generator(x, y, padded, fill_type=FillType.OuterOffset).filled(0.5, math.inf)
    points, offsets = found
    if len(points) != 1:
        raise ValueError(f"a polygon goes around one region, and the mask has {len(points)}")
    rings = [points[0][a : b - 1] for a, b in zip(offsets[0][:-1], offsets[0][1:], strict=True)]
    return [_without_straight_points(ring).astype(np.float32) for ring in rings]


def _without_straight_points(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """A closed ring without the points on the straight line between their neighbours."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return np.asarray(ring[turns])
