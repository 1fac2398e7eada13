"""Our own files, a model and the state of a training: safetensors with JSON in the header, no pickle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .files import atomic_write, one_line
from .model_header import FORMAT_VERSION, read_content, sign_content
from .recipe import differences
from .schema import parse, write_json
from .training import Epoch, TrainingState

__all__ = ["load_model", "load_training_state", "parse_history", "save_model", "save_training_state"]

NO_THRESHOLD = {"alpha": None, "look_alpha": None, "tail": None}


def save_model(path: Path, tensors: Mapping[str, Tensor], config: dict[str, Any]) -> None:
    """Write a model file, whole or not at all."""
    _save(path, "model", tensors, {**config, "history": _without_nan(config["history"])})


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
        "best_nll": state.best_nll if math.isfinite(state.best_nll) else None,
        "history": _without_nan(state.history),
    }
    _save(path, "training state", tensors, {"record": record, **numbers})


def load_training_state(path: Path, record: dict[str, Any]) -> TrainingState:
    """Read a state written by `save_training_state`; ValueError where it belongs to another training than `record`."""
    tensors, config = _load(path, "training state")
    # The flow does not depend on the threshold, which is learnt after it. And its stage may be left open.
    left_out = NO_THRESHOLD | ({} if "stage" in record else {"stage": None})
    if differing := differences(config["record"] | left_out, record | left_out):
        raise ValueError(
            f"{path} belongs to another training ({differing}); delete it to start anew, "
            "or repeat the call that made it to go on"
        )
    groups: dict[str, dict[str, Tensor]] = {"weights": {}, "best_weights": {}, "optimizer": {}}
    for key, tensor in tensors.items():
        group, _, name = key.partition("/")
        if group not in groups or not name:
            raise ValueError(f"{path} is damaged: it holds an unknown tensor {key!r}")
        groups[group][name] = tensor
    weights, best_weights, optimizer = groups.values()
    best_nll, history = config["best_nll"], parse_history(config["history"], str(path))
    return TrainingState(
        epoch=config["epoch"],
        best_epoch=config["best_epoch"],
        best_nll=math.nan if best_nll is None else best_nll,
        weights=weights,
        best_weights=best_weights,
        optimizer=optimizer,
        history=history,
    )


def parse_history(history: Sequence[Mapping[str, Any]], where: str) -> list[Epoch]:
    """What each epoch gave, as a file says: null is read as NaN; of held-out images nothing is said where none are."""
    no_held_out = {"held_out_nll": None}
    with_nan = [
        {**no_held_out, **{name: 0.0 if value is None and name != "epoch" else value for name, value in epoch.items()}}
        for epoch in history
    ]
    epochs = parse(list[Epoch], with_nan, f"{where}: history")
    for epoch, read in zip(epochs, history, strict=True):
        epoch.update(cast(Epoch, {name: math.nan for name, value in read.items() if value is None}))
    return epochs


def _save(path: Path, kind: str, tensors: Mapping[str, Tensor], config: dict[str, Any]) -> None:
    header = {"uflow": write_json({"kind": kind, "version": FORMAT_VERSION, **config})}
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    content = sign_content(safetensors.torch.save(copies, header))
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def _load(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    config, content = read_content(path, kind)
    try:
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:  # such as a dtype of another version
        raise ValueError(f"{path} is damaged: {one_line(error)}") from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{path} is damaged: {name!r} holds NaN or infinite values")
    return tensors, config


def _without_nan(history: Sequence[Epoch]) -> list[dict[str, Any]]:
    """Epochs ready for JSON, which has no NaN and no infinity: null stands for both, and what is None is left out."""
    return [
        {
            name: number if math.isfinite(number) else None
            for name, number in cast("dict[str, float | None]", epoch).items()
            if number is not None
        }
        for epoch in history
    ]
