"""Images: read as 8-bit RGB, resized; masks of their defects."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from .files import BoundedReader, PathLike, one_line, sha256
from .grey_levels import check_bit_depth, check_gain, divide_by_gain, say_once, to_8_bits
from .listing import IMAGE_SUFFIXES, check_regular, list_good_images, list_images
from .sources import ImageLike, as_source, is_one_image

__all__ = [
    "IMAGE_SUFFIXES",
    "ImageLike",
    "as_source",
    "batches",
    "digest",
    "highest_value",
    "image_size",
    "is_one_image",
    "list_good_images",
    "list_good_sources",
    "list_images",
    "list_sources",
    "open_image",
    "read_image",
    "read_mask",
    "resize_image",
    "resize_mask",
    "set_max_pixels",
]

T = TypeVar("T")

# Pillow knows many more, and tells them by content, not by name: one of them starts Ghostscript.
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
MAX_PIXELS = 178_956_970  # of an image: 512 MiB as RGB; a file of some kilobytes can ask for any number
MAX_SIDE = 1 << 18  # pixels: work is kept for each row and column, gigabytes for an image of one row
MAX_MASK_COLOUR = 32  # difference of a pixel's channels in a grey mask: JPEG's rounding makes some

_max_pixels = MAX_PIXELS
_opening = threading.Lock()


def list_sources(images: PathLike | Sequence[ImageLike], bgr: bool = False) -> list[ImageLike]:
    """Images as a list: of a folder or a pattern its files, of any other sequence what is in it, see `as_source`."""
    if isinstance(images, (str, os.PathLike)):
        images = list(list_images(images))
    return [as_source(image, bgr) for image in images]


def list_good_sources(images: PathLike | Sequence[ImageLike], bgr: bool = False) -> list[ImageLike]:
    """`list_sources` of images to learn from: a folder that holds others too is refused, see `list_good_images`."""
    if isinstance(images, (str, os.PathLike)):
        images = list(list_good_images(images))
    return [as_source(image, bgr) for image in images]


# ---- reading images


def read_image(image: ImageLike, bit_depth: int = 16, gain: float = 1) -> NDArray[np.uint8]:
    """Read an image as 8-bit RGB: (H, W, 3) uint8, from a file, its bytes, a PIL image, an array or a tensor.

    Files and PIL images: grey, palette, 1-bit and CMYK are converted, alpha is dropped, of several frames the first
    counts. 16 bits become 8 by /257 or, where only `bit_depth` of them are used, by the largest value that these hold.
    Values are divided by `gain`, those of 16 bits before they are rounded; what passes white then is white.
    A 32-bit integer image (mode "I") holds 16-bit values in practice and is scaled as such, whatever its content;
    values outside 0..65535 are an error, and so is a float image, because nothing says what its white is. EXIF
    orientation is ignored: masks are drawn on the pixels as they are stored. Arrays: (H, W, 3), (H, W), (H, W, 1) or
    (H, W, 4; alpha dropped), of uint8, or uint16 as in files, red first; tensors have their channels first, see
    `as_source`. The result of an RGB uint8 array may share its memory.
    Each kind of conversion that changes numbers is logged once per process.

    Raises FileNotFoundError for a file that is not there, ValueError (one line that names the file) for one that
    cannot be read to its end or that uses more bits, ValueError for an array of another shape or dtype, or a
    `bit_depth` that is not 8 to 16 or a `gain` that is not 1/4 to 4, TypeError for anything else.
    """
    check_bit_depth(bit_depth)
    check_gain(gain)
    source: Any = as_source(image)
    if isinstance(source, np.ndarray):
        return _read_array(source, bit_depth, gain)
    if isinstance(source, Image.Image):
        return _read_pil(source, getattr(source, "filename", "") or "the PIL image", bit_depth, gain)
    return _read_file(source if isinstance(source, bytes) else Path(source).expanduser(), bit_depth, gain)


def set_max_pixels(count: int) -> None:
    """Refuse larger images from now on, in this process; `MAX_PIXELS` is what it starts with.

    Raises:
        ValueError: a number below 1.
    """
    global _max_pixels
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"the largest number of pixels of an image is a whole number from 1 on, got {count!r}")
    _max_pixels = count


@contextmanager
def open_image(file: Path | bytes) -> Iterator[Image.Image]:
    """The image in a file, or in its bytes, its header read; ValueError or FileNotFoundError, one line, if none is."""
    with ExitStack() as stack:
        yield _open(file, stack)


def _open(file: Path | bytes, stack: ExitStack) -> Image.Image:
    name = _name_of(file)
    try:
        if isinstance(file, Path):
            check_regular(file)
        stream = io.BytesIO(file) if isinstance(file, bytes) else stack.enter_context(BoundedReader(io.FileIO(file)))
        with _opening:  # Pillow's own limit is one number for the whole process, and warns in its own words
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = stack.enter_context(Image.open(stream, formats=IMAGE_FORMATS))
            finally:
                Image.MAX_IMAGE_PIXELS = limit
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {name}") from None
    except UnidentifiedImageError as error:
        length = len(file) if isinstance(file, bytes) else file.stat().st_size
        why = "the file is empty" if length == 0 else "its content is no known image format"
        raise ValueError(f"cannot read {name}: {why} ({', '.join(IMAGE_FORMATS)})") from error
    except ValueError:
        raise
    except Exception as error:  # no permission, and whatever a broken header makes Pillow raise
        raise ValueError(f"cannot read {name}: {one_line(error)}") from error
    return image


def _name_of(file: Path | bytes) -> str:
    return f"the image of {len(file)} bytes" if isinstance(file, bytes) else str(file)


def _read_file(file: Path | bytes, bit_depth: int, gain: float) -> NDArray[np.uint8]:
    name = _name_of(file)
    with open_image(file) as image:
        pixels = _read_pil(image, name, bit_depth, gain)
        if getattr(image, "is_animated", False):
            say_once("frames", f"{name} has several frames: the first is used")
        return pixels


def _read_pil(image: Image.Image, name: str, bit_depth: int, gain: float = 1) -> NDArray[np.uint8]:
    _check_size(image, name)
    if isinstance(image, ImageFile.ImageFile) and image.format not in (*IMAGE_FORMATS, "MPO"):  # MPO: JPEGs
        raise ValueError(
            f"cannot read {name}: the format {image.format} is not read ({', '.join(IMAGE_FORMATS)} are); "
            "pass image.convert('RGB') if you trust the file"
        )
    sixteen_bit = _decodes_16_bit(image)  # asked before loading, which forgets it
    try:
        image.load()
    except Exception as error:  # a broken file makes Pillow's decoders fail in many ways, not only by OSError
        raise ValueError(f"cannot read {name}: {one_line(error)}") from error

    if image.mode == "F":
        raise ValueError(
            f"cannot read {name}: it holds 32-bit floats; convert it to 8 or 16 bits, which say where white is"
        )
    if _is_grey_16_bit(image):
        image, gain = _shrink_integers(image, name, bit_depth, gain), 1
    elif sixteen_bit:
        _check_upper_bits(name, bit_depth)
    image = _without_alpha(_without_palette(image, name), name)
    try:
        return divide_by_gain(np.array(image.convert("RGB")), gain)
    except ValueError as error:
        raise ValueError(f"cannot read {name}: {one_line(error)}; convert it to RGB") from error


def _check_size(image: Image.Image, name: str) -> None:
    """ValueError for an image without pixels, or with too many of them; its header says how many."""
    height, width = image.height, image.width
    if height < 1 or width < 1:
        raise ValueError(f"cannot read {name}: it is empty, {height}x{width} pixels")
    if max(height, width) > MAX_SIDE:
        raise ValueError(f"cannot read {name}: {height}x{width} pixels, and a side has {MAX_SIDE} at most")
    if height * width > _max_pixels:
        raise ValueError(
            f"cannot read {name}: {height}x{width} are {height * width} pixels, more than the limit of {_max_pixels}; "
            "raise it by --max-pixels (in Python uflow.images.set_max_pixels) if the file is what it should be"
        )


def _is_grey_16_bit(image: Image.Image) -> bool:
    return image.mode == "I" or image.mode.startswith("I;16")


def _check_upper_bits(name: str, bit_depth: int) -> None:
    """Pillow gives the upper 8 bits of 16-bit colours: ValueError where the camera used the lower ones."""
    if bit_depth < 16:
        raise ValueError(
            f"cannot read {name}: of 16-bit colours the upper 8 bits are read, and {bit_depth} lower ones are used; "
            "convert it to 8 bits"
        )
    say_once("16-bit", f"{name} is a 16-bit image: scaled to 8 bits")


def highest_value(image: ImageLike) -> int | None:
    """The largest value in a 16-bit image, that of its file; None for an image of 8 bits.

    Raises what `read_image` raises for a file that cannot be read.
    """
    if isinstance(image, np.ndarray):
        return int(image.max()) if image.dtype == np.uint16 and image.size else None
    if isinstance(image, (str, os.PathLike)):
        path = Path(image).expanduser()
        with open_image(path) as file:
            _check_size(file, str(path))
            return highest_value(file)
    if not isinstance(image, Image.Image):
        return None
    upper_bits = _decodes_16_bit(image)
    if not (upper_bits or _is_grey_16_bit(image)):
        return None
    try:
        return int(np.max(np.asarray(image))) * (257 if upper_bits and not _is_grey_16_bit(image) else 1)
    except Exception as error:
        name = getattr(image, "filename", "") or "the PIL image"
        raise ValueError(f"cannot read {name}: {one_line(error)}") from error


def _shrink_integers(image: Image.Image, name: str, bit_depth: int, gain: float) -> Image.Image:
    """A grey image of 16 bits, or of 32 that hold 16, as one of 8."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        seen = f"{values.min()}..{values.max()}"
        raise ValueError(
            f"cannot read {name}: its 32-bit integers ({seen}) do not fit 16 bits; convert it to 8 or 16 bits"
        )
    return Image.fromarray(to_8_bits(values, name, bit_depth, gain))


def _without_palette(image: Image.Image, name: str) -> Image.Image:
    """A palette image with its colours, and a word on every other mode that conversion to RGB changes."""
    mode = image.mode
    if mode in ("P", "PA"):
        say_once("palette", f"{name} is a palette image: converted to RGB")
        return image.convert("RGBA") if mode == "PA" or "transparency" in image.info else image
    if mode == "1":
        say_once("1-bit", f"{name} is a 1-bit image: converted to black and white RGB")
    elif mode not in ("L", "RGB", "RGBA", "LA", "RGBa", "La"):
        say_once(mode, f"{name} is a {mode} image: converted to RGB without a colour profile")
    return image


def _without_alpha(image: Image.Image, name: str) -> Image.Image:
    """Colours that were premultiplied by alpha are divided; that alpha is dropped later is said."""
    if image.mode in ("RGBA", "LA", "RGBa", "La"):
        say_once("alpha", f"{name} has an alpha channel: dropped")
        if image.mode.endswith("a"):
            return image.convert(image.mode[:-1] + "A")
    return image


def _decodes_16_bit(image: Image.Image) -> bool:
    """Whether Pillow will cut 16-bit RGB to 8 bits while it decodes: its mode says RGB, only its raw mode tells."""
    tiles = getattr(image, "tile", None) or []
    arguments = [argument for tile in tiles for argument in (tile[3] if isinstance(tile[3], tuple) else (tile[3],))]
    raw_modes = [argument for argument in arguments if isinstance(argument, str)]
    return any(
        ";16" in raw_mode and not raw_mode.startswith("BGR;16") for raw_mode in raw_modes
    )  # BGR;16 is 5+6+5 bits


def _read_array(image: NDArray[Any], bit_depth: int, gain: float) -> NDArray[np.uint8]:
    shape, dtype = image.shape, image.dtype
    if image.size == 0:
        raise ValueError(f"the image array is empty: its shape is {shape}")
    if not (image.ndim == 2 or (image.ndim == 3 and shape[2] in (1, 3, 4))):
        raise ValueError(f"an image array must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), not {shape}")
    if dtype.kind == "f":
        if not np.isfinite(image).all():
            raise ValueError(f"the image array of shape {shape} holds NaN or infinite values; pass uint8, 0 to 255")
        raise ValueError(f"the image array is {dtype}; pass uint8, 0 to 255: (255 * image).round().astype('uint8')")
    if dtype.kind != "u" or dtype.itemsize > 2:
        raise ValueError(f"the image array is {dtype}; pass uint8, 0 to 255")
    if dtype.itemsize == 2:
        image, gain = to_8_bits(image, f"an image array of shape {shape}", bit_depth, gain), 1
    if image.ndim == 2:
        image = image[:, :, None]
    if image.shape[2] == 4:
        say_once("alpha", f"an image array of shape {shape} has an alpha channel: dropped")
        image = image[:, :, :3]
    return np.ascontiguousarray(np.broadcast_to(divide_by_gain(image, gain), (*shape[:2], 3)))


def image_size(image: ImageLike) -> tuple[int, int]:
    """(H, W) of what `read_image` will return, read from a file's header; raises what `read_image` raises.

    An open file is read to its end: see `as_source`.
    """
    if isinstance(image, np.ndarray) and image.ndim > 1:
        return int(image.shape[0]), int(image.shape[1])
    if isinstance(image, Image.Image):
        return image.height, image.width
    if isinstance(image, (str, os.PathLike, bytes)):
        with open_image(image if isinstance(image, bytes) else Path(image).expanduser()) as file:
            _check_size(file, _name_of(image) if isinstance(image, bytes) else str(image))
            return file.height, file.width
    height, width, _ = read_image(image).shape  # says what is wrong
    return height, width


def resize_image(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize an (H, W, 3) uint8 image to size (height, width), bilinear with antialiasing: (h, w, 3) uint8.

    Pillow's filter on 8-bit values, which is torchvision's `Resize` of a PIL image.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"an image to resize must be (H, W, 3) uint8, not {image.shape} {image.dtype}")
    if image.shape[:2] == tuple(size):
        return image
    return np.array(Image.fromarray(image).resize(_pil_size(size), Image.Resampling.BILINEAR))  # writable


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one perhaps shorter; never more than one of them read ahead.

    >>> list(batches("abc", 2))
    [['a', 'b'], ['c']]
    """
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _pil_size(size: tuple[int, int]) -> tuple[int, int]:
    height, width = size
    if height < 1 or width < 1 or height * width >= 2**31:
        raise ValueError(f"a size must be (height, width), below 2^31 pixels, both at least 1, not {tuple(size)}")
    return int(width), int(height)


# ---- reading masks


def read_mask(path: PathLike, shape: tuple[int, int] | None = None, above: int = 127) -> NDArray[np.bool_]:
    """Read a ground-truth mask as (H, W) bool: a grey picture, defect where it is above 127.

    shape: the (H, W) of the image it belongs to, checked if given.
    above: another grey value of 255 to be above, 0 for masks that hold small integers.

    Raises what `read_image` raises for a file that cannot be read, ValueError for another shape, and ValueError where
    it is open what is marked: colours, an alpha channel that is not opaque, shades that are all above 127, or none
    above 127 but some above 0 (a 0/1 mask would otherwise count as "no defect").
    """
    name = os.fspath(path)
    grey, white = _read_grey(Path(path).expanduser())
    if shape is not None and grey.shape != tuple(shape[:2]):
        seen, wanted = "x".join(map(str, grey.shape)), "x".join(map(str, shape[:2]))
        raise ValueError(f"the mask {name} is {seen} pixels (height x width), its image is {wanted}")
    limit = above * white // 255
    mask: NDArray[np.bool_] = grey > limit
    lowest, highest = int(grey.min()), int(grey.max())
    if 0 < highest <= limit:
        raise ValueError(f"the mask {name} has values 0 to {highest}, none above {limit}: write defects as {white}")
    if limit < lowest < highest:
        raise ValueError(
            f"the mask {name} has values {lowest} to {highest}, all above {limit}: write what is normal as 0"
        )
    return mask


def _read_grey(path: Path) -> tuple[NDArray[Any], int]:
    """The (H, W) grey values of a mask, as they are stored, and the value that is white: 255 or 65535."""
    with open_image(path) as image:
        deep, cut = image.mode == "I" or image.mode.startswith("I;16"), _decodes_16_bit(image)
        pixels = _read_pil(image, str(path), 16)
        if deep:
            return np.asarray(image), 65535
        if cut:
            raise ValueError(f"the mask {path} is a 16-bit colour picture: write it in grey, defects as 255")
        has_alpha = image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info
        if has_alpha and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
            raise ValueError(
                f"the mask {path} has an alpha channel that is not opaque, and it is open which of both marks: "
                "write it in grey without alpha, defects as 255"
            )
    colourfulness = int((pixels.max(axis=2) - pixels.min(axis=2)).max())
    if colourfulness > MAX_MASK_COLOUR:
        raise ValueError(f"the mask {path} has colours, and it is open which mark: write it in grey, defects as 255")
    return np.asarray(Image.fromarray(pixels).convert("L")), 255


def resize_mask(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Resize an (H, W) bool mask to size (height, width): bilinear with antialiasing, then above one half.

    The published protocol (masks and maps compared at 256 x 256); thin defects may vanish, as they do there.
    """
    if mask.dtype != np.bool_ or mask.ndim != 2 or mask.size == 0:
        raise ValueError(f"a mask to resize must be (H, W) bool, not {mask.shape} {mask.dtype}")
    grey = Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0)))
    resized = np.asarray(grey.resize(_pil_size(size), Image.Resampling.BILINEAR))
    return np.asarray(resized > 127)  # 128 / 255 is the first value above one half


def image_sha256(source: ImageLike) -> str:
    """SHA-256 of an image's file; of its pixels where it has none."""
    if isinstance(source, (str, os.PathLike)):
        return sha256(Path(source))
    return hashlib.sha256(read_image(source).tobytes()).hexdigest()


def digest(sources: Iterable[ImageLike]) -> str:
    """How many images, and one SHA-256 of their contents in this order: the same wherever they lie."""
    parts = list(map(image_sha256, sources))
    return f"{len(parts)} {hashlib.sha256(''.join(parts).encode()).hexdigest()}"
