"""What the header of our own files says, read without their tensors. Needs neither torch nor safetensors."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .files import some_names

__all__ = ["FORMAT_VERSION", "check_header", "read_header"]

FORMAT_VERSION = 1
LENGTH_BYTES = 8  # a safetensors file begins with the length of its header, little-endian; then comes JSON
MAX_HEADER_BYTES = 100_000_000  # the limit of safetensors


def read_header(path: Path, kind: str = "model") -> dict[str, Any]:
    """The configuration in one of our files, as `model_file.save_model` wrote it.

    Raises:
        FileNotFoundError, ValueError: no such file; cut short, of another version or kind, or none of ours.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {kind} file {path}")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        content = file.read(length) if length <= MAX_HEADER_BYTES else b""
        tensor_bytes = path.stat().st_size - file.tell()
    try:
        entries = json.loads(content)
        metadata = entries.pop("__metadata__", {})
        end = max((tensor["data_offsets"][1] for tensor in entries.values()), default=0)
    except (ValueError, TypeError, AttributeError, LookupError):
        raise ValueError(f"{path} is not a uflow {kind} file, or was cut short; copy or train it again") from None
    if tensor_bytes != end:
        raise ValueError(f"{path} was cut short: it has {tensor_bytes} bytes of tensors, not {end}; copy it again")
    return check_header(path, kind, metadata.get("uflow"), entries)


def check_header(path: Path, kind: str, header: str | None, names: Collection[str]) -> dict[str, Any]:
    """The configuration that the header holds; ValueError where it is of another version or kind, or none of ours."""
    if header is None:
        raise ValueError(
            f"{path} is a safetensors file but not a uflow {kind} file: its header has no 'uflow' entry, and it holds "
            f"{some_names(names)}"
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
    return config
