"""The size at which images go through the network: their own shape, within a budget of pixels. Needs no torch."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import numpy as np

__all__ = ["PIXEL_BUDGETS", "choose_input_size"]

log = logging.getLogger("uflow")

# Pixels of the network's input; time and memory of training and prediction are proportional to them.
PIXEL_BUDGETS = {"fast": 256**2, "balanced": 448**2, "fine": 640**2}
MAX_ENLARGEMENT = 2.0  # of a side, and up to the pixels of "fast": finer cells help small images, beyond little is won
UNEQUAL_SHAPE = 1.25  # ratio of a picture's aspect to the set's, from which squeezing is worth a line
WORTH_TILING = 4.0  # side of an image over that of the input, from which small defects vanish


def choose_input_size(sizes: Sequence[tuple[int, int]], budget: int, stride: int) -> tuple[int, int]:
    """Height and width for images of these sizes: multiples of the stride, near the budget and near their shape.

    The shape is the median one, where they are unequal: each image is resized to it, and one line says how far the most
    unequal is squeezed. No image is enlarged beyond the pixels of "fast", nor more than `MAX_ENLARGEMENT` times.

    Args:
        sizes: (height, width) of each image.
        budget: pixels of the network's input, see `PIXEL_BUDGETS`.
        stride: the coarsest scale's, pixels a cell.

    >>> choose_input_size([(1240, 500)] * 3, budget=448 * 448, stride=32)
    (704, 288)
    >>> choose_input_size([(128, 128)], budget=448 * 448, stride=32)
    (256, 256)
    >>> choose_input_size([(324, 265)], budget=448 * 448, stride=32)
    (352, 288)

    Raises:
        ValueError: no sizes, or a side below 1.
    """
    if len(sizes) == 0 or np.min(sizes) < 1:
        raise ValueError(f"the input size needs heights and widths of at least 1 pixel, got {list(sizes)[:3]}")
    heights, widths = np.array(sizes, np.float64).T
    aspects = heights / widths
    aspect, own_area = float(np.median(aspects)), float(np.median(heights * widths))
    enlarged_area = min(PIXEL_BUDGETS["fast"], own_area * MAX_ENLARGEMENT**2)
    area = min(float(budget), max(own_area, enlarged_area))
    height, width = _nearest_multiples(math.sqrt(area * aspect), math.sqrt(area / aspect), aspect, stride)
    log.info("input size %d x %d (height x width) for images of about %d x %d", height, width, *_median_size(sizes))
    squeezed = float(np.exp(np.abs(np.log(aspects / aspect)).max()))
    if squeezed > UNEQUAL_SHAPE:
        log.warning(
            "the images are of unequal shapes: all are resized to the median one, which squeezes some %.1f times; "
            "tile=True (--tile) cuts them into tiles instead",
            squeezed,
        )
    shrunk = math.sqrt(own_area / (height * width))
    if shrunk > WORTH_TILING:
        log.warning(
            "the images are %.0f times as large as the network's input: defects smaller than %.0f of their pixels "
            "may vanish; tile=True (--tile) keeps their resolution",
            *(shrunk, shrunk * 8),
        )
    return height, width


def _nearest_multiples(height: float, width: float, aspect: float, stride: int) -> tuple[int, int]:
    """Of the multiples around a size, those that keep its shape best; of equals the larger."""
    candidates = [
        (max(2, rows) * stride, max(2, columns) * stride)
        for rows in (math.floor(height / stride), math.ceil(height / stride))
        for columns in (math.floor(width / stride), math.ceil(width / stride))
    ]
    return min(candidates, key=lambda size: (round(abs(math.log(size[0] / size[1] / aspect)), 6), -size[0] * size[1]))


def _median_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    height, width = np.median(np.array(sizes), axis=0)
    return round(float(height)), round(float(width))
