"""U-Flow: anomaly maps and threshold-free anomaly masks, learnt from good images only.

    det = uflow.Detector.fit("data/tile/train/good")
    det.save("tile.uflow")
    result = uflow.load("tile.uflow").predict("part.png")

Modules and the detector are imported on first use: `import uflow` is quick, and the segmentation and exported models
work without torch.
"""

from __future__ import annotations

import importlib
import os
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from . import backbones, flow, images, scoring, segmentation, training
    from .detector import Detector
    from .evaluate import datasets, metrics
    from .interop.freia import SoftClamp
    from .map_threshold import Threshold
    from .monitor import Monitor
    from .prediction import Prediction
    from .predictor import Predictor

__all__ = [
    "Detector",
    "Monitor",
    "Prediction",
    "Threshold",
    "__version__",
    "backbones",
    "datasets",
    "flow",
    "images",
    "load",
    "metrics",
    "scoring",
    "segmentation",
    "training",
]

_WHERE = {
    "Detector": "detector",
    "Monitor": "monitor",
    "Prediction": "prediction",
    "Threshold": "map_threshold",
}
_MODULES = {"datasets": "evaluate.datasets", "metrics": "evaluate.metrics"}


def load(
    path: str | Path,
    device: str = "auto",
    weights: str | Path | Sequence[str | Path] | None = None,
    runtime: str | None = None,
    soft_clamp: SoftClamp | None = None,
    threads: int | None = None,
) -> Detector | Predictor:
    """Read a model file written by `Detector.save`, a checkpoint of the authors or of anomalib, or an exported folder.

    Args:
        path: the file, or the folder that `uflow.export` wrote.
        device: of a file: "auto" (CUDA, then MPS, then CPU), or a torch device name; of a folder: see
            `deploy.exported.load`.
        weights: of a file: file with the backbone's weights, where they cannot be found otherwise.
        runtime: of a folder: "onnxruntime", "openvino" or "torch"; None takes what the folder is for.
        soft_clamp: of a checkpoint made elsewhere: the step it was trained with, see `convert_freia`.
        threads: of a folder: of its network; None is the runtime's own choice, one a core.

    Returns:
        A `Detector`, or for a folder a `Predictor`; both predict, stream and calibrate.

    Raises:
        FileNotFoundError, ValueError: no such file; cut short, changed, of another version, or no model at all; or the
            backbone's weights are not those the model was trained with.
    """
    if os.path.isdir(path):  # noqa: PTH112 (pathlib takes a third of the time to import this package)
        exported: Predictor = _import("deploy.exported").load(path, runtime, threads, device)
        return exported
    if runtime is not None:
        raise ValueError(f"a runtime is for an exported folder, and {os.fspath(path)!r} is none: see uflow export")
    if threads is not None:
        raise ValueError(f"threads are for an exported folder, and {os.fspath(path)!r} is none: torch.set_num_threads")
    return _load_file(path, device, weights, soft_clamp)


def _load_file(
    path: str | Path, device: str, weights: str | Path | Sequence[str | Path] | None, soft_clamp: SoftClamp | None
) -> Detector:
    """A model file of ours, perhaps on weights that a checkpoint made elsewhere holds; or such a checkpoint."""
    from pathlib import Path  # not when the package is imported: it takes a third of that time

    if not Path(path).is_file():  # said before torch is asked for: a mistyped name needs none
        raise FileNotFoundError(f"there is no model file {os.fspath(path)}")
    header = _import("model_header")
    try:
        checkpoint = _import("interop.checkpoint")
    except ModuleNotFoundError:  # what is no model at all needs no torch either
        if not header.is_foreign(Path(path)):
            header.read_header(Path(path))
        raise
    given = [weights] if isinstance(weights, str | os.PathLike) else list(weights or [])
    if header.is_foreign(Path(path)):
        read = partial(checkpoint.load_checkpoint, Path(path), device, weights, soft_clamp or "tanh(r)")
    elif soft_clamp is not None:
        raise ValueError(
            f"soft_clamp is for checkpoints made elsewhere, and {path} is a uflow model file: leave it out"
        )
    elif len(given) == 1 and header.is_foreign(Path(given[0])):
        read = partial(checkpoint.load_on_checkpoint, Path(path), Path(given[0]), device)
    else:
        read = partial(_import("detector").load, path, device, weights)
    detector: Detector = _import("processes").run_apart(read)
    return detector


def _import(module: str) -> Any:
    """A module of this package; where one of an extra is missing, the error says which extra."""
    try:
        return importlib.import_module(f"uflow.{module}")
    except ModuleNotFoundError as error:
        from .extras import describe_missing

        raise ModuleNotFoundError(describe_missing(error), name=error.name) from error


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name in _WHERE:
        return getattr(_import(_WHERE[name]), name)
    if name in __all__:
        return _import(_MODULES.get(name, name))
    raise AttributeError(f"module 'uflow' has no attribute {name!r}")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # tens of milliseconds: not on import

    try:
        return version("uflow-ad")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted(__all__)
