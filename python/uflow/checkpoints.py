"""Our own files, safetensors with JSON in the header and no pickle, and model files made elsewhere."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn, serialization

from .data import atomic_write
from .flow import CouplingStep, UFlow
from .training import TrainingState

__all__ = [
    "Foreign",
    "SoftClamp",
    "convert_freia",
    "is_foreign",
    "load_foreign",
    "load_model",
    "load_nets",
    "load_training_state",
    "save_model",
    "save_training_state",
    "to_freia",
]

FORMAT_VERSION = 1


def save_model(path: Path, tensors: Mapping[str, Tensor], config: dict[str, Any]) -> None:
    """Write a model file, whole or not at all."""
    _save(path, "model", tensors, config)


def load_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration of a model file; ValueError says what is wrong with one that cannot be used."""
    return _load(path, "model")


def save_training_state(path: Path, state: TrainingState, run: dict[str, Any]) -> None:
    """Write what an interrupted training needs to go on; `run` says which training it is."""
    groups = {"weights": state.weights, "best_weights": state.best_weights, "optimizer": state.optimizer}
    tensors = {f"{group}/{name}": tensor for group, named in groups.items() for name, tensor in named.items()}
    numbers = {
        "epoch": state.epoch,
        "best_epoch": state.best_epoch,
        "best_nll": state.best_nll,
        "history": state.history,
    }
    _save(path, "training state", tensors, {"run": run, **numbers})


def load_training_state(path: Path, run: dict[str, Any]) -> TrainingState:
    """Read a state written by `save_training_state`; ValueError where it belongs to another training than `run`."""
    tensors, config = _load(path, "training state")
    if differing := [key for key in run if config["run"].get(key) != json.loads(json.dumps(run[key]))]:
        raise ValueError(
            f"{path} belongs to another training (other {', '.join(differing)}); delete it to start anew, "
            "or repeat the call that made it to go on"
        )
    groups: dict[str, dict[str, Tensor]] = {"weights": {}, "best_weights": {}, "optimizer": {}}
    for key, tensor in tensors.items():
        group, name = key.split("/", 1)
        groups[group][name] = tensor
    numbers: dict[str, Any] = {name: config[name] for name in ("epoch", "best_epoch", "best_nll", "history")}
    weights, best_weights, optimizer = groups.values()
    return TrainingState(**numbers, weights=weights, best_weights=best_weights, optimizer=optimizer)


def _save(path: Path, kind: str, tensors: Mapping[str, Tensor], config: dict[str, Any]) -> None:
    header = {"uflow": json.dumps({"kind": kind, "version": FORMAT_VERSION, **config})}
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    content = safetensors.torch.save(copies, header)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def _load(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {kind} file {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("uflow")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except safetensors.SafetensorError as error:
        expected = "expected safetensors" + (", or a checkpoint written by torch" if kind == "model" else "")
        raise ValueError(
            f"{path} is not a uflow {kind} file, or was cut short ({expected}, found: {error}); copy or train it again"
        ) from None
    if header is None:
        raise ValueError(
            f"{path} is a safetensors file but not a uflow {kind} file: its header has no 'uflow' entry, and it holds "
            f"{_some(tensors)}"
        )
    config: dict[str, Any] = json.loads(header)
    version, found = config.pop("version"), config.pop("kind")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version}, and this uflow reads version {FORMAT_VERSION}; "
            "use the uflow that wrote it, or train it again"
        )
    if found != kind:
        raise ValueError(f"{path} is a uflow {found} file, where a {kind} file is expected")
    return tensors, config


# Made elsewhere -------------------------------------------------------------------------------------------------------

SoftClamp = Literal["tanh(r)", "tanh(r/clamp)"]

# The backbones of U-Flow: the channels of their scales, finest first, and the finest stride.
_BACKBONES = {
    "mcait": ((768, 384), 16),
    "resnet18": ((64, 128, 256), 4),
    "wide_resnet50_2": ((256, 512, 1024), 4),
}
_FREIA_KEY = re.compile(r"(?P<prefix>.*?)module_list\.(?P<node>\d+)\.(?P<name>.+)")
_SUBNET = ("subnet.0.weight", "subnet.0.bias", "subnet.2.weight", "subnet.2.bias")
_REFUSED = re.compile(r"GLOBAL (\S+) was not an allowed global")
_FILLED = re.compile(r"Can only (SETITEM|append).*but got <class '(\S+)'>")
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


def is_foreign(path: Path) -> bool:
    """Whether a file begins as those of torch do (zip, or a pickle), which none of ours does.

    >>> is_foreign(Path(__file__))
    False
    """
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"\x80\x02\x8a\x0a")


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
    if not isinstance(clamp, int | float) or not clamp > 0:
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
    names = [*map(str, content), *tensors, *classes]
    anomalib = any("anomalib" in name or "feature_normalizations" in name for name in names)
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


def load_nets(path: Path, backbone: str) -> list[dict[str, Tensor]]:
    """What `Foreign.nets` would be; nothing where the file holds no flow or another backbone."""
    content, _ = _torch_load(path)
    tensors = _tensors(path, content)
    return _nets(tensors, backbone) if any(map(_FREIA_KEY.fullmatch, tensors)) else []


def _torch_load(path: Path) -> tuple[Mapping[str, Any], list[str]]:
    """The mapping in a torch file, and the names of the classes that inert objects stand for in it.

    torch's own reader for untrusted files refuses every global (class or function) that it does not know. Lightning's
    files are full of them, beside the tensors: each one is named to the reader as an empty class of ours.
    """
    with path.open("rb") as file:
        mmap = file.read(2) == b"PK"  # only what is used is read
    stand_ins: dict[str, type] = {}
    allowed = serialization.get_safe_globals()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old formats: nothing a user can act on
            while True:
                serialization.clear_safe_globals()  # what others allowed in this process is not for this file
                serialization.add_safe_globals(list(stand_ins.values()))
                try:
                    content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
                    break
                except pickle.UnpicklingError as error:
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
    if not tensors:
        raise ValueError(
            f"{path} is no U-Flow checkpoint: expected 'state_dict' or named tensors, found {_some(content)}"
        )
    return tensors


def _some(names: Mapping[str, Any]) -> str:
    """The first names, for messages."""
    return ", ".join([repr(name) for name in names][:3]) + (", ..." if len(names) > 3 else "") if names else "nothing"


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


def convert_freia(
    state_dict: Mapping[str, Any], soft_clamp: SoftClamp = "tanh(r)", clamp: float = 2.0
) -> dict[str, Tensor]:
    """Weights of a U-Flow built with FrEIA (the authors' and anomalib's checkpoints), for `UFlow.load_state_dict`.

    The graph's nodes are numbered coarsest stage first: S coupling steps, split, up-sampling, concatenation, S steps,
    and so on, so that the stages start at nodes 0, S + 3, 2 (S + 3), ...

    Args:
        state_dict: arrays or tensors under the keys `[prefix][flow.]module_list.{node}.{name}`. The permutation
            `w_perm` may be a matrix (C, C[, 1, 1]), out[i] = sum_j w_perm[i, j] in[j], or an index, out = in[w_perm].
            All other keys, such as `feature_extractor.*`, are ignored.
        soft_clamp: which step the flow was trained with; no key of the file tells. "tanh(r)": s = clamp * tanh(r), as
            in FrEIA 0.2 and anomalib; "tanh(r/clamp)": s = clamp * tanh(r / clamp), later versions of FrEIA.
        clamp: the `clamp` of both.

    Returns:
        the state dict of the `UFlow(channels, sizes, steps, clamp)` with as many scales and steps, in the file's dtype.

    Raises:
        ValueError: when there is no such flow, parts of it are missing, or `w_perm` is not a permutation.

    >>> from uflow.flow import UFlow
    >>> convert_freia(UFlow((8,), ((2, 2),)).state_dict())
    Traceback (most recent call last):
    ValueError: expected keys such as 'flow.module_list.0.global_scale', found 'stages.0.0.global_scale', ...
    """
    nodes = _freia_nodes(state_dict)
    steps, scales = _freia_layout(nodes)
    factor = 1 / _clamp_factor(soft_clamp, clamp)
    converted = {}
    for scale in range(scales):  # coarsest first, as FrEIA numbers them
        for step in range(steps):
            number = scale * (steps + 3) + step
            node = nodes[number]
            key = f"stages.{scales - 1 - scale}.{step}"
            converted[f"{key}.global_scale"] = node["global_scale"].reshape(-1, 1, 1)
            converted[f"{key}.global_offset"] = node["global_offset"].reshape(-1, 1, 1)
            converted[f"{key}.permutation"] = _freia_permutation(node["w_perm"], number)
            _check_subnet(node, number, step)
            converted |= {f"{key}.{name}": _scale_log_scales(name, node[name], factor) for name in _SUBNET}
    return converted


def to_freia(
    flow: UFlow,
    prefix: str = "model.flow.",
    permutation: Literal["matrix", "index"] = "matrix",
    soft_clamp: SoftClamp = "tanh(r)",
) -> dict[str, Tensor]:
    """Our flow in the authors' key layout: the opposite of `convert_freia`.

    Args:
        flow: the flow, such as ``detector.flow``.
        prefix: what precedes `module_list`; "" is for a FrEIA graph itself.
        permutation: "matrix" (C, C, 1, 1), FrEIA 0.2's and anomalib's, or "index" (C,), later versions of FrEIA.
        soft_clamp: the step of the flow that will load it, see `convert_freia`.

    Returns:
        the state dict of the FrEIA graph, which loads with ``strict=True``. A flow with `Affine`s has them beside it,
        as the weight and bias of the LayerNorms `feature_extractor.feature_normalizations.{scale}`.

    Raises:
        TypeError: not a `UFlow`.

    >>> flow = UFlow((4, 8), ((4, 4), (2, 2)), steps=1)
    >>> list(to_freia(flow, prefix=""))[-1], to_freia(flow, prefix="")["module_list.2.downsample_kernel"].shape
    ('module_list.4.subnet.2.bias', torch.Size([4, 1, 2, 2]))
    """
    if not isinstance(flow, UFlow):
        raise TypeError(f"flow must be a UFlow, such as detector.flow, got {type(flow).__name__}")
    exported: dict[str, Tensor] = {}
    scales = len(flow.sizes)
    for scale in range(scales):
        level = scales - 1 - scale
        for number, step in enumerate(cast(nn.ModuleList, flow.stages[level]), scale * (flow.steps + 3)):
            assert isinstance(step, CouplingStep)
            p, key = step.permutation.detach(), f"{prefix}module_list.{number}"
            inverse = p.argsort()
            if permutation == "matrix":
                matrix = torch.eye(len(p), dtype=step.global_scale.dtype, device=p.device)
                p, inverse = matrix[p, :, None, None], matrix[inverse, :, None, None]
            exported |= {
                f"{key}.global_scale": step.global_scale.detach()[None].clone(),
                f"{key}.global_offset": step.global_offset.detach()[None].clone(),
                f"{key}.w_perm": p.clone(),
                f"{key}.w_perm_inv": inverse.clone(),
            }
            factor = _clamp_factor(soft_clamp, step.clamp)
            weights = step.state_dict()
            exported |= {f"{key}.{name}": _scale_log_scales(name, weights[name], factor).clone() for name in _SUBNET}
        if level > 0:
            up = flow.volumes[level] // 8 * 4
            key = f"{prefix}module_list.{scale * (flow.steps + 3) + flow.steps + 1}.downsample_kernel"
            exported[key] = torch.eye(4).view(4, 1, 2, 2).repeat(up // 4, 1, 1, 1)
    norms = f"{prefix.removesuffix('flow.')}feature_extractor.feature_normalizations."
    return exported | {norms + name: tensor.detach().clone() for name, tensor in flow.affines.state_dict().items()}


def _clamp_factor(soft_clamp: SoftClamp, clamp: float) -> float:
    """How much larger r is in that flow than in ours: the two steps differ by no more than this."""
    if soft_clamp not in get_args(SoftClamp):
        raise ValueError(f"soft_clamp is one of {', '.join(map(repr, get_args(SoftClamp)))}, got {soft_clamp!r}")
    return 1.0 if soft_clamp == "tanh(r)" else clamp


def _scale_log_scales(name: str, tensor: Tensor, factor: float) -> Tensor:
    """A subnet's tensor, its first half of output channels, r[:C2], times `factor`."""
    if factor == 1 or not name.startswith("subnet.2."):
        return tensor
    scale, shift = tensor.chunk(2)
    return torch.cat([scale * factor, shift])


def _check_subnet(node: Mapping[str, Tensor], number: int, step: int) -> None:
    """ValueError unless a node's subnet is U-Flow's; load_state_dict's own message has many lines."""
    channels, kernel = node["global_scale"].numel(), 1 if step % 2 else 3
    c1, c2 = channels - channels // 2, channels // 2
    shapes = [(c1, c1, kernel, kernel), (c1,), (2 * c2, c1, kernel, kernel), (2 * c2,)]
    for name, shape in zip(_SUBNET, shapes, strict=True):
        if tuple(node[name].shape) != shape:
            raise ValueError(
                f"module_list.{number}.{name} has shape {tuple(node[name].shape)}, not {shape}: subnets have as many "
                "hidden channels as inputs, and kernels 3, 1, 3, 1, ..."
            )


def _freia_nodes(state_dict: Mapping[str, Any]) -> dict[int, dict[str, Tensor]]:
    """The flow's tensors by node number and name."""
    nodes: dict[int, dict[str, Tensor]] = {}
    prefixes = set()
    for key, value in state_dict.items():
        match = _FREIA_KEY.fullmatch(key)
        if match and "feature_extractor." not in key:
            prefixes.add(match["prefix"])
            nodes.setdefault(int(match["node"]), {})[match["name"]] = torch.as_tensor(value, device="cpu").detach()
    if not nodes:
        raise ValueError(f"expected keys such as 'flow.module_list.0.global_scale', found {_some(state_dict)}")
    if len(prefixes) > 1:
        raise ValueError(f"expected one flow, found several, under {sorted(prefixes)}: keep the keys of only one")
    return nodes


def _freia_layout(nodes: Mapping[int, Mapping[str, Tensor]]) -> tuple[int, int]:
    """The numbers of steps in a stage and of scales; ValueError unless every node's tensors are there."""
    found = sorted(node for node, tensors in nodes.items() if "w_perm" in tensors)
    steps = next((n for n in range(len(found)) if found[n] != n), len(found))
    scales, rest = divmod(len(found), steps) if steps else (0, 1)
    if rest or found != [scale * (steps + 3) + step for scale in range(scales) for step in range(steps)]:
        raise ValueError(
            f"expected stages of S coupling steps at the nodes 0, S + 3, 2 (S + 3), ..., found steps at {found}: "
            "parts of the flow are missing"
        )
    wanted = {(node, name) for node in found for name in ("global_scale", "global_offset", *_SUBNET)}
    wanted |= {(scale * (steps + 3) + steps + 1, "downsample_kernel") for scale in range(scales - 1)}
    missing = sorted((node, name) for node, name in wanted if name not in nodes.get(node, {}))
    if missing:
        raise ValueError("missing from the flow: " + ", ".join(f"module_list.{node}.{name}" for node, name in missing))
    return steps, scales


def _freia_permutation(w_perm: Tensor, node: int) -> Tensor:
    """`w_perm` as an index p, out = in[p]."""
    p = w_perm.long() if w_perm.ndim == 1 else w_perm.flatten(1).argmax(dim=1)
    is_permutation = torch.equal(p.sort().values, torch.arange(len(p)))
    if w_perm.ndim > 1:  # exact zeros and ones, and nothing but
        is_permutation = is_permutation and torch.equal(w_perm.flatten(1), torch.eye(len(p), dtype=w_perm.dtype)[p])
    if not is_permutation:
        raise ValueError(
            f"module_list.{node}.w_perm of shape {tuple(w_perm.shape)} is not a permutation: "
            "soft and learned permutations are not supported"
        )
    return p
