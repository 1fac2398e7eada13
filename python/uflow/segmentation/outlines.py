"""Regions of coarse cells to the pixels of an image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..arrays import as_image, as_mask, contiguous


def draw_regions(
    values: NDArray[np.float32],
    found: NDArray[np.bool_],
    usual: float,
    quiet: float,
    size: tuple[int, int],
    counted: NDArray[np.bool_] | None = None,
    image: NDArray[np.uint8] | None = None,
) -> NDArray[np.bool_]:
    """The pixels of the regions that were found, (height, width) bool: see `outline.draw_regions`.

    Args:
        values: (h, w), the map to draw on.
        found: (h, w), the cells of the regions.
        usual: the map's median on good images.
        quiet: its largest value in a typical good image.
        size: (height, width) of the result.
        counted: (h, w), the cells that may be of the background; None is all.
        image: (H, W, 3), what the map was made of; None draws by the map alone.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, an image of another dtype.

    >>> values = np.array([[0, 8, 8, 0, 0, 0]], np.float32)
    >>> draw_regions(values, values > 7, 0.0, 2.0, (1, 6)).astype(int)
    array([[0, 1, 1, 0, 0, 0]])
    """
    return _core.draw_regions(
        contiguous(values, np.float32),
        as_mask(found),
        usual,
        quiet,
        *size,
        None if counted is None else as_mask(counted),
        None if image is None else as_image(image),
    )
