"""What an image may come as: a path, the bytes of a file, an open file, a PIL image, an array, a tensor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .arrays import is_tensor, to_numpy
from .files import PathLike

__all__ = ["ImageLike", "as_source", "as_source_or_itself", "is_one_image", "name_of"]

ImageLike = PathLike | Image.Image | NDArray[Any] | bytes | IO[bytes]  # and torch's tensors: `as_source`

_ENCODED = (bytes, bytearray, memoryview)


def is_one_image(source: Any) -> bool:
    """Whether a source is a single image, not a folder, a pattern or an iterable of images."""
    if isinstance(source, (str, os.PathLike)):
        return Path(source).expanduser().is_file()
    return isinstance(source, (Image.Image, np.ndarray, *_ENCODED)) or is_tensor(source) or hasattr(source, "read")


def as_source(image: ImageLike, bgr: bool = False) -> ImageLike:
    """An image as what can be read again and again: a path, a PIL image, an RGB array, or the bytes of a file.

    Open files are read to their end. Tensors become arrays: they are (C, H, W) as torchvision makes them, with 1, 3 or
    4 channels, or (H, W); on any device. Paths and PIL images stay as they are.

    Args:
        image: what `read_image` takes.
        bgr: whether arrays and tensors hold blue first, as OpenCV's do.

    Raises:
        ValueError: a tensor of another shape, one that may be (C, H, W) or (H, W, C), or bgr for an image that says
            itself which colour is which: a path, bytes, an open file, a PIL image.
        TypeError: a file opened as text, or anything else.
    """
    if is_tensor(image):
        image = _array_of_tensor(image)
    if isinstance(image, np.ndarray):
        return _reversed_colours(image) if bgr else image
    if bgr:
        kind = type(image).__name__
        raise ValueError(f"bgr=True is for arrays and tensors, and a {kind} says which colour is which: leave it out")
    if isinstance(image, (str, os.PathLike, Image.Image, bytes)):
        return image
    if isinstance(image, _ENCODED):
        return bytes(image)
    if hasattr(image, "read"):
        content = image.read()
        if isinstance(content, bytes):
            return content
        raise TypeError("the file of an image must be opened as bytes: open(path, 'rb')")
    raise TypeError(
        f"an image must be a path, a PIL image, a numpy array, bytes, an open file or a tensor, not "
        f"{type(image).__name__}"
    )


def as_source_or_itself(image: ImageLike) -> ImageLike:
    """What is no image stays as it is: reading it says what is wrong."""
    try:
        return as_source(image)
    except (TypeError, ValueError):
        return image


def name_of(source: ImageLike) -> str:
    """What messages call an image: its path, or "the image"."""
    return str(source) if isinstance(source, str | os.PathLike) else "the image"


def _array_of_tensor(tensor: Any) -> NDArray[Any]:
    shape = tuple(tensor.shape)
    first, last = (len(shape) == 3 and shape[at] in (1, 3, 4) for at in (0, -1))
    if first and last:
        raise ValueError(
            f"a tensor of shape {shape} may be (C, H, W) or (H, W, C): pass an (H, W, C) array, such as tensor.numpy()"
        )
    if not first and len(shape) != 2:
        hint = "tensor.permute(2, 0, 1)" if last else "list(tensor) for a batch"
        raise ValueError(f"an image tensor must be (C, H, W) with 1, 3 or 4 channels, not {shape}: pass {hint}")
    array = to_numpy(tensor)
    return np.moveaxis(array, 0, -1) if first else array


def _reversed_colours(image: NDArray[Any]) -> NDArray[Any]:
    """Blue, green, red as red, green, blue; a fourth channel stays the last."""
    if image.ndim != 3 or image.shape[2] not in (3, 4):
        return image  # grey, or refused when it is read
    return image[:, :, [2, 1, 0, 3][: image.shape[2]]]
