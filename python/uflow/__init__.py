"""U-Flow: anomaly maps and threshold-free anomaly masks, learnt from good images only.

    det = uflow.Detector.fit("data/tile/train/good")
    det.save("tile.uflow")
    result = uflow.load("tile.uflow").predict("part.png")

Modules and the detector are imported on first use: `import uflow` is quick, and the segmentation works without torch.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import backbones, calibration, checkpoints, data, flow, metrics, scoring, segmentation, training
    from .detector import Detector, Prediction, load

try:
    __version__ = version("uflow")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

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


def __getattr__(name: str) -> Any:
    if name in ("Detector", "Prediction", "load"):
        return getattr(importlib.import_module("uflow.detector"), name)
    if name in __all__:
        return importlib.import_module(f"uflow.{name}")
    raise AttributeError(f"module 'uflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
