"""Cameras of 10, 12 or 14 bits in 16-bit files: which value is white. Needs no torch."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from .images import ImageLike, highest_value

__all__ = ["BIT_DEPTHS", "find_bit_depth"]

log = logging.getLogger("uflow")

BIT_DEPTHS = (8, 10, 12, 14, 16)  # that cameras have


def find_bit_depth(sources: Sequence[ImageLike]) -> int:
    """The least bit depth of cameras that holds every value of the 16-bit images among some; 16 where there are none.

    Scaled by 65535, an image of a 10-bit camera would keep 4 grey levels of 256. One line says what was found.

    Args:
        sources: good images, all of one camera.

    Raises:
        ValueError: an image cannot be read.
    """
    values = [value for source in sources if (value := highest_value(source)) is not None]
    if not values:
        return 16
    highest = max(values)
    bit_depth = next((bits for bits in BIT_DEPTHS if highest < 2**bits), BIT_DEPTHS[-1])
    if bit_depth < 16:
        log.info("16-bit images that use %d bits (values up to %d): %d is white", bit_depth, highest, 2**bit_depth - 1)
    return bit_depth
