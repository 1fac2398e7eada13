"""U-Flow: anomaly maps and threshold-free anomaly masks, learnt from good images only.

    det = uflow.Detector.fit("data/tile/train/good")
    det.save("tile.uflow")
    result = uflow.load("tile.uflow").predict("part.png")

Modules and the detector are imported on first use: `import uflow` is quick, and the segmentation and exported models
work without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import backbones, calibration, checkpoints, data, flow, metrics, scoring, segmentation, training
    from .detector import Detector, load
    from .predictor import Prediction

__all__ = [
    "Detector",
    "Prediction",
    "__version__",
    "backbones",
    "calibration",
    "checkpoints",
    "data",
    "flow",
    "load",
    "metrics",
    "scoring",
    "segmentation",
    "training",
]

_WHERE = {"Detector": "detector", "Prediction": "predictor", "load": "detector"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name in _WHERE:
        return getattr(importlib.import_module(f"uflow.{_WHERE[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"uflow.{name}")
    raise AttributeError(f"module 'uflow' has no attribute {name!r}")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # tens of milliseconds: not on import

    try:
        return version("uflow")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted(__all__)
