"""Model files made elsewhere, read without running any code from them."""

from __future__ import annotations

import logging
import math
import os
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, serialization

from ..backbones import Backbone, create_backbone
from ..calibration_log import UNCALIBRATED
from ..detector import Detector, Weights, check_tensors, detector_from_file
from ..files import sha256, some_names
from ..flow import UFlow
from ..model_file import load_model
from ..model_header import is_foreign
from ..network import TorchNetwork
from ..prediction import ModelOrigin
from ..weights import torch_source
from .freia import FREIA_KEY, SoftClamp, convert_freia

__all__ = ["Foreign", "load_checkpoint", "load_foreign", "load_nets", "load_on_checkpoint"]

log = logging.getLogger("uflow")

ANOMALIB_UNCALIBRATED = "anomalib trains latents smaller than its promise needs, and defects are missed"

ANOMALIB_KEY = "feature_extractor.feature_extractor."  # the authors' is feature_extractor.extractor.
MOST_BYTES = 2 << 30  # of a checkpoint's tensors where the file is smaller: those of MS-CaiT are 1.6 GB
MAX_CLASSES = 100  # that a checkpoint may name: torch's reader begins anew with each of them

# The backbones of U-Flow: the channels of their scales, finest first, and the finest stride.
_BACKBONES = {
    "mcait": ((768, 384), 16),
    "resnet18": ((64, 128, 256), 4),
    "wide_resnet50_2": ((256, 512, 1024), 4),
}
_REFUSED = re.compile(r"GLOBAL (\S+) was not an allowed global")
_FILLED = re.compile(r"Can only (SETITEM|append|extend).*but got <class '(\S+)'>")
_BLOCKED = re.compile(r"GLOBAL (\S+) whose module")


@dataclass
class Foreign:
    """A U-Flow made elsewhere, as `load_foreign` found it.

    Attributes:
        origin: "anomalib", or "the authors" for every other file in their layout.
        backbone: name of the backbone.
        image_size: (H, W) of its input; None where the file does not tell: the backbone's own.
        nets: timm's tensors of each of the backbone's nets; empty where the file does not hold them.
        steps, clamp, affine: arguments of the `UFlow`.
        flow: its weights, under the keys of its state dict.
    """

    origin: str
    backbone: str
    image_size: tuple[int, int] | None
    nets: list[dict[str, Tensor]]
    steps: int
    clamp: float
    affine: bool
    flow: dict[str, Tensor]


def load_foreign(path: Path, soft_clamp: SoftClamp = "tanh(r)") -> Foreign:
    """Read a U-Flow checkpoint of the authors or of anomalib: Lightning's file, or a state dict saved by torch.

    No code from the file is run. What it is, is found from the names and shapes of its tensors.

    Args:
        path: the file.
        soft_clamp: see `convert_freia`.

    Raises:
        ValueError: not such a file, cut short, damaged, or incomplete; one line says what was expected and found.
    """
    content, classes = _torch_load(path)
    tensors = _tensors(path, content)
    settings = content.get("hyper_parameters")
    settings = settings if isinstance(settings, Mapping) else {}
    clamp = settings.get("affine_clamp", 2.0)
    if not isinstance(clamp, int | float) or not 0 < clamp < math.inf:
        raise ValueError(f"{path} is no U-Flow checkpoint that can be used: its affine_clamp is {clamp!r}, not above 0")
    try:
        flow = convert_freia(tensors, soft_clamp, clamp)
        volumes = _volumes(flow)
        channels = tuple(c - up // 8 for c, up in zip(volumes, [*volumes[1:], 0], strict=True))
        backbone, stride = _recognise(channels, settings.get("backbone"))
        norms = _layer_norms(tensors, channels) if backbone != "mcait" else {}
    except ValueError as error:
        raise ValueError(f"{path} is no U-Flow checkpoint that can be used: {error}") from None
    flow |= norms
    for name, tensor in flow.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{path} is damaged: the flow's {name!r} holds NaN or infinite values")
    height, width = norms["affines.0.weight"].shape[1:] if norms else (0, 0)
    names = [*map(str, content), *classes]
    anomalib = any("anomalib" in name for name in names) or any(ANOMALIB_KEY in name for name in tensors)
    return Foreign(
        origin="anomalib" if anomalib else "the authors",
        backbone=backbone,
        image_size=(height * stride, width * stride) if norms else None,
        nets=_nets(tensors, backbone),
        steps=1 + max(int(name.split(".")[2]) for name in flow if name.startswith("stages.0.")),
        clamp=clamp,
        affine=bool(norms),
        flow=flow,
    )


def load_checkpoint(
    path: Path, device: str = "auto", weights: Weights = None, soft_clamp: SoftClamp = "tanh(r)"
) -> Detector:
    """A detector from a checkpoint of the authors or of anomalib; a line of the log says what it was recognised as.

    It is judged by the paper's test until `Detector.calibrate` has seen good images. No code from the file is run.

    Args:
        path: Lightning's .ckpt, or a state dict saved by torch.
        device: "auto" (CUDA, then MPS, then CPU), or a torch device name.
        weights: file with the backbone's weights; a checkpoint that holds them needs none.
        soft_clamp: "tanh(r)" (FrEIA 0.2, anomalib), or "tanh(r/clamp)" where it was trained with a later FrEIA; see
            `freia.convert_freia`.

    Raises:
        ValueError: not such a file, cut short, damaged, or incomplete; one line says what was expected and found.
        weights.WeightsNotFound: the backbone's weights are nowhere to be found.
    """
    found = load_foreign(path, soft_clamp)
    files = [weights] if isinstance(weights, str | os.PathLike) else list(weights or [])
    holder, nets = path, found.nets if weights is None else []
    if len(files) == 1 and is_foreign(Path(files[0])):
        holder, nets = Path(files[0]), load_nets(Path(files[0]), found.backbone)
    if nets:
        backbone = _backbone(found.backbone, found.image_size, holder, nets)
    else:
        backbone = create_backbone(found.backbone, found.image_size, None, weights, may_download=False)
    flow = UFlow(backbone.channels, backbone.sizes, found.steps, found.clamp, found.affine)
    for name, tensor in flow.state_dict().items():  # load_state_dict's own message has many lines
        if found.flow[name].shape != tensor.shape:
            shapes = f"{tuple(found.flow[name].shape)}, not {tuple(tensor.shape)}"
            raise ValueError(f"{path} is no U-Flow of {found.backbone}: {name!r} has shape {shapes}")
    flow.load_state_dict(found.flow)
    log.info(
        "%s is a U-Flow of %s: %s at %dx%d (weights: %s), %d scales of %d steps, soft clamp %g * %s",
        path,
        found.origin,
        found.backbone,
        *backbone.image_size,
        "in the file" if nets and holder == path else backbone.weights_source,
        len(flow.sizes),
        flow.steps,
        flow.clamp,
        soft_clamp.replace("clamp", f"{flow.clamp:g}"),
    )
    why = ANOMALIB_UNCALIBRATED if found.origin == "anomalib" else UNCALIBRATED
    log.info("not calibrated: %s; use detector.calibrate(good_images), then detector.save", why)
    detector = Detector(TorchNetwork(backbone, flow, device=device))
    detector.predictor.origin = ModelOrigin(path.name, sha256(path))
    return detector


def load_on_checkpoint(path: Path, checkpoint: Path, device: str = "auto") -> Detector:
    """A model file of ours on the backbone's weights in a file of torch: a checkpoint made elsewhere, or these alone.

    Raises:
        ValueError: the file holds no such weights, or `detector.load`'s reasons.
    """
    tensors, config = load_model(path)
    saved = config["backbone"]
    size = tuple(saved["image_size"])
    check_tensors(path, tensors, config)
    nets = load_nets(checkpoint, saved["name"])
    if nets:
        backbone = _backbone(saved["name"], size, checkpoint, nets, saved["strides"])
    else:  # the backbone's own weights, written by torch
        backbone = create_backbone(saved["name"], size, saved["strides"], checkpoint)
    return detector_from_file(path, tensors, config, backbone, device)


def _backbone(
    name: str,
    image_size: tuple[int, int] | None,
    path: Path,
    nets: Sequence[Mapping[str, Tensor]],
    strides: Sequence[int] | None = None,
) -> Backbone:
    """The backbone whose nets a checkpoint holds."""
    try:
        backbone = create_backbone(name, image_size, strides, nets)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    backbone.weights_source = f"file {path.name}"
    return backbone


def load_nets(path: Path, backbone: str) -> list[dict[str, Tensor]]:
    """What `Foreign.nets` would be; nothing where the file holds no flow or another backbone."""
    content, _ = _torch_load(path)
    tensors = _tensors(path, content)
    return _nets(tensors, backbone) if any(map(FREIA_KEY.fullmatch, tensors)) else []


def _torch_load(path: Path) -> tuple[Mapping[str, Any], list[str]]:
    """The mapping in a torch file, and the names of the classes that inert objects stand for in it.

    torch's own reader for untrusted files refuses every global (class or function) that it does not know. Lightning's
    files are full of them, beside the tensors: each one is named to the reader as an empty class of ours.
    """
    mmap = isinstance(torch_source(path), Path)  # only what is used is read
    stand_ins: dict[str, type] = {}
    allowed = serialization.get_safe_globals()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old formats: nothing a user can act on
            while True:
                serialization.clear_safe_globals()  # what others allowed in this process is not for this file
                serialization.add_safe_globals(list(stand_ins.values()))
                try:
                    content = torch.load(torch_source(path), map_location="cpu", weights_only=True, mmap=mmap)
                    break
                except pickle.UnpicklingError as error:
                    if len(stand_ins) >= MAX_CLASSES:
                        raise ValueError(f"it names more than {MAX_CLASSES} classes") from None
                    if (refused := _REFUSED.search(str(error))) and refused[1] not in stand_ins:
                        stand_ins[refused[1]] = _stand_in(refused[1], _Inert)
                    elif (filled := _FILLED.search(str(error))) and issubclass(stand_ins.get(filled[2], int), _Inert):
                        stand_ins[filled[2]] = _stand_in(
                            filled[2], _InertDict if filled[1] == "SETITEM" else _InertList
                        )
                    else:
                        raise
    except Exception as error:  # each format has its own errors for a cut or foreign file
        if blocked := _BLOCKED.search(str(error)):
            raise ValueError(
                f"{path} was not read: it asks for {blocked[1]}, which could run commands and has no place in a "
                "checkpoint; get the file from where you trust it"
            ) from None
        # Of torch's own paragraphs, the line that says what it met, and not the advice to trust the file.
        lines = [line.strip() for line in str(error).replace("WeightsUnpickler error:", "").splitlines()]
        reason = next((x for x in lines if x and not x.startswith(("Weights only", "(1)", "(2)", "Check"))), "")
        raise ValueError(
            f"cannot read {path}: expected a checkpoint written by torch or Lightning, and this is another kind of "
            f"file, or was cut short ({type(error).__name__}: {reason[:200]})"
        ) from None
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(allowed)
    if not isinstance(content, Mapping):
        kind = getattr(type(content), "stands_for", type(content).__name__)
        raise ValueError(f"{path} holds a {kind}, where a mapping with named tensors is expected: take the .ckpt file")
    return content, list(stand_ins)


class _Inert:
    """An object of a class that only its file knows: takes anything, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _InertDict:
    """The same for a class of dictionaries: torch's reader fills only plain ones."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()


class _InertList:
    """The same for a class of lists."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return []


def _stand_in(name: str, base: type) -> type:
    """A class that torch's reader takes for the global `name`."""
    module, _, short = name.rpartition(".")
    # torch's messages leave out "builtins".
    names = {"__module__": module or "builtins", "__qualname__": short, "stands_for": name}
    return type(short, (base,), names)


def _tensors(path: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ValueError(f"{path} is damaged: {name!r} is no plain tensor")
    # One number can stand for any number of them, and the first sum over them fills the memory.
    if (size := sum(t.numel() * t.element_size() for t in tensors.values())) > max(MOST_BYTES, path.stat().st_size):
        raise ValueError(f"{path} is damaged: its tensors are larger than it, and would take {size / 1e9:.1f} GB")
    if not tensors:
        raise ValueError(
            f"{path} is no U-Flow checkpoint: expected 'state_dict' or named tensors, found {some_names(content)}"
        )
    return tensors


def _volumes(flow: Mapping[str, Tensor]) -> list[int]:
    """Channels of each scale's stage, finest first."""
    scales = 1 + max(int(name.split(".")[1]) for name in flow)
    return [len(flow[f"stages.{level}.0.global_scale"]) for level in range(scales)]


def _recognise(channels: tuple[int, ...], named: object) -> tuple[str, int]:
    """Name and finest stride of the backbone with these channels."""
    for name, (wanted, stride) in _BACKBONES.items():
        if channels == wanted:
            if isinstance(named, str) and named != name:
                raise ValueError(f"its backbone is {named!r}; known: {', '.join(_BACKBONES)}")
            return name, stride
    known = ", ".join(f"{name} {wanted}" for name, (wanted, _) in _BACKBONES.items())
    raise ValueError(f"expected features with the channels of a known backbone ({known}), found {channels}")


def _layer_norms(tensors: Mapping[str, Tensor], channels: tuple[int, ...]) -> dict[str, Tensor]:
    """The trained LayerNorms over [C, H, W] of the features, as the flow's `Affine`s."""
    found = {
        tensor.shape[0]: (tensor, tensors.get(name.removesuffix("weight") + "bias"))
        for name, tensor in tensors.items()
        if tensor.ndim == 3 and name.endswith(".weight")
    }
    norms: dict[str, Tensor] = {}
    for level, c in enumerate(channels):
        weight, bias = found.get(c, (None, None))
        if weight is None or bias is None or weight.shape != bias.shape:
            raise ValueError(
                f"expected 'feature_extractor...weight' and '...bias' of shape ({c}, H, W), the LayerNorm that was "
                "trained with the flow, found none"
            )
        norms |= {f"affines.{level}.weight": weight.detach(), f"affines.{level}.bias": bias.detach()}
    return norms


def _nets(tensors: Mapping[str, Tensor], backbone: str) -> list[dict[str, Tensor]]:
    """The tensors of each net of the backbone under timm's names, or nothing."""
    firsts: list[tuple[str, tuple[int | None, ...]]]
    if backbone == "mcait":
        firsts = [("pos_embed", (1, None, c)) for c in _BACKBONES[backbone][0]]
    else:
        firsts = [("conv1.weight", (64, 3, 7, 7))]
    nets = []
    for first, shape in firsts:
        for name, tensor in tensors.items():
            if name.endswith(first) and all(a in (b, None) for a, b in zip(shape, tensor.shape, strict=False)):
                prefix = name.removesuffix(first)
                nets.append({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
                break
    return nets if len(nets) == len(firsts) else []
