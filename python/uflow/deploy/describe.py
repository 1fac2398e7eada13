"""What a model is, without loading it: of a model file or an exported folder. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..conformal import supported_alpha
from ..files import sha256
from ..model_header import read_header
from ..published_weights import describe_licence
from ..roi import RegionOfInterest
from ..schema import parse
from ..threshold import CalibratedThreshold, threshold_from_dict
from .exported import METADATA, check_files, read_metadata

__all__ = ["describe_model"]


def describe_model(path: Path) -> dict[str, Any]:
    """What a model says of itself, ready for JSON; None where it does not say.

    Args:
        path: a file that `Detector.save` wrote, or a folder that `export` wrote.

    Returns:
        `backbone`, `weights_source`, `weights_licence`, `image_size` (height, width), `strides`, `tile`; `roi`: the
        `size` of the images that its region of interest was drawn on, and the `share` of them that is inside, None for
        all; `gain`, that images are divided by; `images`: how many it learnt from; `hold_out`, `held_out`: which of
        them were kept out, and the share asked for; `alpha`, `look_alpha` and `calibration` (how many images, the least
        alpha that they support, and the name and SHA-256 of flagged images that were added as good), None for the
        paper's test; `selected_on_test`; `bytes` and `sha256`: of the file, or of the folder's `model.json`, which
        holds those of all other files.

    Raises:
        FileNotFoundError, ValueError: no such file, no model of ours, cut short or changed.
    """
    if path.is_dir():
        return _describe_folder(path)
    config = read_header(path)
    backbone = config["backbone"]
    about = {"kind": "model file", "format": None, "uflow": None, "int8": False}
    about |= _describe(backbone, backbone["image_size"], backbone["strides"], config["predictor"], config["record"])
    return {"path": str(path), **about, "bytes": path.stat().st_size, "sha256": sha256(path)}


def _describe_folder(folder: Path) -> dict[str, Any]:
    """Of an exported folder whose files are as they were written."""
    metadata = read_metadata(folder)
    check_files(folder, metadata)
    about = {"kind": "exported folder", "format": metadata["format"], "uflow": metadata["uflow"]}
    about["int8"] = metadata["int8"] is not None
    record = metadata["record"]
    size, strides = metadata["image_size"], metadata["strides"]
    about |= _describe(metadata["backbone"], size, strides, metadata["predictor"], record)
    size_bytes = sum((folder / name).stat().st_size for name in (METADATA, *metadata["files"]))
    return {"path": str(folder), **about, "bytes": size_bytes, "sha256": sha256(folder / METADATA)}


def _describe_roi(predictor: Mapping[str, Any]) -> dict[str, Any] | None:
    if "roi" not in predictor:
        return None
    roi = parse(RegionOfInterest, predictor["roi"], "the region of interest is damaged: it")
    return {"size": list(roi.size), "share": float(roi.pixels(roi.size).mean())}


def _describe(
    backbone: Mapping[str, Any],
    image_size: list[int],
    strides: list[int],
    predictor: Mapping[str, Any],
    record: Mapping[str, Any],
) -> dict[str, Any]:
    """What files and folders have in common."""
    threshold, source = threshold_from_dict(predictor["threshold"]), backbone.get("weights_source")
    calibration = None
    if isinstance(threshold, CalibratedThreshold):
        count = len(threshold.minima)
        added = [{"name": image.name, "sha256": image.sha256} for image in threshold.added]
        calibration = {"images": count, "supported_alpha": supported_alpha(count), "added": added}
    return {
        "backbone": backbone["name"],
        "weights_source": source,
        "weights_licence": describe_licence(backbone["name"], source),
        "image_size": image_size,
        "strides": strides,
        "tile": predictor["tile"],
        "roi": _describe_roi(predictor),
        "gain": predictor.get("gain", 1),
        "images": int(record["images"].split()[0]) if "images" in record else None,
        "hold_out": record.get("hold_out"),
        "held_out": record.get("held_out"),
        "alpha": threshold.alpha,
        "look_alpha": threshold.look_alpha,
        "calibration": calibration,
        "selected_on_test": predictor["selected_on_test"],
    }
