"""Other methods on the features that U-Flow has: nearest neighbours, and those of anomalib with their own training.

A method is a function of the good images' files, the settings and a seed; it learns, and returns the (height, width) of
the images it takes and what scores them. There are those named here, and any other as ``module:function``.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from ..backbones import Backbone, coarsest_stride, create_backbone, default_strides
from ..bit_depth import BIT_DEPTHS, find_bit_depth
from ..extras import pip_install
from ..features import image_tensor
from ..images import batches, image_size, read_image, resize_image
from ..input_size import PIXEL_BUDGETS, choose_input_size
from ..memory import greedy_coreset
from ..recipe import Quality
from .cross_scale import FlowScorer, train_cross_scale_flow
from .nearest_images import NearestImages

__all__ = [
    "ANOMALIB",
    "BATCH_SIZE",
    "METHODS",
    "TRAINED",
    "Method",
    "Scorer",
    "Settings",
    "Size",
    "check_methods",
    "find_method",
]

SIZE = 256  # side of the maps and masks compared
BATCH_SIZE = 16  # images a training step
VECTORS = 20_000  # neighbours: normal vectors kept, drawn at random
SMOOTHING = 4.0  # neighbours: pixels of the map of SIZE
CANDIDATES = 100_000  # patchcore: vectors that the coreset is chosen from, drawn at random where there are more

Scorer = Callable[[Tensor], tuple[Tensor, Tensor]]  # images (B, 3, H, W) in [0, 1] -> maps (B, h, w), scores (B,)
Size = tuple[int, int]
Method = Callable[[Sequence[Path], "Settings", int], tuple[Size, Scorer]]


@dataclass(frozen=True)
class Settings:
    """What all methods have in common.

    Attributes:
        backbone: name of the frozen features, see `backbones.create_backbone`.
        image_size: side, or (height, width), of the network's input; None follows from `quality`.
        quality: how many pixels the input has, in the images' own shape, see `input_size.choose_input_size`.
        epochs: passes over the good images of the trained rivals; None is as many as make `rivals.STEPS` steps. Of
            U-Flow's published recipe too; None is as published.
        weights: files with the backbone's weights; None finds them, see `backbones.create_backbone`.
        recipe: of U-Flow: "default", or "paper", see `Recipe.paper`.
        paper_map, paper_test: U-Flow with the published map, and the published test, where its recipe has others.
        bit_depth: how many bits 16-bit images use; None is not known yet, see `for_images`.

    Raises:
        ValueError: below 1; no such recipe.
    """

    backbone: str = "efficientnet_lite0"
    image_size: int | Size | None = None
    quality: Quality = "balanced"
    epochs: int | None = None
    weights: tuple[Path, ...] | None = None
    recipe: str = "default"
    paper_map: bool = False
    paper_test: bool = False
    bit_depth: int | None = None

    def __post_init__(self) -> None:
        if self.recipe not in ("default", "paper"):
            raise ValueError(f"recipe must be default or paper, got {self.recipe!r}")
        for name in ("image_size", "epochs"):
            value = getattr(self, name)
            if value is not None and np.min(value) < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.quality not in PIXEL_BUDGETS:
            raise ValueError(f"quality must be one of {', '.join(PIXEL_BUDGETS)}, got {self.quality!r}")

    def make_backbone(self, strides: Sequence[int] | None = None) -> Backbone:
        """The frozen features at the common size; one whose strides are its own has as many of these as are wished."""
        if strides is not None and coarsest_stride(self.backbone) is None:
            strides = default_strides(self.backbone)[: len(strides)]
        return create_backbone(self.backbone, self.image_size, strides, self.weights)

    def for_images(self, images: Sequence[Path]) -> Settings:
        """The same with the bit depth and the input size that suit the images, where they are left open."""
        bit_depth = find_bit_depth(images) if self.bit_depth is None else self.bit_depth
        size, stride = self.image_size, coarsest_stride(self.backbone)
        if size is None and stride is not None:
            size = choose_input_size([image_size(path) for path in images], PIXEL_BUDGETS[self.quality], stride)
        return replace(self, image_size=size, bit_depth=bit_depth)

    def read_images(self, paths: Sequence[Path], size: Size) -> Iterator[Tensor]:
        """The files in batches, (B, 3, height, width) float in [0, 1]."""
        bit_depth = BIT_DEPTHS[-1] if self.bit_depth is None else self.bit_depth
        for batch in batches(paths, 8):
            images = [resize_image(read_image(path, bit_depth), size) for path in batch]
            yield image_tensor(np.stack(images))


def check_methods(methods: Sequence[str]) -> None:
    """ValueError for a method that is not known, ImportError where one needs anomalib and it is not installed."""
    unknown = [name for name in methods if name not in METHODS and ":" not in name]
    if unknown:
        known = ", ".join(METHODS)
        raise ValueError(f"unknown method {unknown[0]!r}; known: {known}, and module:function for one of your own")
    rivals = [name for name in methods if name in ANOMALIB]
    if rivals and importlib.util.find_spec("anomalib") is None:
        raise ImportError(f"{', '.join(rivals)} need anomalib: {pip_install('compare')}")


def find_method(name: str) -> Method | None:
    """What learns, imported; None for U-Flow, whose detector does more than score."""
    if name in ANOMALIB:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("anomalib.models")
    if name in METHODS:
        return METHODS[name]
    module, _, function = name.partition(":")
    method: Method = getattr(importlib.import_module(module), function)
    return method


# ---- nearest neighbours


def neighbours(images: Sequence[Path], settings: Settings, seed: int) -> tuple[Size, Scorer]:
    """Distance of each cell's features to the nearest of `VECTORS` vectors of good images.

    Strides 8 and 16 resized to the finer grid and joined, 3 x 3 mean with zeros beyond the border, as PatchCore has it
    (without the zeros it is much worse); the map of distances resized bilinearly and smoothed; the image's score is
    its maximum.
    """
    backbone = settings.make_backbone(strides=(8, 16))
    height, width = backbone.sizes[0]
    kept = np.sort(np.random.default_rng(seed).permutation(len(images) * height * width)[:VECTORS])
    parts, start = [], 0
    for batch in settings.read_images(images, backbone.image_size):
        cells = _embed(backbone, batch).flatten(0, 1)
        first, last = np.searchsorted(kept, (start, start + len(cells)))
        parts.append(cells[torch.from_numpy(kept[first:last] - start)])
        start += len(cells)
    return backbone.image_size, _NearestVector(backbone, torch.cat(parts))


def _embed(backbone: Backbone, batch: Tensor) -> Tensor:
    """A vector for each cell of the finer grid: (B, height * width, channels)."""
    fine, coarse = backbone(batch)
    coarse = F.interpolate(coarse, fine.shape[2:], mode="bilinear", align_corners=False)
    return F.avg_pool2d(torch.cat([fine, coarse], 1), 3, stride=1, padding=1).flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class _NearestVector:
    """Scores images by the distance to the nearest of some vectors."""

    backbone: Backbone
    vectors: Tensor  # (n, channels)

    def __call__(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        norms = self.vectors.square().sum(1)
        nearest = [  # |x|^2 is the same for all vectors and joins after the minimum
            (cells.square().sum(1) + torch.addmm(norms, cells, self.vectors.T, alpha=-2).amin(1)).clamp(min=0)
            for cells in _embed(self.backbone, batch)
        ]
        distance = torch.stack(nearest).sqrt().view(-1, 1, *self.backbone.sizes[0])
        maps = F.interpolate(distance, (SIZE, SIZE), mode="bilinear", align_corners=False)[:, 0]
        smooth = gaussian_blur(maps, 8 * round(SMOOTHING) + 1, SMOOTHING)
        return smooth, smooth.amax((1, 2))


# ---- from their papers


def spade(images: Sequence[Path], settings: Settings, seed: int) -> tuple[Size, Scorer]:
    """SPADE, see `nearest_images`; nothing in it is random."""
    backbone = settings.make_backbone()
    return backbone.image_size, NearestImages.learn(backbone, settings.read_images(images, backbone.image_size), SIZE)


def cs_flow(images: Sequence[Path], settings: Settings, seed: int) -> tuple[Size, Scorer]:
    """CS-Flow, see `cross_scale`."""
    backbone = settings.make_backbone()
    order = np.random.default_rng(seed).permutation(len(images))
    shuffled = [images[i] for i in order]
    with torch.inference_mode():
        found = [backbone.normalised(backbone(b)) for b in settings.read_images(shuffled, backbone.image_size)]
    whole = [torch.cat(scale).half() for scale in zip(*found, strict=True)]
    batches_of_maps = list(zip(*(torch.split(scale, BATCH_SIZE) for scale in whole), strict=True))
    flow = train_cross_scale_flow([[m.clone() for m in b] for b in batches_of_maps], settings.epochs or 1, seed)
    return backbone.image_size, FlowScorer(backbone, flow, SIZE)


# ---- anomalib's methods


@dataclass(frozen=True)
class _Net:
    """The frozen net as anomalib's models are told of it: timm's name, its layers; (C, h, w) of each map."""

    arch: str
    layers: list[str]
    shapes: list[tuple[int, int, int]]
    image_size: Size
    batch_size: int  # images of a training step
    net: nn.Module


class _Contiguous(nn.Module):
    """The maps of the frozen net, which come channels last, as anomalib's models can view them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> list[Tensor]:
        return [m.contiguous() for m in self.net(images)]


@dataclass(frozen=True)
class AnomalibMethod:
    """One of anomalib's methods, with its own defaults.

    Attributes:
        strides: of the maps it takes, those of its default backbone's default layers.
        make: its Lightning module, on a net of these strides.
        trained: by passes over the images, not in one.
    """

    strides: tuple[int, ...]
    make: Callable[[Any, _Net], Any]
    trained: bool = False

    def __call__(self, images: Sequence[Path], settings: Settings, seed: int) -> tuple[Size, Scorer]:
        """Train it, by its own steps, optimizer and schedule."""
        import lightning

        backbone = create_backbone(settings.backbone, settings.image_size, self.strides, settings.weights)
        net = _describe(backbone, min(BATCH_SIZE, len(images)))
        lightning.seed_everything(seed, verbose=False)
        module = self._module(net)
        everything: Any = list(
            torch.cat([_to_bytes(batch) for batch in settings.read_images(images, backbone.image_size)])
        )
        loader: Any = torch.utils.data.DataLoader(
            everything, net.batch_size, shuffle=True, drop_last=self.trained, collate_fn=partial(_collate, backbone)
        )
        options = {"max_epochs": settings.epochs or 1, **module.trainer_arguments}
        for quiet in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"):
            options[quiet] = False
        lightning.Trainer(accelerator="cpu", **options).fit(module, loader)
        module.eval()
        return backbone.image_size, _AnomalibScorer(backbone, module)

    def _module(self, net: _Net) -> Any:
        """Its Lightning module, with the frozen net in place of its own."""
        from anomalib.models import image as models
        from anomalib.models.components import TimmFeatureExtractor

        with _no_weights():
            module = self.make(models, net)
        for part in module.modules():
            if isinstance(part, TimmFeatureExtractor) and not part.requires_grad:
                part.feature_extractor = net.net
        return module


@dataclass(frozen=True)
class _AnomalibScorer:
    """Scores images by one of anomalib's modules."""

    backbone: Backbone
    module: Any

    def __call__(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        answer = self.module.model(_normalise(self.backbone, batch))
        return answer.anomaly_map.reshape(len(batch), *answer.anomaly_map.shape[-2:]), answer.pred_score.flatten()


def _describe(backbone: Backbone, batch_size: int) -> _Net:
    inner: Any = backbone.extractor
    info: Any = getattr(inner.nets[0], "feature_info", None)  # a bare list in a plain transformer, resampled here
    if len(inner.nets) != 1 or not hasattr(info, "module_name"):
        others = ", ".join(name for name in METHODS if name not in ANOMALIB)
        raise ValueError(
            f"anomalib's methods need one pyramid of feature maps, which {backbone.name} has not; "
            f"these take it: {others}"
        )
    shapes = [(c, *size) for c, size in zip(backbone.channels, backbone.sizes, strict=True)]
    layers = info.module_name()
    return _Net(inner.archs[0], layers, shapes, backbone.image_size, batch_size, _Contiguous(inner.nets[0]))


def _to_bytes(batch: Tensor) -> Tensor:
    return (255 * batch).round().byte()


def _normalise(backbone: Backbone, batch: Tensor) -> Tensor:
    return (batch - backbone.mean) / backbone.std


def _collate(backbone: Backbone, images: list[Tensor]) -> Any:
    """A training batch of good images, (3, H, W) bytes each, as anomalib's modules take it."""
    from anomalib.data import ImageBatch

    good = torch.zeros(len(images), dtype=torch.bool)
    pixels = _normalise(backbone, torch.stack(images).float() / 255)
    mask = torch.zeros(len(images), *pixels.shape[2:], dtype=torch.bool)
    return ImageBatch(image=pixels, gt_label=good, gt_mask=mask)


@contextmanager
def _no_weights() -> Iterator[None]:
    """timm asks no hub for weights: anomalib does so for some models even where others are put in their place."""
    create = timm.create_model
    with mock.patch("timm.create_model", lambda *names, **options: create(*names, **{**options, "pretrained": False})):
        yield


_BARE = {"pre_processor": False, "post_processor": False, "evaluator": False, "visualizer": False}


def _patchcore(models: Any, net: _Net) -> Any:
    """Its coreset (10 %) chosen from at most `CANDIDATES` vectors: its own choice takes hours on a CPU.

    By the same rule, but without its random projection, which for so few channels has more columns than they are.
    """

    class Patchcore(models.Patchcore):  # type: ignore[misc]
        def fit(self) -> None:
            _choose_coreset(self.model)

    return Patchcore(net.arch, net.layers, **_BARE)


def _choose_coreset(model: Any) -> None:
    everything = torch.vstack(model.embedding_store)
    model.embedding_store.clear()
    candidates = everything[torch.randperm(len(everything))[:CANDIDATES]]
    first = int(torch.randint(len(candidates), ()))
    model.memory_bank = candidates[greedy_coreset(candidates, int(0.1 * len(candidates)), first)]


def _cflow(models: Any, net: _Net) -> Any:
    """In steps of 256 cells, as far as a batch has them: its default of 64 takes several times as long."""
    _, height, width = net.shapes[-1]
    cells = min(256, net.batch_size * height * width)
    return models.Cflow(net.arch, net.layers, fiber_batch_size=cells, **_BARE)


def _fastflow(models: Any, net: _Net) -> Any:
    """Its list of backbones is short: made for one of them, it is given the frozen net, and norms and flows to fit."""
    from anomalib.models.image.fastflow.torch_model import create_fast_flow_block

    class Fastflow(models.Fastflow):  # type: ignore[misc]
        input_size = net.image_size

    module = Fastflow("resnet18", **_BARE)
    model, steps, ratio = module.model, module.flow_steps, module.hidden_ratio
    model.feature_extractor = net.net
    model.norms = nn.ModuleList(nn.LayerNorm(shape) for shape in net.shapes)
    blocks = (create_fast_flow_block(list(shape), module.conv3x3_only, ratio, steps) for shape in net.shapes)
    model.fast_flow_blocks = nn.ModuleList(blocks)
    return module


def _fre(models: Any, net: _Net) -> Any:
    channels, height, width = net.shapes[0]
    return models.Fre(net.arch, net.layers[0], input_dim=channels * (height // 2) * (width // 2), **_BARE)


ANOMALIB: dict[str, AnomalibMethod] = {
    "patchcore": AnomalibMethod((8, 16), _patchcore),
    "mh_patchcore": AnomalibMethod((8, 16), lambda models, net: models.MHPatchcore(net.arch, net.layers, **_BARE)),
    # 100 channels kept at random are its default for the 448 of ResNet-18
    "padim": AnomalibMethod(
        (4, 8, 16), lambda models, net: models.Padim(net.arch, net.layers, n_features=100, **_BARE)
    ),
    "dfm": AnomalibMethod((16,), lambda models, net: models.Dfm(net.arch, net.layers[0], **_BARE)),
    "fre": AnomalibMethod((16,), _fre, trained=True),
    "cflow": AnomalibMethod((8, 16, 32), _cflow, trained=True),
    "fastflow": AnomalibMethod((4, 8, 16), _fastflow, trained=True),
    "stfpm": AnomalibMethod((4, 8, 16), lambda models, net: models.Stfpm(net.arch, net.layers, **_BARE), trained=True),
    "supersimplenet": AnomalibMethod(
        (8, 16), lambda models, net: models.Supersimplenet(backbone=net.arch, layers=net.layers, **_BARE), trained=True
    ),
}

# None is U-Flow, whose detector does more than score.
METHODS: dict[str, Method | None] = {
    "uflow": None,
    "neighbours": neighbours,
    "spade": spade,
    "cs_flow": cs_flow,
    **ANOMALIB,
}

# Those that pass over the images more than once.
TRAINED = {"cs_flow", *(name for name, method in ANOMALIB.items() if method.trained)}
