"""Our own files, safetensors with JSON in the header and no pickle, and model files made elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .data import atomic_write
from .training import TrainingState

__all__ = ["convert_freia", "load_model", "load_training_state", "save_model", "save_training_state"]

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
        raise ValueError(
            f"{path} is not a uflow {kind} file, or was cut short ({error}); copy or train it again"
        ) from None
    if header is None:
        raise ValueError(f"{path} is a safetensors file but not a uflow {kind} file: its header has no 'uflow' entry")
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

_FREIA_KEY = re.compile(r"(?P<prefix>.*?)module_list\.(?P<node>\d+)\.(?P<name>.+)")
_SUBNET = ("subnet.0.weight", "subnet.0.bias", "subnet.2.weight", "subnet.2.bias")


def convert_freia(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of a U-Flow built with FrEIA (the authors' and anomalib's checkpoints), for `UFlow.load_state_dict`.

    The graph's nodes are numbered coarsest stage first: S coupling steps, split, up-sampling, concatenation, S steps,
    and so on, so that the stages start at nodes 0, S + 3, 2 (S + 3), ...

    The step is that of FrEIA 0.2, s = clamp * tanh(r). Later versions of FrEIA compute clamp * tanh(r / clamp), which
    no key of the file tells: a flow trained with those converts, but gives other latents.

    Args:
        state_dict: arrays or tensors under the keys `[prefix][flow.]module_list.{node}.{name}`. The permutation
            `w_perm` may be a matrix (C, C[, 1, 1]), out[i] = sum_j w_perm[i, j] in[j], or an index, out = in[w_perm].
            All other keys, such as `feature_extractor.*`, are ignored.

    Returns:
        the state dict of the `UFlow(channels, sizes, steps)` with as many scales and steps, in the file's dtype.

    Raises:
        ValueError: when there is no such flow, parts of it are missing, or `w_perm` is not a permutation.

    >>> from uflow.flow import UFlow
    >>> convert_freia(UFlow((8,), ((2, 2),)).state_dict())
    Traceback (most recent call last):
    ValueError: expected keys such as 'flow.module_list.0.global_scale', found 'stages.0.0.global_scale', ...
    """
    nodes = _freia_nodes(state_dict)
    steps, scales = _freia_layout(nodes)
    converted = {}
    for scale in range(scales):  # coarsest first, as FrEIA numbers them
        for step in range(steps):
            number = scale * (steps + 3) + step
            node = nodes[number]
            key = f"stages.{scales - 1 - scale}.{step}"
            converted[f"{key}.global_scale"] = node["global_scale"].reshape(-1, 1, 1)
            converted[f"{key}.global_offset"] = node["global_offset"].reshape(-1, 1, 1)
            converted[f"{key}.permutation"] = _freia_permutation(node["w_perm"], number)
            converted |= {f"{key}.{name}": node[name] for name in _SUBNET}
    return converted


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
        found = ", ".join([repr(key) for key in state_dict][:3]) + ", ..." if state_dict else "nothing"
        raise ValueError(f"expected keys such as 'flow.module_list.0.global_scale', found {found}")
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
