"""Pictures small enough for a page, and outlines as SVG paths. Needs no torch."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import segmentation
from ..outline import polygon
from ..pictures import ColourScale, shrink
from ..prediction import Prediction

__all__ = ["coloured_map", "coloured_values", "encode_within", "mask_path", "svg_path"]

LEAST_SIDE = 32  # pixels: a smaller picture shows nothing
QUALITY = 78  # of WebP, from 0 to 100
LARGEST_MAP = 384  # pixels, of the longer side, that are coloured
OUTLINE_STEPS = 800  # along an image's longer side: outlines are drawn no finer than a screen shows


def encode_within(picture: Image.Image, side: int, limit: int) -> bytes | None:
    """A picture as WebP of at most `limit` bytes.

    Args:
        picture: of any size, RGB or RGBA.
        side: pixels that the longer side has at most.
        limit: bytes; the picture is made smaller until it keeps within.

    Returns:
        None where even `LEAST_SIDE` pixels take more.
    """
    side = min(side, max(picture.size))
    while True:
        picture = picture.copy()
        picture.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
        file = io.BytesIO()
        picture.save(file, "WEBP", quality=QUALITY, method=1)
        size = file.tell()
        if size <= limit:
            return file.getvalue()
        if side <= LEAST_SIDE:
            return None
        side = max(LEAST_SIDE, int(side * max(0.5, min(0.9, 0.95 * math.sqrt(limit / size)))))


def svg_path(rings: Iterable[NDArray[np.float32]], size: tuple[int, int]) -> str:
    """Closed rings as one SVG path.

    Args:
        rings: (n, 2) points each, x and y in pixels.
        size: (H, W) of the image; of a large one, points closer than a step of `OUTLINE_STEPS` are one.

    >>> svg_path([np.array([[0, 0], [4, 0], [4, 2.5]])], (100, 100))
    'M0 0L4 0L4 2.5Z'
    """
    step = max(0.5, max(size) / OUTLINE_STEPS)
    parts = []
    for ring in rings:
        points = np.round(np.round(ring / step) * step, 1)
        points = points[np.any(points != np.roll(points, 1, axis=0), axis=1)]
        if len(points) > 2:
            parts.append("M" + "L".join(f"{x:g} {y:g}" for x, y in points.tolist()) + "Z")
    return "".join(parts)


def mask_path(mask: NDArray[np.bool_]) -> str:
    """The outlines of an (H, W) mask, such as a labelled defect, as an SVG path; empty where nothing is set."""
    labels, count = segmentation.connected_components(mask)
    rings = [ring for label in range(1, count + 1) for ring in polygon(labels == label)]
    return svg_path(rings, (mask.shape[0], mask.shape[1]))


def coloured_map(prediction: Prediction) -> NDArray[np.uint8]:
    """The anomaly map of a prediction in its colours, no larger than a page shows it: (h, w, 4) uint8."""
    return prediction.colours.rgba(_shrink(prediction.anomaly_map))


def coloured_values(values: NDArray[np.float32], usual: float, reach: float) -> NDArray[np.uint8]:
    """A map with any unit in the same colours as ours, no larger than a page shows it.

    Args:
        values: (H, W).
        usual: the median of what good images' maps reach: clear up to there.
        reach: what the maps of a share alpha of good images exceed: from there on red.

    Returns:
        (h, w, 4) uint8, RGBA.
    """
    beyond = np.maximum((_shrink(values) - usual) / max(reach - usual, 1e-12), 0)
    # The scale goes by -log(1 - map): a map of 1 - exp(-beyond) has its level of alpha where `beyond` is 1.
    return ColourScale(calm=0.0, alarm=1 - math.exp(-1)).rgba(1 - np.exp(-beyond))


def _shrink(values: NDArray[np.float32]) -> NDArray[np.float32]:
    height, width = values.shape
    factor = min(1.0, LARGEST_MAP / max(height, width))
    return shrink(np.maximum, values, (max(1, round(height * factor)), max(1, round(width * factor))))
