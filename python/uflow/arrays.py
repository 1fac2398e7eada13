"""What the compiled core takes, from arrays and tensors: checked, C-contiguous, on the CPU. Images in strips.

Tensors are known by their module, so that torch is never imported here.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_INT32 = 2**31 - 1
STRIP_PIXELS = 1 << 18  # that are worked on at once, where what is worked with takes many bytes a pixel


def is_tensor(x: Any) -> bool:
    return type(x).__module__.startswith("torch")


def to_numpy(x: Any) -> NDArray[Any]:
    return np.asarray(x.detach().cpu().numpy() if is_tensor(x) else x)


def contiguous(array: ArrayLike, dtype: Any) -> NDArray[Any]:
    if isinstance(array, np.ndarray) and array.dtype == dtype and array.flags.carray:
        return array  # np.require would look for longer than a small map takes
    return np.require(array, dtype, ["C", "A"])


def as_mask(mask: ArrayLike) -> NDArray[np.bool_]:
    array = np.asarray(mask)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"mask must be (H, W) and not empty, got shape {array.shape}")
    return contiguous(array, np.bool_)


def as_image(image: ArrayLike) -> NDArray[np.uint8]:
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[2] != 3 or array.size == 0 or array.dtype != np.uint8:
        raise ValueError(f"the image must be uint8 of shape (height, width, 3), got {array.dtype} {array.shape}")
    return contiguous(array, np.uint8)


def as_latents(z: Any) -> Any:
    """Latents as the core or a device squares them: an array where they are on the CPU, else the tensor."""
    if is_tensor(z):
        z = z.detach()
        if z.element_size() < 4:  # float16 and bfloat16 overflow
            z = z.float()
        if z.device.type != "cpu":
            return z
        z = z.numpy()
    return contiguous(z, np.float64 if z.dtype == np.float64 else np.float32)


def check_finite(finite: bool, scale: int, z: Any) -> None:
    if not finite:
        raise ValueError(f"latents of scale {scale}, shape {tuple(z.shape)}, hold values that are not finite")


def check_real(array: Any, dims: int, name: str, want: str) -> None:
    shape = tuple(array.shape)
    if len(shape) != dims or 0 in shape:
        raise ValueError(f"{name} must be {want} and not empty, got shape {shape}")
    if not is_tensor(array) and np.asarray(array).dtype.kind not in "fiu":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")


def as_scales(energies: Sequence[ArrayLike], count: int, what: str) -> list[NDArray[np.float32]]:
    """The energies of all scales as the core takes them; `count` is how many `what` there are."""
    arrays = [np.asarray(e) for e in energies]
    if not arrays or count != len(arrays):
        raise ValueError(
            f"one {what} per scale is needed and at least one scale, got {len(arrays)} scales, {count} {what}"
        )
    for array in arrays:
        check_real(array, 3, "energies", "(B, H, W)")
        if len(array) != len(arrays[0]):
            raise ValueError(f"scales differ in batch size: energies of shapes {arrays[0].shape} and {array.shape}")
    return [contiguous(array, np.float32) for array in arrays]


def check_latents(latents: Sequence[Any]) -> None:
    if not isinstance(latents, list | tuple) or not latents:
        what = "an empty one" if isinstance(latents, list | tuple) else type(latents).__name__
        raise ValueError(f"latents must be a list of (B, C, H, W) arrays, one per scale, got {what}")
    for z in latents:
        if not hasattr(z, "shape") or not hasattr(z, "dtype"):
            raise TypeError(f"latents must be numpy arrays or torch tensors, got {type(z).__name__}")
        check_real(z, 4, "latents", "(B, C, H, W)")
        if getattr(z.dtype, "kind", None) != "f" and "float" not in str(z.dtype):
            raise TypeError(f"latents must be floating point, got {z.dtype}")
        if len(z) != len(latents[0]):
            raise ValueError(f"scales differ in batch size: shapes {tuple(latents[0].shape)} and {tuple(z.shape)}")


def as_counts(exceedances: Any, shape: tuple[int, ...], channels: float) -> NDArray[np.int32]:
    counts = to_numpy(exceedances)
    if counts.shape != shape or counts.dtype.kind not in "iu":
        raise ValueError(f"exceedances must be whole numbers of shape {shape}, got {counts.dtype} {counts.shape}")
    if channels != int(channels) or counts.min() < 0 or counts.max() > channels:
        low, high = counts.min(), counts.max()
        raise ValueError(f"exceedances must lie in 0..dof, a whole number: got {low}..{high} for dof {channels}")
    return contiguous(counts, np.int32)


def output_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) from a side or (height, width); ValueError where it is neither or not positive."""
    try:
        height, width = (size, size) if not isinstance(size, Sequence) else size
        height, width = operator.index(height), operator.index(width)
    except (TypeError, ValueError):
        raise ValueError(f"size must be a whole number or (height, width), got {size!r}") from None
    if height < 1 or width < 1:
        raise ValueError(f"size must be positive, got {size}")
    if height * width > MAX_INT32:
        raise ValueError(f"size must be below 2^31 pixels, got {size}")
    return height, width


def check_connectivity(connectivity: object) -> None:
    """Raise ValueError for neighbours that no pixel has."""
    if connectivity not in (4, 8) or not isinstance(connectivity, SupportsIndex):
        raise ValueError(f"connectivity must be 4 or 8, got {connectivity!r}")


def thread_count(threads: int | None) -> int:
    """Threads as the core takes them, 0 for one per core."""
    if threads is None:
        return 0
    try:
        count = operator.index(threads)
    except TypeError:
        raise TypeError(f"threads must be a whole number, or None for one per core, got {threads!r}") from None
    if not -MAX_INT32 <= count <= MAX_INT32:
        raise ValueError(f"threads must be a number of threads, got {count}")
    return count


def strips(shape: tuple[int, ...]) -> Iterator[slice]:
    """The rows of an image (H, W), a few at a time: some `STRIP_PIXELS` pixels."""
    height, width = shape
    step = max(1, STRIP_PIXELS // width)
    return (slice(top, min(top + step, height)) for top in range(0, height, step))
