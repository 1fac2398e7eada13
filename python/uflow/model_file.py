"""Our own files, a model and the state of a training: safetensors with JSON in the header, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from .files import atomic_write
from .model_header import FORMAT_VERSION, check_header
from .recipe import differences
from .training import TrainingState

__all__ = ["load_model", "load_training_state", "save_model", "save_training_state"]

NO_THRESHOLD = {"alpha": None, "look_alpha": None, "tail": None}


def save_model(path: Path, tensors: Mapping[str, Tensor], config: dict[str, Any]) -> None:
    """Write a model file, whole or not at all."""
    _save(path, "model", tensors, config)


def load_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration of a model file; ValueError says what is wrong with one that cannot be used."""
    return _load(path, "model")


def save_training_state(path: Path, state: TrainingState, record: dict[str, Any]) -> None:
    """Write what an interrupted training needs to go on; `record` says which training it is."""
    groups = {"weights": state.weights, "best_weights": state.best_weights, "optimizer": state.optimizer}
    tensors = {f"{group}/{name}": tensor for group, named in groups.items() for name, tensor in named.items()}
    numbers = {
        "epoch": state.epoch,
        "best_epoch": state.best_epoch,
        "best_nll": state.best_nll,
        "history": state.history,
    }
    _save(path, "training state", tensors, {"record": record, **numbers})


def load_training_state(path: Path, record: dict[str, Any]) -> TrainingState:
    """Read a state written by `save_training_state`; ValueError where it belongs to another training than `record`."""
    tensors, config = _load(path, "training state")
    # The flow does not depend on the threshold, which is learnt after it.
    if differing := differences({**config["record"], **NO_THRESHOLD}, {**record, **NO_THRESHOLD}):
        raise ValueError(
            f"{path} belongs to another training ({differing}); delete it to start anew, "
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
    return tensors, check_header(path, kind, header, tensors)
