"""The rule by which one field is judged, and what good images say of it; both thresholds share it. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import segmentation
from .arrays import strips
from .outline import Drawing, clip_regions, draw_regions
from .roi import Mask, RegionOfInterest
from .segmentation import AreaLaw, Background

__all__ = ["FieldRule", "area_exponent", "inside", "judge_fields", "learn_from_fields"]

BLOCK_SIDES = (1, 2, 4, 8)  # cells, of the squares whose means say how fast variance falls: defects are about as large


class FieldRule(Protocol):
    """The numbers that a field is judged by, see `CalibratedThreshold`."""

    @property
    def cell(self) -> Background: ...

    @property
    def exponent(self) -> float: ...

    @property
    def drawing(self) -> Drawing: ...

    @property
    def shift(self) -> float: ...


def learn_from_fields(
    fields: Sequence[NDArray[np.float32]], masks: Sequence[Mask | None] = ()
) -> tuple[Background, float, tuple[float, ...]]:
    """What fields of good images, (1, h, w) each, say: the law of a cell, the exponent of the area, and the minima.

    Args:
        fields: of each image.
        masks: of each image, the cells (h, w) that count, for a field that is 0 elsewhere; None is all.

    Raises:
        ValueError: fields that do not vary, or are not finite.
    """
    masks = masks or [None] * len(fields)
    exponent = area_exponent(fields, masks)
    counted = list(map(inside, fields, masks))
    moments = np.array([(np.mean(f, dtype=np.float64), np.var(f, dtype=np.float64)) for f in counted])
    cell = _background(moments)
    tested = (_log_nfa_of_cells(field, cell, exponent, mask) for field, mask in zip(fields, masks, strict=True))
    return cell, exponent, tuple(float(inside(cells, mask).min()) for cells, mask in zip(tested, masks, strict=True))


def inside(values: NDArray[np.float32], mask: Mask | None) -> NDArray[np.float32]:
    """Of maps (B, h, w) the cells that count, (B, n); the maps themselves where all do."""
    return values if mask is None else values[:, mask]


def judge_fields(
    rule: FieldRule,
    fields: NDArray[np.float32],
    drawn_on: NDArray[np.float32],
    size: int | tuple[int, int],
    roi: RegionOfInterest | None = None,
    images: Sequence[NDArray[np.uint8]] | None = None,
) -> NDArray[np.float32]:
    """log10 NFA of B fields after the shift, see `CalibratedThreshold.log_nfa`: (B, height, width) float32.

    Args:
        rule: what is normal.
        fields: (B, h, w).
        drawn_on: (B, h, w), the maps that outlines are drawn on.
        size: of the result.
        roi: where fields count, which are 0 elsewhere: no pixel outside is detected. None is everywhere.
        images: (H, W, 3) each, of any size, whose colours outlines follow; None draws by the maps alone.
    """
    mask = None if roi is None else roi.cells(fields.shape[1:3])
    cells = _log_nfa_of_cells(fields, rule.cell, rule.exponent, mask) + np.float32(rule.shift)
    if mask is not None:
        cells[:, ~mask] = np.maximum(cells.max(axis=(1, 2)), 0)[:, None]
    maps = segmentation.weighted_sum([cells], [1.0], size)
    pictures: Sequence[NDArray[np.uint8] | None] = images or [None] * len(maps)
    for log_nfa, own, values, image in zip(maps, cells, drawn_on, pictures, strict=True):
        found = own < 0
        if found.any():
            shape = (log_nfa.shape[0], log_nfa.shape[1])
            drawn = draw_regions(values, found, rule.drawing, shape, mask, image)
            if roi is not None:
                drawn = clip_regions(drawn, found, roi.pixels(shape))
            np.maximum(log_nfa, 0, out=log_nfa)
            _set_lowest(log_nfa, drawn, own)
        else:  # resizing flattens the lowest value, which p-values are made of
            log_nfa += own.min() - log_nfa.min()
    return maps


def area_exponent(fields: Sequence[NDArray[np.float32]], masks: Sequence[Mask | None] = ()) -> float:
    """The exponent g of the effective area: A cells of good images are worth at least A^g independent ones.

    What squares of 2, 4 and 8 cells a side are worth is measured: var(one cell) / var(mean over a square), of all
    squares of all images together, for a region of a new image is exposed to what images differ by as well as to what
    varies within them. g is the largest exponent that claims no more than that for any of the squares. 1 for
    independent cells.

    Args:
        fields: of N images, (1, h, w) each.
        masks: see `learn_from_fields`; then squares count that lie inside altogether.

    Returns:
        g, in [0, 1]; 0 where no field has 2 x 2 cells that count, or none varies.
    """
    sums = np.zeros((len(BLOCK_SIDES), 3))  # per side: squares, sum and sum of squares of their means
    for field, mask in zip(fields, masks or [None] * len(fields), strict=True):
        for row, side in zip(sums, BLOCK_SIDES, strict=True):
            means = _block_means(field[0], side)
            if mask is not None:
                means = means[_block_means(mask, side) == 1]
            row += means.size, means.sum(), np.square(means).sum()
    counts, totals, squares = sums[sums[:, 0] > 0].T
    variances = squares / counts - np.square(totals / counts)
    if len(variances) < 2 or not variances.min() > 0:
        return 0.0
    log_areas = 2 * np.log(BLOCK_SIDES[1 : len(variances)])
    log_worths = np.log(variances[0] / variances[1:])
    return float(np.clip(np.min(log_worths / log_areas), 0, 1))


def _block_means(field: NDArray[Any], side: int) -> NDArray[np.float64]:
    """Means over the squares of `side` cells that the part of a field is cut into that the largest squares cover."""
    rows, columns = (n // BLOCK_SIDES[-1] * BLOCK_SIDES[-1] or n // side * side for n in field.shape)
    blocks = field[:rows, :columns].astype(np.float64).reshape(rows // side, side, columns // side, side)
    return np.asarray(blocks.mean(axis=(1, 3)).ravel())


def _set_lowest(log_nfa: NDArray[np.float32], mask: NDArray[np.bool_], cells: NDArray[np.float32]) -> None:
    """Set log NFA inside each region of a mask to the lowest among the cells that the region covers.

    An outline may leave the cells that decided. So that the image's lowest value, which p-values are made of, stays in
    the mask, the region with the lowest of all takes it, and so does a region that covers no cell that was found.
    """
    labels, count = segmentation.connected_components(mask)
    (height, width), (h, w) = mask.shape, cells.shape
    lowest = np.full(count + 1, np.float32(np.inf))
    for rows in strips(mask.shape):
        y, x = np.nonzero(mask[rows])
        np.minimum.at(lowest, labels[rows][y, x], cells[(y + rows.start) * h // height, x * w // width])
    lowest[~(lowest < 0) | (lowest == lowest.min())] = cells.min()
    for rows in strips(mask.shape):
        inside = mask[rows]
        log_nfa[rows][inside] = lowest[labels[rows][inside]]


def _log_nfa_of_cells(
    field: NDArray[np.float32], cell: Background, exponent: float, mask: Mask | None = None
) -> NDArray[np.float32]:
    """log10 NFA of each cell of a field, before the shift: (B, h, w) float32. Only cells that count are tested."""
    law = AreaLaw.power(field[0].size, exponent, None if mask is None else int(mask.sum()))
    return segmentation.log_nfa_of_field(field, cell, law, field.shape[1:])


def _background(moments: NDArray[np.float64]) -> Background:
    """The scaled chi-square that fits the field of typical normal images, by its two first moments.

    ``scale = var / (2 mean)`` and ``dof = 2 mean^2 / var`` (Satterthwaite 1946), of the medians over the images' (N, 2)
    means and variances, so that one odd image among few does not decide.
    """
    mean, var = map(float, np.median(moments, axis=0))
    if not (0 < mean < math.inf and 0 < var < math.inf):
        raise ValueError(
            f"the calibration images' evidence does not vary or are not finite: mean {mean:g}, variance {var:g}"
        )
    return Background(scale=var / (2 * mean), dof=2 * mean**2 / var, correlation_area=1.0)
