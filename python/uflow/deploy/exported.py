"""Exported networks: a folder written by `export`, and ONNX Runtime, OpenVINO or torch to run it.

Needs numpy, Pillow, the compiled core and one of the runtimes; torch only for a folder of the format "torch".
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..extras import EXTRA_OF, pip_install
from ..files import atomic_write, sha256
from ..model_header import MAX_SIDE, PredictorEntry, check_record
from ..prediction import ModelOrigin
from ..predictor import Predictor
from ..processes import check_not_forked
from ..schema import content_sha256, parse, read_json, write_json
from ..scoring import Evidence
from .graphs import check_graph
from .runtimes import OPEN, Run

__all__ = ["FORMATS", "METADATA", "ExportedNetwork", "check_files", "load", "read_metadata", "save_threshold"]

FORMAT_VERSION = 2
METADATA = "model.json"
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # of a file in the folder itself
SHA256 = re.compile(r"[0-9a-f]{64}")

# format -> (file of the network, packages that run it: the first that is installed does)
FORMATS = {
    "onnx": ("network.onnx", ("onnxruntime", "openvino")),
    "openvino": ("network.xml", ("openvino",)),
    "torch": ("network.pt2", ("torch",)),
}


class ExportedNetwork:
    """A network in a folder, see `predictor.Network`; made by `load`. It cannot be trained.

    Attributes:
        folder: where it was read from.
        runtime: "onnxruntime", "openvino" or "torch": what runs the network.
        metadata: the content of the folder's `model.json`.
        threads, device: what `load` was asked for.

    A copy, or one that was pickled, reads the folder again: what a runtime holds cannot be copied.
    """

    def __init__(
        self,
        folder: Path,
        metadata: dict[str, Any],
        runtime: str,
        run: Run,
        threads: int | None = None,
        device: str = "auto",
    ) -> None:
        self.folder, self.metadata, self.runtime = folder, metadata, runtime
        self.threads, self.device = threads, device
        height, width = metadata["image_size"]
        self.image_size = (height, width)
        self.strides = tuple(metadata["strides"])
        self.latent_channels = tuple(metadata["latent_channels"])
        self.run = run

    def __reduce__(self) -> tuple[Callable[..., ExportedNetwork], tuple[Any, ...]]:
        return _load_network, (self.folder.absolute(), self.runtime, self.threads, self.device)

    def evidence(self, images: NDArray[np.uint8]) -> Evidence:
        """Evidence of (B, H, W, 3) images; the network's own anomaly map is left: ours has the image's size.

        Raises:
            RuntimeError: the process was forked after `load`, see `processes.check_not_forked`.
        """
        if self.threads != 1:
            check_not_forked(self.runtime)
        scales = len(self.latent_channels)
        maps = self.run(images)[:-1]
        return Evidence(maps[:scales], maps[scales:])

    def phases(self) -> list[tuple[str, Callable[[Any], Any]]]:
        """One: the runtime computes all at once."""
        return [("network", self.evidence)]


def load(folder: str | Path, runtime: str | None = None, threads: int | None = None, device: str = "auto") -> Predictor:
    """Read a folder written by `export`.

    Args:
        folder: the folder.
        runtime: "onnxruntime" (format "onnx"), "openvino" ("onnx" and "openvino") or "torch" ("torch"); None takes
            what runs the folder's format and is installed, ONNX Runtime before OpenVINO; a folder of the format "torch"
            can run code, and is loaded for "torch" alone.
        threads: of the network; None is the runtime's own choice, one a core. For torch it counts for all of torch.
        device: "auto" (CUDA where the runtime has it, else the CPU), "cpu", "cuda", "cuda:1", and what the runtime has:
            providers of ONNX Runtime ("tensorrt", "dml", ...), devices of OpenVINO ("gpu", "npu", ...).

    Returns:
        A `Predictor` whose network is an `ExportedNetwork`; it predicts, streams and calibrates like a `Detector`.

    Raises:
        FileNotFoundError, ValueError: no export, of another version, a file that is missing or was changed, a runtime
            that does not run this format; a device that is not there, and the message names those that are.
        RuntimeError: the runtime cannot run the network on this device.
        ModuleNotFoundError: the runtime is not installed; the message says how to.
    """
    network = _load_network(Path(folder), runtime, threads, device)
    predictor = Predictor.from_dict(network, network.metadata["predictor"])
    predictor.origin = _origin(network.folder)
    return predictor


def _load_network(folder: Path, runtime: str | None, threads: int | None, device: str) -> ExportedNetwork:
    metadata = read_metadata(folder)
    check_files(folder, metadata)
    file, runtimes = FORMATS[metadata["format"]]
    if runtime is None and metadata["format"] == "torch":
        raise ValueError(
            f"{folder} holds {file}, and loading such a file can run code that is in it: if you trust where it is "
            "from, ask for it by name, runtime='torch' (--runtime torch)"
        )
    if runtime is None:
        runtime = first_installed(runtimes)
    elif runtime not in runtimes:
        raise ValueError(f"{folder} holds {file}, which {' or '.join(runtimes)} can run, not {runtime!r}")
    check_not_forked(runtime)
    if metadata["format"] != "torch":  # whose archives `runtimes` looks at
        check_graph(folder / file)
    run = open_network(folder / file, runtime, len(metadata["outputs"]), threads, device)
    return ExportedNetwork(folder, metadata, runtime, run, threads, device)


def check_files(folder: Path, metadata: dict[str, Any]) -> None:
    """Raise FileNotFoundError or ValueError where a file of an export is missing, was changed, or is not listed."""
    listed: dict[str, str] = metadata["files"]
    for name, wanted in listed.items():
        path = folder / name
        if path.is_symlink():
            raise ValueError(f"{path} is a link, and a file of an export lies in its folder: copy or export it again")
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is incomplete: {name} is missing; copy or export it again")
        if sha256(path) != wanted:
            raise ValueError(f"{path} was changed or cut short: its SHA-256 is not that in {METADATA}")
    there = {path.name for path in folder.iterdir() if not path.name.startswith(".")} - {METADATA}
    if unlisted := sorted(there - listed.keys()):
        raise ValueError(f"{folder} holds {unlisted[0]}, which is not in its {METADATA}: move it elsewhere")


def save_threshold(predictor: Predictor) -> None:
    """Write the threshold of an exported model, after `calibrate`, to its folder: `load` takes it from there.

    Raises:
        TypeError: the predictor is not one that `load` made.
    """
    network = predictor.network
    if not isinstance(network, ExportedNetwork):
        raise TypeError(f"only an exported model has a folder to write to, not a {type(network).__name__}")
    network.metadata["predictor"] = predictor.to_dict()
    write_metadata(network.folder, network.metadata)
    predictor.origin = _origin(network.folder)


def _origin(folder: Path) -> ModelOrigin:
    return ModelOrigin(folder.resolve().name, sha256(folder / METADATA))


def open_network(path: Path, runtime: str, outputs: int, threads: int | None = None, device: str = "cpu") -> Run:
    """What runs a batch (B, H, W, 3) through the network in a file and gives its outputs."""
    try:
        return OPEN[runtime](path, outputs, threads, device)
    except ModuleNotFoundError as error:
        if error.name != runtime:
            raise
        raise ModuleNotFoundError(f"{path} needs {runtime}: {pip_install(EXTRA_OF[runtime])}", name=runtime) from None


def first_installed(runtimes: Sequence[str]) -> str:
    """The first of them that is installed; the very first where none is."""
    return next((name for name in runtimes if importlib.util.find_spec(name)), runtimes[0])


@dataclass(frozen=True)
class _Metadata:
    """The entries of a folder's `model.json`, see docs/guide/inspection-pc.md.

    Raises:
        ValueError: names, sizes or numbers of outputs that no export has.
    """

    uflow: str
    format: str
    opset: int | None
    int8: dict[str, Any] | None
    dynamic_size: bool
    input: Literal["image"]
    outputs: list[str]
    backbone: dict[str, str]
    image_size: tuple[int, int]
    strides: tuple[int, ...]
    latent_channels: tuple[int, ...]
    predictor: PredictorEntry
    record: dict[str, Any]
    files: dict[str, str]

    def __post_init__(self) -> None:
        check_record(self.record)
        if "name" not in self.backbone:
            raise ValueError("backbone has no 'name'")
        for name, digest in self.files.items():
            if not PLAIN_NAME.fullmatch(name) or not SHA256.fullmatch(digest):
                raise ValueError(
                    f"files holds {name[:60]!r}: {digest[:70]!r}, and a plain name and a SHA-256 belong there"
                )
        scales, outputs = len(self.strides), len(self.outputs)
        if not scales == len(self.latent_channels) < outputs <= 2 * scales + 1:
            raise ValueError(
                f"{scales} strides, {len(self.latent_channels)} latent_channels, {outputs} outputs do not fit together"
            )
        if FORMATS[self.format][0] not in self.files:
            raise ValueError(f"files has no {FORMATS[self.format][0]}")
        if min(*self.image_size, *self.strides, *self.latent_channels) < 1 or max(self.image_size) > MAX_SIDE:
            raise ValueError(
                f"sizes lie between 1 and {MAX_SIDE}, got {self.image_size}, {self.strides} and {self.latent_channels}"
            )


def write_metadata(folder: Path, metadata: dict[str, Any]) -> None:
    """Write a folder's `model.json`, whole or not at all, with a digest over all that it says."""
    entries = {name: value for name, value in metadata.items() if name != "sha256"}
    entries["sha256"] = content_sha256(entries)
    with atomic_write(folder / METADATA) as temporary:
        temporary.write_text(write_json(entries, indent=1) + "\n", encoding="utf-8")


def read_metadata(folder: Path) -> dict[str, Any]:
    """A folder's `model.json`; ValueError or FileNotFoundError where it is not that of an export, or was changed."""
    path = folder / METADATA
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not an exported model: it has no {METADATA}; see uflow export")
    try:
        metadata = read_json(path.read_bytes(), str(path))
        kind, version, format = metadata["kind"], metadata["version"], metadata["format"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not that of an exported model, or was cut short") from None
    if kind != "uflow export" or version != FORMAT_VERSION:
        raise ValueError(
            f"{path} is a {kind!r} of version {version!r}, and this uflow reads a 'uflow export' of version "
            f"{FORMAT_VERSION}; export the model again"
        )
    if not isinstance(format, str) or format not in FORMATS:
        raise ValueError(f"{path} names the unknown format {format!r}; known: {', '.join(FORMATS)}")
    if metadata.pop("sha256", None) != content_sha256(metadata):
        raise ValueError(f"{path} was changed, or damaged: its SHA-256 is not the one in it; copy or export it again")
    parse(_Metadata, {k: v for k, v in metadata.items() if k not in ("kind", "version")}, str(path))
    return metadata  # type: ignore[no-any-return]
