"""Grey levels: which value of 16 bits is white, pictures of another gain, 16 bits as 8. Needs no torch."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_GAIN", "check_bit_depth", "check_gain", "divide_by_gain", "say_once", "to_8_bits"]

log = logging.getLogger("uflow")

MAX_GAIN = 4  # and 1 / 4 at least: beyond, too few of 256 grey levels are left

_said: set[str] = set()


def say_once(kind: str, message: str) -> None:
    """Log a warning the first time this process converts an image in this way: a line per image would hide the rest."""
    if kind not in _said:
        _said.add(kind)
        log.warning("%s (said once)", message)


def check_bit_depth(bit_depth: object) -> None:
    """Raise ValueError for what is no bit depth of images in 16-bit files."""
    if not isinstance(bit_depth, int) or isinstance(bit_depth, bool) or not 8 <= bit_depth <= 16:
        raise ValueError(f"bit_depth is a number of bits from 8 to 16, got {bit_depth!r}")


def check_gain(gain: object) -> None:
    """Raise ValueError for what is no gain that images can be divided by."""
    if not isinstance(gain, int | float) or isinstance(gain, bool) or not 1 / MAX_GAIN <= gain <= MAX_GAIN:
        raise ValueError(
            f"gain is how many times brighter pictures are than a model expects, from {1 / MAX_GAIN:g} to {MAX_GAIN}, "
            f"got {gain!r}"
        )


def to_8_bits(values: NDArray[Any], name: str, bit_depth: int, gain: float = 1) -> NDArray[np.uint8]:
    """round(255 v / (gain white)): 0 stays 0 and white, the largest value of so many bits, becomes 255 by a gain of 1.

    Raises:
        ValueError: a value above white; it names the image.
    """
    white, highest = 2**bit_depth - 1, int(values.max())
    if highest > white:
        raise ValueError(
            f"cannot read {name}: its values reach {highest}, and white is {white} ({bit_depth} bits) for this model; "
            "give images as the camera gave those trained on, or train with another bit_depth (--bit-depth)"
        )
    say_once("16-bit", f"{name} is a 16-bit image: scaled to 8 bits, {white} is white")
    if highest < (white + 1) // 4:
        used = max(highest.bit_length(), 8)
        say_once("dark", f"{name} uses {used} of {bit_depth} bits: if all images do, learn by bit_depth={used}")
    if gain != 1:
        return _changed(values, white, gain)
    scaled: NDArray[np.uint32] = (values.astype(np.uint32) * 255 + white // 2) // white
    return scaled.astype(np.uint8)


def divide_by_gain(pixels: NDArray[np.uint8], gain: float) -> NDArray[np.uint8]:
    """Pixels of 8 bits as they were by a gain of 1, rounded; what would be above 255 is 255. The same array for 1."""
    return pixels if gain == 1 else _changed(pixels, 255, gain)


def _changed(values: NDArray[Any], white: int, gain: float) -> NDArray[np.uint8]:
    """Values from 0 to white by what each of them becomes, of 255."""
    levels = np.rint(np.arange(white + 1) * (255 / (white * gain)))
    changed: NDArray[np.uint8] = np.minimum(levels, 255).astype(np.uint8)[values]
    return changed
