"""Features of images, computed once and kept. Noise is the business of this room alone."""

from __future__ import annotations

import logging
import math
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import BaseFileLock
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor

from . import distributed, tiling
from .backbones import Backbone, normalise_maps
from .images import ImageLike, batches, image_size
from .processes import LOCK, claim, remove_unclaimed
from .progress import progress_bar
from .roi import RegionOfInterest
from .tile_reader import TileReader, masks_of_tiles, turned_copies

__all__ = [
    "Batch",
    "FeatureCache",
    "FeatureSource",
    "FeatureStream",
    "ImageFeatures",
    "TrainingError",
    "TrainingFeatures",
    "channel_moments",
    "compute_features",
    "describe_images",
    "image_tensor",
]

log = logging.getLogger("uflow")

FOLDER_PREFIX = "uflow-features-"  # of folders for features among the temporary files
HALF_MAX = float(np.finfo(np.float16).max)  # what the cache can hold
MEMORY_SHARE = 0.25  # of the free memory that features may take before they go to disk
MAX_COPIED_TILES = 400  # images, or tiles, up to which copies are tried: of more they take long, and are not needed
MIN_SHOWN_TILES = 64  # images an epoch shows where copies are tried: a small set passes several times
FEATURE_NOISE_STD = 1.5  # noise on features, in their standard deviations, over the root of the number of images


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to try."""


class FeatureSource(ABC):
    """Features of n images, or tiles, as the backbone gives them; kept, or computed anew each time.

    Attributes:
        shapes: (C, h, w) of each scale, finest first.
        layer_norm: whether the flow takes them through a LayerNorm, see `Backbone.normalised`.
        inside: per scale (n, h, w) bool, the cells that count; None is all.
    """

    def __init__(self, count: int, shapes: Sequence[tuple[int, int, int]], layer_norm: bool) -> None:
        self.count, self.shapes, self.layer_norm = count, list(shapes), layer_norm
        self.inside: list[NDArray[np.bool_]] | None = None

    def __len__(self) -> int:
        return self.count

    @abstractmethod
    def batch(self, indices: Sequence[int] | NDArray[np.int64], device: torch.device | str = "cpu") -> list[Tensor]:
        """The features of some images: list of (len(indices), C, h, w) float32 tensors."""

    def normalised(
        self, indices: Sequence[int] | NDArray[np.int64], device: torch.device | str = "cpu"
    ) -> list[Tensor]:
        """The same as the flow takes them."""
        volumes = self.batch(indices, device)
        return normalise_maps(volumes) if self.layer_norm else volumes

    def cells_inside(
        self, indices: Sequence[int] | NDArray[np.int64], device: torch.device | str = "cpu"
    ) -> list[Tensor] | None:
        """Which cells of some images count: a (len(indices), h, w) bool tensor a scale; None is all."""
        if self.inside is None:
            return None
        return [torch.from_numpy(masks[np.asarray(indices)]).to(device) for masks in self.inside]

    def dimensions(self, indices: Sequence[int]) -> float:
        """How many numbers the features of an image are: of the cells that count, the mean over some images."""
        if self.inside is None:
            return sum(math.prod(shape) for shape in self.shapes)
        chosen = np.asarray(indices)
        counts = [masks[chosen].sum() / len(chosen) for masks in self.inside]
        return float(sum(count * shape[0] for count, shape in zip(counts, self.shapes, strict=True)))

    def close(self) -> None:  # noqa: B027 (what is computed anew is kept in nothing)
        """Give up what they are kept in."""


class FeatureCache(FeatureSource):
    """Features that are kept: one float16 array (n, C, h, w) a scale, or float32 where they are to be `exact`.

    Held in memory, or memory-mapped in a temporary folder when larger than `memory_share` of the machine's free memory;
    always there where several processes train together, which all read it. Half precision moves the anomaly map by less
    than 1e-3 and halves what has to be kept.
    """

    def __init__(
        self,
        count: int,
        shapes: Sequence[tuple[int, int, int]],
        layer_norm: bool = False,
        memory_share: float = MEMORY_SHARE,
        exact: bool = False,
    ) -> None:
        super().__init__(count, shapes, layer_norm)
        self.folder: Path | None = None
        self.lock: BaseFileLock | None = None  # says that the folder is in use
        dtype = np.float32 if exact else np.float16
        if _fits_in_memory(cache_size(count, shapes, exact), memory_share):
            self.arrays: list[np.ndarray] = [np.empty((count, *shape), dtype) for shape in shapes]
            return
        files = distributed.from_first(lambda: self._make_files(dtype))
        try:
            self.arrays = [np.lib.format.open_memmap(file, mode="r+") for file in files]
        except FileNotFoundError:
            raise TrainingError(
                f"the features are in {files[0].parent}, which this machine does not have: set TMPDIR to a folder that "
                "all machines of the training see"
            ) from None

    def _make_files(self, dtype: type[np.floating]) -> list[Path]:
        """Empty files of the arrays, in a folder of their own."""
        remove_unclaimed(Path(tempfile.gettempdir()), FOLDER_PREFIX)
        self.folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
        self.lock = claim(self.folder / LOCK)
        files = [self.folder / f"scale{i}.npy" for i in range(len(self.shapes))]
        for file, shape in zip(files, self.shapes, strict=True):
            np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=(self.count, *shape))
        return files

    def batch(self, indices: Sequence[int] | NDArray[np.int64], device: torch.device | str = "cpu") -> list[Tensor]:
        """The features of some images: list of (len(indices), C, h, w) float32 tensors."""
        return [torch.from_numpy(array[np.asarray(indices)]).to(device).float() for array in self.arrays]

    def close(self) -> None:
        """Give the memory back, and remove the folder."""
        self.arrays = []
        if self.lock is not None:
            self.lock.release()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


class FeatureStream(FeatureSource):
    """Features that are computed anew each time: for sets too large for memory and disk.

    Args:
        backbone: gives the features.
        count: of images.
        read: the image of a number, (H, W, 3) uint8 of the backbone's size.
    """

    def __init__(self, backbone: Backbone, count: int, read: Callable[[int], NDArray[np.uint8]]) -> None:
        super().__init__(count, feature_shapes(backbone), backbone.layer_norm)
        self.backbone, self.read = backbone, read

    @torch.no_grad()
    def batch(self, indices: Sequence[int] | NDArray[np.int64], device: torch.device | str = "cpu") -> list[Tensor]:
        """The features of some images: list of (len(indices), C, h, w) float32 tensors."""
        images = np.stack([self.read(int(i)) for i in indices])
        features = self.backbone(image_tensor(images, self.backbone.mean.device))
        return [feature.float().to(device) for feature in features]


def feature_shapes(backbone: Backbone) -> list[tuple[int, int, int]]:
    """(C, h, w) of each scale."""
    return [(c, *size) for c, size in zip(backbone.channels, backbone.sizes, strict=True)]


def cache_size(count: int, shapes: Sequence[tuple[int, int, int]], exact: bool = False) -> int:
    """Bytes of a `FeatureCache`."""
    return (4 if exact else 2) * count * sum(math.prod(shape) for shape in shapes)


def fits_somewhere(
    count: int, shapes: Sequence[tuple[int, int, int]], memory_share: float = MEMORY_SHARE, exact: bool = False
) -> bool:
    """Whether a `FeatureCache` fits in memory, or on the disk of temporary files with a tenth to spare."""
    size = cache_size(count, shapes, exact)
    return _fits_in_memory(size, memory_share) or size <= 0.9 * shutil.disk_usage(tempfile.gettempdir()).free


def _fits_in_memory(size: int, memory_share: float) -> bool:
    """Whether so many bytes are a small enough part of the free memory; that of one process others cannot read."""
    return distributed.processes() == 1 and size <= memory_share * _free_memory()


@dataclass
class ImageFeatures(AbstractContextManager["ImageFeatures"]):
    """The features of images, or of their tiles, and how these make up the images.

    Attributes:
        cache: the features of all tiles; a tile's copies follow it one after another.
        tilings: how each image was cut.
        sizes: (H, W) of each image.
        copies: how many there are of each tile, itself among them.
        roi: where in the images cells count; None is everywhere.
    """

    cache: FeatureSource
    tilings: list[tiling.Tiling]
    sizes: list[tuple[int, int]]
    copies: int
    roi: RegionOfInterest | None = None

    @classmethod
    def compute(  # noqa: PLR0913 (keywords with defaults)
        cls,
        backbone: Backbone,
        sources: Sequence[ImageLike],
        tile: bool,
        progress: bool | Progress,
        copies: bool = False,
        exact: bool = False,
        bit_depth: int = 16,
        roi: RegionOfInterest | None = None,
        gain: float = 1,
    ) -> ImageFeatures:
        """Run the backbone over images; with `copies` also over `turned_copies`, where there are few enough tiles.

        `exact` keeps the features as float32; `bit_depth` and `gain` are what `images.read_image` takes; of what lies
        outside `roi` the backbone sees nothing.
        """
        sizes = [image_size(source) for source in sources]
        if roi is not None:
            for source, own in zip(sources, sizes, strict=True):
                roi.check_size(own, str(source) if isinstance(source, str | Path) else "an image")
        size, stride = backbone.image_size, backbone.strides[-1]
        if tile:
            tilings = [tiling.tiled(own, size, stride) for own in sizes]
        else:
            tilings = [tiling.whole(size, stride)] * len(sources)
        count, copies_each = sum(map(len, tilings)), 1
        if copies and count <= MAX_COPIED_TILES:
            copies_each = len(turned_copies(np.empty((*size, 3), np.uint8)))
        read = TileReader(sources, tilings, copies_each, bit_depth, roi, gain)
        count *= copies_each
        if distributed.from_first(lambda: fits_somewhere(count, feature_shapes(backbone), exact=exact)):
            images = map(read, distributed.own_range(count))
            cache: FeatureSource = compute_features(backbone, images, count, progress=progress, exact=exact)
        else:
            log.warning(
                "the features of %d images would need %.0f GB, more than memory and disk hold: they are computed anew "
                "in each epoch, which takes longer; a larger disk (set TMPDIR) or a smaller input avoids it",
                *(count, cache_size(count, feature_shapes(backbone), exact) / 1e9),
            )
            cache = FeatureStream(backbone, count, read)
        if roi is not None:
            cache.inside = masks_of_tiles(roi, tilings, backbone.sizes, copies_each)
        return cls(cache, tilings, sizes, copies_each, roi)

    def __exit__(self, *_: object) -> None:
        self.cache.close()

    def tiles(self, images: Sequence[int]) -> list[int]:
        """Where in the cache the features of the tiles of some images are."""
        first = np.cumsum([0, *map(len, self.tilings)]).tolist()
        return [self.copies * number for image in images for number in range(first[image], first[image + 1])]

    def others(self, images: Sequence[int]) -> list[int]:
        """All images but these."""
        return sorted(set(range(len(self.sizes))) - set(images))

    def without(self, held_out: Sequence[int], augmented: bool, last_batch: str = "even") -> TrainingFeatures:
        """The features of all images but some, for training with copies and noise or without.

        Where copies are there at all, an epoch without them is as long as one with them: the two are compared.
        """
        tiles = self.tiles(self.others(held_out))
        return TrainingFeatures(
            self.cache,
            tiles,
            self.tiles(held_out),
            copies=self.copies if augmented else 1,
            noise_std=FEATURE_NOISE_STD / math.sqrt(len(tiles)) if augmented else 0.0,
            passes=math.ceil(MIN_SHOWN_TILES / len(tiles)) if self.copies > 1 else 1,
            last_batch=last_batch,
        )


class Batch(NamedTuple):
    """What a flow is shown at once: features, a (B, C, h, w) a scale, and which cells count, (B, h, w); None is all."""

    volumes: list[Tensor]
    inside: list[Tensor] | None


@dataclass
class TrainingFeatures:
    """The features that a flow learns from, and how an epoch shows them.

    Attributes:
        cache: features of all images.
        indices: which of them are learnt from.
        held_out: which of them the epoch is selected by.
        copies: entry i of `indices` stands for the features i to i + copies - 1, copies of one image: each time one of
            them is taken at random.
        noise_std: standard deviation of the noise on what is shown, in standard deviations of each channel.
        passes: how often an epoch passes over the images.
        last_batch: "even": batches are of equal size, by one at most; "remainder": all but the last are full.
    """

    cache: FeatureSource
    indices: Sequence[int]
    held_out: Sequence[int]
    copies: int = 1
    noise_std: float = 0.0
    passes: int = 1
    last_batch: str = "even"

    @cached_property
    def moments(self) -> list[tuple[Tensor, Tensor]]:
        """Mean and standard deviation of each channel, see `channel_moments`; reads all features once."""
        return channel_moments(self.cache, self.indices)

    def batch_sizes(self, batch_size: int) -> list[int]:
        """How many images each batch of an epoch has."""
        shown = range(self.passes * len(self.indices))
        if self.last_batch == "remainder":
            return [len(batch) for batch in batches(shown, batch_size)]
        return [len(batch) for batch in np.array_split(shown, math.ceil(len(shown) / batch_size))]

    def epoch(self, rng: np.random.Generator, batch_size: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """Batches in an order that `rng` alone decides.

        Where several processes train together, the share of this one, see `distributed.first_or_share`.
        """
        order = np.concatenate([rng.permutation(np.asarray(self.indices)) for _ in range(self.passes)])
        order += rng.integers(self.copies, size=len(order))
        for batch in np.split(order, np.cumsum(self.batch_sizes(batch_size))[:-1]):
            own = distributed.first_or_share(batch)
            volumes = self.cache.normalised(own, device)
            if self.noise_std:
                for x, (_, std) in zip(volumes, self.moments, strict=True):
                    drawn = rng.standard_normal((len(batch), *x.shape[1:]), np.float32)  # also for other processes
                    draw = torch.from_numpy(distributed.first_or_share(drawn)).to(device)
                    x.addcmul_(draw, (self.noise_std * std).float().to(device).view(-1, 1, 1))
            yield Batch(volumes, self.cache.cells_inside(own, device))


def compute_features(
    backbone: Backbone,
    images: Iterable[np.ndarray],
    count: int,
    *,
    batch_size: int = 16,
    memory_share: float = MEMORY_SHARE,
    progress: bool | Progress = False,
    exact: bool = False,
) -> FeatureCache:
    """Run the frozen backbone, where it is, once over `count` images, (H, W, 3) uint8, and keep its features.

    Where several processes train together, `images` are those of `distributed.own_range`.
    """
    cache = FeatureCache(count, feature_shapes(backbone), backbone.layer_norm, memory_share, exact)
    try:
        with progress_bar(progress) as bar, torch.inference_mode():
            own = distributed.own_range(count)
            task, done = bar.add_task("Features", total=len(own)), own.start
            for batch in batches(images, batch_size):
                features = backbone(image_tensor(np.stack(batch), backbone.mean.device))
                for array, feature in zip(cache.arrays, features, strict=True):
                    kept = feature.float() if exact else feature.half()
                    if not kept.isfinite().all():
                        raise TrainingError(
                            f"features of {backbone.name} are not finite, or above {HALF_MAX:.0f}: use another backbone"
                        )
                    array[done : done + len(batch)] = kept.cpu().numpy()
                done += len(batch)
                bar.advance(task, len(batch))
        for array in cache.arrays:
            if isinstance(array, np.memmap):
                array.flush()  # another machine may read it
        distributed.wait_for_all()
    except BaseException:
        cache.close()
        raise
    return cache


def describe_images(features: ImageFeatures) -> NDArray[np.float64]:
    """A vector of each image that says how it looks as a whole: (N, 2 C) float64.

    Mean and standard deviation of each channel of the second scale (the only one, where there is one), over the image.
    """
    scale = min(1, len(features.cache.shapes) - 1)
    images = range(len(features.sizes))
    vectors = torch.zeros(len(images), 2 * features.cache.shapes[scale][0], dtype=torch.float64)
    for image in distributed.share(images):
        tiles = features.cache.batch(features.tiles([image]))[scale].double()
        vectors[image] = torch.cat([tiles.mean(dim=(0, 2, 3)), tiles.std(dim=(0, 2, 3), correction=0)])
    found: NDArray[np.float64] = distributed.sum_of_all(vectors).numpy()
    return found


def channel_moments(features: FeatureSource, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Mean and standard deviation of each channel of some images' normalised features: float64 (C,) each, per scale."""
    sums = [torch.zeros(2, channels, dtype=torch.float64) for channels, _, _ in features.shapes]
    counts = [0] * len(sums)
    for index in distributed.share(indices):
        masks: Sequence[Tensor | None] = features.cells_inside([index]) or [None] * len(sums)
        for scale, (volume, mask) in enumerate(zip(features.normalised([index]), masks, strict=True)):
            cells = volume[0].double().flatten(1) if mask is None else volume[0, :, mask[0]].double()
            sums[scale] += torch.stack([cells.sum(dim=1), cells.square().sum(dim=1)])
            counts[scale] += cells.shape[1]
    moments = []
    all_counts = distributed.sum_of_all(torch.tensor(counts, dtype=torch.float64)).tolist()
    for total, count in zip(map(distributed.sum_of_all, sums), all_counts, strict=True):
        mean, square = total / count
        moments.append((mean, (square - mean.square()).clamp(min=0).sqrt()))
    return moments


def image_tensor(images: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
    """(B, H, W, 3) uint8 images as a backbone takes them: (B, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255


def _free_memory() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on this system: macOS has no AVPHYS, Windows no sysconf
        return 4 << 30
