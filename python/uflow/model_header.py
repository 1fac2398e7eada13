"""What the header of our own files says, checked entry by entry, and a digest over all of a file.

Needs neither torch nor safetensors.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from .files import some_names
from .roi import RegionOfInterest
from .schema import parse, read_json

__all__ = [
    "FORMAT_VERSION",
    "BackboneEntry",
    "FlowEntry",
    "PredictorEntry",
    "check_record",
    "is_foreign",
    "read_content",
    "read_header",
    "sign_content",
]

FORMAT_VERSION = 2
LENGTH_BYTES = 8  # a safetensors file begins with the length of its header, little-endian; then comes JSON
MAX_HEADER_BYTES = 100_000_000  # the limit of safetensors
MAX_SIDE = 1 << 15  # pixels of the network's input
MAX_STRIDE = 1 << 10  # pixels a cell


@dataclass(frozen=True)
class BackboneEntry:
    """What a model file says of its backbone.

    Raises:
        ValueError: a size or strides that no backbone has.
    """

    name: str
    image_size: tuple[int, int]
    strides: tuple[int, ...]
    weights_source: str
    weights_sha256: str

    def __post_init__(self) -> None:
        if not all(0 < side <= MAX_SIDE for side in self.image_size):
            raise ValueError(f"image_size lies between 1 and {MAX_SIDE}, got {self.image_size}")
        doubling = [self.strides[0] * 2**k for k in range(len(self.strides))] if self.strides else []
        if not doubling or list(self.strides) != doubling or not 0 < doubling[0] <= doubling[-1] <= MAX_STRIDE:
            raise ValueError(f"strides are each twice the one before, at most {MAX_STRIDE}, got {self.strides[:9]}")


@dataclass(frozen=True)
class FlowEntry:
    """What a model file says of its flow: arguments of `flow.UFlow`.

    Raises:
        ValueError: no step, or a clamp that is not positive.
    """

    steps: int
    affine: bool
    clamp: float

    def __post_init__(self) -> None:
        if self.steps < 1 or self.clamp <= 0:
            raise ValueError(f"steps and clamp must be positive, got {self.steps} and {self.clamp}")


class _Sometimes(TypedDict, total=False):
    roi: RegionOfInterest
    gain: float


class PredictorEntry(_Sometimes):
    """What a file says of its predictor, all but the network; `roi` and `gain` only where they change anything."""

    threshold: dict[str, Any]
    blend: dict[str, Any] | None
    tile: bool
    selected_on_test: bool
    bit_depth: int


class _Record(TypedDict, total=False):
    """What others read of the record of a training; the rest of it is only shown, and compared."""

    images: str
    backbone: str
    weights_sha256: str
    hold_out: str
    held_out: float
    settings: dict[str, Any]
    stage: dict[str, Any]


def check_record(record: Mapping[str, Any]) -> None:
    """Raise ValueError for the record of a training whose entries are not what they should be; it may be empty."""
    own = {name: value for name, value in record.items() if name in _Record.__annotations__}
    entries = parse(_Record, own, "record")
    if not re.fullmatch(r"[0-9]{1,15} [0-9a-f]+", entries.get("images", "0 0")):
        raise ValueError(f"record: images should be how many and their SHA-256, found {entries['images'][:60]!r}")


@dataclass(frozen=True)
class _Model:
    backbone: BackboneEntry
    flow: FlowEntry
    predictor: PredictorEntry
    history: list[dict[str, Any]]
    record: dict[str, Any]

    def __post_init__(self) -> None:
        check_record(self.record)


@dataclass(frozen=True)
class _State:
    record: dict[str, Any]
    epoch: int
    best_epoch: int
    best_nll: float | None
    history: list[dict[str, Any]]

    def __post_init__(self) -> None:
        check_record(self.record)


_KINDS: dict[str, type] = {"model": _Model, "training state": _State}


def is_foreign(path: Path) -> bool:
    """Whether a file begins as those of torch do (zip, or a pickle), which none of ours does.

    >>> is_foreign(Path(__file__))
    False
    """
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"\x80\x02\x8a\x0a")


def read_header(path: Path, kind: str = "model") -> dict[str, Any]:
    """The configuration in one of our files, as `model_file.save_model` wrote it; see `read_content`."""
    return read_content(path, kind)[0]


def read_content(path: Path, kind: str) -> tuple[dict[str, Any], bytes]:
    """The configuration in one of our files, and all its bytes, which are as they were written.

    Raises:
        FileNotFoundError, ValueError: no such file; cut short, changed, of another version or kind, with entries that
            are missing, unknown or out of range, or none of ours.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {kind} file {path}")
    content = path.read_bytes()
    try:
        metadata, entries, body = _split(content)
        end = max((tensor["data_offsets"][1] for tensor in entries.values()), default=0)
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        expected = "expected safetensors" + (", or a checkpoint written by torch" if kind == "model" else "")
        raise ValueError(
            f"{path} is not a uflow {kind} file, or was cut short ({expected}); copy or train it again"
        ) from None
    if len(body) != end:
        raise ValueError(
            f"{path} is not a uflow {kind} file, or was cut short: it has {len(body)} bytes of tensors, not {end}; "
            "copy it again"
        )
    config = _read_config(path, kind, metadata, entries)
    if metadata.get("sha256") != _digest(metadata["uflow"], entries, body):
        raise ValueError(f"{path} was changed, or damaged: its SHA-256 is not the one in its header; copy it again")
    parse(_KINDS[kind], config, str(path))
    return config, content


def sign_content(content: bytes) -> bytes:
    """The content of a file with the SHA-256 of all the rest in its header; the same bytes for the same content."""
    metadata, entries, body = _split(content)
    # Not by safetensors: it writes several entries of the metadata in any order.
    signed = {"uflow": metadata["uflow"], "sha256": _digest(metadata["uflow"], entries, body)}
    header = json.dumps({"__metadata__": signed, **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % LENGTH_BYTES)  # tensors begin at a multiple of 8
    return len(header).to_bytes(LENGTH_BYTES, "little") + header + bytes(body)


def _split(content: bytes) -> tuple[dict[str, Any], dict[str, Any], memoryview]:
    """Metadata, the entries of the tensors, and their bytes, of the content of a safetensors file."""
    length = int.from_bytes(content[:LENGTH_BYTES], "little")
    if len(content) < LENGTH_BYTES or length > min(MAX_HEADER_BYTES, len(content) - LENGTH_BYTES):
        raise ValueError("cut short")
    entries = json.loads(content[LENGTH_BYTES : LENGTH_BYTES + length])
    metadata = entries.pop("__metadata__", {})
    return dict(metadata), entries, memoryview(content)[LENGTH_BYTES + length :]


def _digest(header: str, entries: Mapping[str, Any], body: memoryview) -> str:
    digest = hashlib.sha256(json.dumps([header, entries], sort_keys=True).encode())
    digest.update(body)
    return digest.hexdigest()


def _read_config(path: Path, kind: str, metadata: Mapping[str, Any], entries: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that the header holds; ValueError where it is of another version or kind, or none of ours."""
    if not isinstance(header := metadata.get("uflow"), str):
        raise ValueError(
            f"{path} is a safetensors file but not a uflow {kind} file: its header has no 'uflow' entry, and it holds "
            f"{some_names(entries)}"
        )
    config = read_json(header, f"the header of {path}")
    if not isinstance(config, dict):
        raise ValueError(f"{path} is not a uflow {kind} file: its header holds no entries")
    version, found = config.pop("version", None), config.pop("kind", None)
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version!r}, and this uflow reads version {FORMAT_VERSION}; "
            "use the uflow that wrote it, or train it again"
        )
    if found != kind:
        raise ValueError(f"{path} is a uflow {str(found)[:40]} file, where a {kind} file is expected")
    return config
