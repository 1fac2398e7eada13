"""What a torch.export archive would do is looked at before torch loads it.

`torch.export.load` unpickles what the archive asks it to, evaluates texts as Python, and calls functions by name. Only
what an export of ours needs is let through. That is a fence, not a wall: torch's own pages say never to load such a
file of somebody who is not trusted, and so `exported.load` does it only for a caller who asks for torch by name.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["check_archive"]

_RECORDS = re.compile(
    r"data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|models/model\.json|data/sample_inputs/model\.pt|archive_format|archive_version|byteorder"
    r"|\.data/(version|serialization_id)"
)
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_FUNCTIONS = re.compile(r"torch\.ops\.aten\.\w+\.\w+|_operator\.\w+|math\.\w+")
_FORBIDDEN = re.compile(r"torch\.ops\.aten\.(from_file|_print|save)\b.*|_operator\.(attrgetter|methodcaller|call)")
# Sizes as sympy writes them, such as Mul(Integer(64), Symbol('s40', positive=True, integer=True)).
_SIZE = re.compile(r"([A-Z]\w*\(|'[su]\d+'|(positive|integer|nonnegative|evaluate)=(True|False)|-?\d+|[,() ])*")
# Conditions on sizes, such as L['args'][0][0].size()[1] >= 2.
_CONDITION = re.compile(
    r"(L\['args'\]|L\['image'\]|\[\d+\]|\.size\(\)|\d+|[-+*/%()<>=! ]|\b(and|or|not|Max|Min|Mod)\b)*"
)


def check_archive(path: Path) -> None:
    """Raise ValueError, one line, for an archive that holds a pickle, code, or anything that ours do not."""
    import torch

    try:
        reader = torch._C.PyTorchFileReader(str(path))  # the same as torch.export.load's: it cannot see another archive
        records = reader.get_all_records()
        if unknown := [name for name in records if not _RECORDS.fullmatch(name)]:
            raise ValueError(f"it holds {unknown[0]!r}")
        if len(set(records)) < len(records):
            raise ValueError("it holds a name twice")
        for name in _CONFIGS:
            _check_pickles(json.loads(reader.get_record(name)))
        _check_program(json.loads(reader.get_record("models/model.json")))
        if "data/sample_inputs/model.pt" in records:  # torch.export falls back to unpickling where this fails
            _check_sample(torch, reader.get_record("data/sample_inputs/model.pt"))
    except Exception as error:  # whatever it is, such a file is not loaded
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{path} was not loaded: it is no archive as uflow writes them, and may run code ({reason[:200]})"
        ) from None


def _check_sample(torch: Any, content: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is refused anyway
        try:
            torch.load(io.BytesIO(content), weights_only=True)
        except pickle.UnpicklingError:
            raise ValueError("its sample inputs ask to unpickle") from None  # torch's own advice is to trust it


def _check_pickles(config: Any) -> None:
    for name, payload in config["config"].items():
        if payload["use_pickle"] is not False:
            raise ValueError(f"it asks to unpickle {name!r}")
        if not re.fullmatch(r"(weight|tensor)_\d+", payload["path_name"]):
            raise ValueError(f"it asks for {payload['path_name']!r}")


def _check_program(program: Any) -> None:
    for key, value in _entries(program):
        if key == "expr_str" and not _SIZE.fullmatch(value):
            raise ValueError(f"it asks to evaluate {value!r}")
        if key == "guards_code" and not all(_CONDITION.fullmatch(code) for code in value):
            raise ValueError(f"it asks to evaluate {value!r}")
        if key == "target" and isinstance(value, str) and "." in value and not value.startswith(("p_", "b_", "c_")):
            is_buffer = re.fullmatch(r"(backbone|flow|memory)(\.\w+)+|lifted_\w+", value)
            if not is_buffer and (not _FUNCTIONS.fullmatch(value) or _FORBIDDEN.fullmatch(value)):
                raise ValueError(f"it asks to call {value!r}")
        if key in ("as_operator", "as_custom_obj", "as_graph"):
            raise ValueError(f"it holds an entry {key!r}")


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """All entries of all objects in a JSON."""
    waiting = [content]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield from each.items()
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each
