"""Figures of a method on a test set: what it says of each image against the truth. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..images import image_size, resize_mask
from . import metrics
from .datasets import Sample

__all__ = ["PROTOCOLS", "Evaluation", "Judged", "evaluate"]

PROTOCOLS = ("paper", "native")


@dataclass(frozen=True)
class Judged:
    """What a method says of one test image.

    Attributes:
        anomaly_map: (H, W) float32 at the protocol's size, any real range.
        score: how anomalous the image is.
        log_nfa: (H, W) float32, log10 of the Number of False Alarms, below 0 means detected; None for a method that
            has no threshold of its own.
        flagged: whether a region is detected at the image's own size; None for a method without a threshold.
    """

    anomaly_map: np.ndarray
    score: float
    log_nfa: np.ndarray | None = None
    flagged: bool | None = None


@dataclass(frozen=True)
class Evaluation:
    """Figures of a method on a test set; see `metrics` for each one's definition.

    A figure that cannot be computed is None: no defective pixel, images of one kind only, no automatic mask.

    Attributes:
        miou: of the automatic mask, ``log_nfa < 0``.
        miou_best: at the one threshold that maximises it on this very test set: of log_nfa where there is one
            (`best_log_nfa`), else of the anomaly map.
        flagged: per kind of image ("good" and each defect), how many images there are and the share that a region is
            detected in, at the image's own size; empty for a method without a threshold.
        miou_fair: mIoU of ``anomaly_map >= fair_threshold``, the lowest threshold that leaves at most one false pixel
            an image on the normal training images: the paper's choice for methods that have none.
        protocol: "paper" or "native", see `evaluate`.
        images: per test image, in their order: path, defect, score, log_nfa (the lowest), flagged, iou (of the
            automatic mask).
        roc, pro: points (false-positive rate, true-positive rate or per-region overlap) of the pixels' curves.
    """

    pixel_auroc: float | None
    aupro: float | None
    image_auroc: float | None
    miou: float | None
    miou_best: float | None
    best_log_nfa: float | None
    flagged: dict[str, dict[str, float]]
    miou_fair: float | None = None
    protocol: str = "paper"
    fair_threshold: float | None = None
    images: list[dict[str, Any]] = field(default_factory=list)
    roc: list[tuple[float, float]] = field(default_factory=list)
    pro: list[tuple[float, float]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        curves = {"roc": [list(point) for point in self.roc], "pro": [list(point) for point in self.pro]}
        return {**asdict(self), **curves}


def evaluate(
    samples: Sequence[Sample],
    judged: Iterable[Judged],
    protocol: str = "paper",
    size: int = 256,
    normal_maps: Iterable[np.ndarray] | None = None,
) -> Evaluation:
    """Compare what a method says of the images of a test set with the truth.

    One pass, one image in memory at a time (see `metrics.PixelMetrics` for what that costs in precision). An image
    whose defective pixels are not known counts for the image's AUROC and the flags only.

    Args:
        samples: the test images.
        judged: what the method says of each of them, in the same order.
        protocol: "paper": maps of `size` x `size`, the truth resized to it bilinearly, then above one half; AUPRO to a
            false-positive rate of 0.3. "native": maps and truth at each image's own size.
        size: side of the maps for "paper".
        normal_maps: anomaly maps of the normal training images at the protocol's size, for the fair threshold; read
            before `judged`.

    Raises:
        ValueError: another protocol, a map of another size, NaN, or not as many judged as samples.
        What `Sample.truth` raises.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, not {protocol!r}")
    fixed = (size, size) if protocol == "paper" else None
    fair_threshold = None if normal_maps is None else _fair_threshold(normal_maps, fixed)
    pixels, best = metrics.PixelMetrics(), metrics.BestIoU()
    ious: list[float] = []
    fair_ious: list[float] = []
    images: list[dict[str, Any]] = []
    for sample, one in zip_longest(samples, judged):
        if sample is None or one is None:
            raise ValueError(f"{len(samples)} samples and {'more' if sample is None else len(images)} judged")
        own = image_size(sample.path)
        wanted = fixed or own
        _check(sample, one, protocol, wanted)
        if images and (one.log_nfa is None) != (images[0]["log_nfa"] is None):
            raise ValueError(f"there is log_nfa of some images, not of all: {sample.path} differs from those before")
        truth = sample.truth(own)
        iou = None
        if truth is not None:
            if fixed:
                truth = resize_mask(truth, fixed)
            pixels.update(one.anomaly_map, truth)
            if one.log_nfa is None:
                best.update(one.anomaly_map, truth)
            else:
                best.update(-one.log_nfa, truth)
                iou = metrics.iou(one.log_nfa < 0, truth)
                ious.append(iou)
            if fair_threshold is not None:
                fair_ious.append(metrics.iou(one.anomaly_map >= fair_threshold, truth))
        images.append(
            {
                "path": str(sample.path),
                "defect": sample.defect,
                "score": float(one.score),
                "log_nfa": None if one.log_nfa is None else float(one.log_nfa.min()),
                "flagged": one.flagged,
                "iou": iou,
            }
        )
    both = bool(pixels.normal and pixels.defective)
    miou_best, best_threshold = best.best() if best.images else (None, None)
    labels = np.array([sample.is_anomalous for sample in samples])
    return Evaluation(
        pixel_auroc=pixels.auroc() if both else None,
        aupro=pixels.aupro() if both else None,
        image_auroc=metrics.auroc([i["score"] for i in images], labels) if len(set(labels.tolist())) == 2 else None,
        miou=float(np.mean(ious)) if ious else None,
        miou_best=miou_best,
        best_log_nfa=-best_threshold if ious and best_threshold is not None else None,
        flagged=_flagged(images),
        miou_fair=float(np.mean(fair_ious)) if fair_ious else None,
        protocol=protocol,
        fair_threshold=fair_threshold,
        images=images,
        roc=pixels.roc() if both else [],
        pro=pixels.pro() if both else [],
    )


def _check(sample: Sample, one: Judged, protocol: str, wanted: tuple[int, int]) -> None:
    """Here, where the image's name is known."""
    for name, values in (("anomaly map", one.anomaly_map), ("log_nfa", one.log_nfa)):
        if values is not None and values.shape != wanted:
            raise ValueError(f"the {name} of {sample.path} is {values.shape}: protocol {protocol!r} wants {wanted}")
        if values is not None and np.isnan(values.max()):
            raise ValueError(f"the {name} of {sample.path} holds NaN")
    if np.isnan(one.score):
        raise ValueError(f"the score of {sample.path} is NaN")


def _fair_threshold(normal_maps: Iterable[NDArray[Any]], shape: tuple[int, int] | None) -> float | None:
    """The lowest threshold that leaves a false pixel an image on average; shape: what all maps must have, if any."""
    pixels, count = metrics.PixelMetrics(), 0
    for normal_map in normal_maps:
        if shape and normal_map.shape != shape:
            raise ValueError(f"normal map {count} is {normal_map.shape}: protocol 'paper' wants {shape}")
        pixels.update(normal_map, np.zeros(normal_map.shape, bool))
        count += 1
    return pixels.threshold(count) if count else None


def _flagged(images: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Per kind of image, good ones first: how many, and the share flagged."""
    kinds: dict[str, list[bool]] = {}
    for image in images:
        if image["flagged"] is not None:
            kinds.setdefault(image["defect"], []).append(image["flagged"])
    ordered = sorted(kinds.items(), key=lambda item: (item[0] != "good", item[0]))
    return {kind: {"images": len(flags), "share": float(np.mean(flags))} for kind, flags in ordered}
