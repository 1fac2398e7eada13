"""Features of images, computed once and kept: the only room that knows of copies and noise."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor

from .backbones import Backbone
from .images import batches
from .progress import progress_bar

__all__ = ["FeatureCache", "TrainingError", "channel_moments", "compute_features", "image_tensor", "turned_copies"]


def channel_moments(features: FeatureCache, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Mean and standard deviation of each channel over some images' features, a pair of float64 (C,) a scale."""
    moments = []
    for array in features.arrays:
        sums = np.zeros((2, array.shape[1]))
        for index in indices:
            cells = array[index].astype(np.float64)
            sums += cells.sum(axis=(1, 2)), np.square(cells).sum(axis=(1, 2))
        mean, square = torch.from_numpy(sums / (len(indices) * array[0, 0].size))
        moments.append((mean, (square - mean.square()).clamp(min=0).sqrt()))
    return moments


def turned_copies(image: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """An (H, W, 3) image, itself first, and its turned and mirrored copies: 8 in all of a square one, else 4.

    >>> [copy[0, 0, 0].item() for copy in turned_copies(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))]
    [0, 3, 9, 6, 3, 0, 6, 9]
    """
    turns = range(4) if image.shape[0] == image.shape[1] else (0, 2)
    return [np.rot90(flipped, turn) for flipped in (image, image[:, ::-1]) for turn in turns]


def image_tensor(images: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
    """(B, H, W, 3) uint8 images as a backbone takes them: (B, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to try."""


class FeatureCache:
    """Features of n images, one float32 array (n, C, h, w) a scale, finest first.

    Held in memory, or memory-mapped in a temporary folder when larger than `memory_share` of the machine's free memory.
    A context manager: leaving it removes the folder.
    """

    def __init__(
        self, count: int, shapes: Sequence[tuple[int, int, int]], memory_share: float = 0.25, folder: Path | None = None
    ) -> None:
        size = 4 * count * sum(int(np.prod(shape)) for shape in shapes)
        self.folder: Path | None = None
        self.arrays: list[np.ndarray]
        if size > memory_share * _free_memory():
            self.folder = Path(tempfile.mkdtemp(prefix="uflow-features-", dir=folder))
            free = shutil.disk_usage(self.folder).free
            if size > free:
                self.close()
                raise TrainingError(
                    f"the features of {count} images need {size / 1e9:.1f} GB and the disk of {tempfile.gettempdir()} "
                    f"has {free / 1e9:.1f} GB free; set TMPDIR to a larger disk, or use smaller or fewer images"
                )
            self.arrays = [
                np.lib.format.open_memmap(
                    self.folder / f"scale{i}.npy", mode="w+", dtype=np.float32, shape=(count, *shape)
                )
                for i, shape in enumerate(shapes)
            ]
        else:
            self.arrays = [np.empty((count, *shape), np.float32) for shape in shapes]

    def __len__(self) -> int:
        return len(self.arrays[0])

    def batch(self, indices: Sequence[int], device: torch.device | str = "cpu") -> list[Tensor]:
        """The features of some images: list of (len(indices), C, h, w) float32 tensors."""
        return [torch.from_numpy(array[np.asarray(indices)]).to(device) for array in self.arrays]

    def close(self) -> None:
        self.arrays = []
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def compute_features(
    backbone: Backbone,
    images: Iterable[np.ndarray],
    count: int,
    *,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    memory_share: float = 0.25,
    folder: Path | None = None,
    progress: bool | Progress = False,
) -> FeatureCache:
    """Run the frozen backbone once over `count` images, (H, W, 3) uint8, and keep its features."""
    shapes = [(c, *size) for c, size in zip(backbone.channels, backbone.sizes, strict=True)]
    cache = FeatureCache(count, shapes, memory_share, folder)
    try:
        with progress_bar(progress) as bar, torch.inference_mode():
            task = bar.add_task("Features", total=count)
            done = 0
            for batch in batches(images, batch_size):
                features = backbone(image_tensor(np.stack(batch), device))
                for array, feature in zip(cache.arrays, features, strict=True):
                    array[done : done + len(batch)] = feature.float().cpu().numpy()
                done += len(batch)
                bar.advance(task, len(batch))
    except BaseException:
        cache.close()
        raise
    return cache


def _free_memory() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on this system: macOS has no AVPHYS, Windows no sysconf
        return 4 << 30
