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
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from . import backbones, flow, images, scoring, segmentation, training
    from .detector import Detector
    from .evaluate import datasets, metrics
    from .predictor import Prediction, Predictor

__all__ = [
    "Detector",
    "Prediction",
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

_WHERE = {"Detector": "detector", "Prediction": "predictor"}
_MODULES = {"datasets": "evaluate.datasets", "metrics": "evaluate.metrics"}


def load(
    path: str | Path,
    device: str = "auto",
    weights: str | Path | Sequence[str | Path] | None = None,
    runtime: str | None = None,
    soft_clamp: Literal["tanh(r)", "tanh(r/clamp)"] | None = None,
) -> Predictor:
    """Read a model file written by `Detector.save`, a checkpoint of the authors or of anomalib, or an exported folder.

    Args:
        path: the file, or the folder that `uflow.export` wrote.
        device: of a file: "auto" (CUDA, then MPS, then CPU), or a torch device name.
        weights: of a file: file with the backbone's weights, where they cannot be found otherwise.
        runtime: of a folder: "onnxruntime", "openvino" or "torch"; None takes what the folder is for.
        soft_clamp: of a checkpoint made elsewhere: the step it was trained with, see `convert_freia`.

    Returns:
        A `Detector`, or a `deploy.exported.Exported`; both predict, stream, calibrate and evaluate.

    Raises:
        FileNotFoundError, ValueError: no such file; cut short, changed, of another version, or no model at all; or the
            backbone's weights are not those the model was trained with.
    """
    if os.path.isdir(path):  # noqa: PTH112 (pathlib takes a third of the time to import this package)
        exported: Predictor = importlib.import_module("uflow.deploy.exported").load(path, runtime)
        return exported
    if runtime is not None:
        raise ValueError(f"a runtime is for an exported folder, and {os.fspath(path)!r} is none: see uflow export")
    detector: Detector = importlib.import_module("uflow.detector").load(path, device, weights, soft_clamp)
    return detector


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name in _WHERE:
        return getattr(importlib.import_module(f"uflow.{_WHERE[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"uflow.{_MODULES.get(name, name)}")
    raise AttributeError(f"module 'uflow' has no attribute {name!r}")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # tens of milliseconds: not on import

    try:
        return version("uflow")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted(__all__)
