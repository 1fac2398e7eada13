"""How good a map or a mask is against the truth: exact AUROC, AUPRO and intersection over union, in numpy.

The prediction comes first, the truth second. Higher scores mean "more anomalous": pass `-log_nfa`, not `log_nfa`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from uflow.segmentation import connected_components

__all__ = ["aupro", "auroc", "best_iou", "iou", "mean_iou"]

Images = NDArray[Any] | Sequence[NDArray[Any]]  # (N, H, W), or N arrays (H, W) that may differ in size

_CHUNK = 1 << 20  # look-ups at a time: bounds the int64 positions that searchsorted returns


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve: the probability that an anomalous score exceeds a normal one, ties counting one half.

    scores: any shape and real dtype; labels: the same shape, bool or 0/1. Exact: the Mann-Whitney U statistic with
    mid-ranks, counted in integers. One sort of a copy in the scores' own dtype.

    Raises ValueError when the shapes differ, a score is NaN, a label is not 0 or 1, or there is one class only.

    >>> auroc([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1])
    0.875
    """
    values, truth = _as_scores(scores, "scores"), _as_bool(labels, "labels")
    _check_shapes(values.shape, truth.shape, "scores", "labels")
    anomalous, normal = values[truth], values[~truth]
    if not anomalous.size or not normal.size:
        only = "anomalous" if anomalous.size else "normal"
        raise ValueError(f"AUROC needs both classes, but all {truth.size} labels are {only}")
    pairs = anomalous.size * normal.size
    # Look the smaller class up in the larger one: each pair counts twice when won, once when tied.
    if anomalous.size <= normal.size:
        twice_wins = _sum_of_ranks(anomalous, normal)
    else:
        twice_wins = 2 * pairs - _sum_of_ranks(normal, anomalous)
    return twice_wins / (2 * pairs)


def _sum_of_ranks(few: NDArray[Any], many: NDArray[Any]) -> int:
    """Over all scores in `few`: how many of `many` are below it plus how many are not above it. Sorts both in place."""
    few.sort()
    many.sort()
    return sum(int(below.sum() + upto.sum()) for below, upto in _look_up(few, many))


def _look_up(scores: NDArray[Any], reference: NDArray[Any]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """How many of the sorted reference are below, and not above, each score: in chunks, to bound the memory."""
    for start in range(0, scores.size, _CHUNK):
        chunk = scores[start : start + _CHUNK]
        yield np.searchsorted(reference, chunk, side="left"), np.searchsorted(reference, chunk, side="right")


def aupro(anomaly_maps: Images, masks: Images, max_fpr: float = 0.3) -> float:
    """Area under the per-region-overlap curve up to a false-positive rate of max_fpr, divided by max_fpr.

    anomaly_maps, masks: (N, H, W), or N arrays (H, W); masks bool or 0/1. At a threshold, the overlap is the share
    of a ground-truth component (8-connectivity) at or above it, averaged over all components of all images; the
    false-positive rate is the share of all normal pixels at or above it. Exact over all thresholds, linear between
    neighbouring points of the curve and at the limit (Bergmann et al., MVTec AD, IJCV 2021).

    No curve is built: exchanging sum and integral, a defective pixel of a component of n pixels contributes 1/n
    times the part of [0, max_fpr] in which it is detected, which only needs the false-positive rates just before
    and at its own score. Cost: one sort of the normal pixels, one look-up per defective pixel.

    Raises ValueError when shapes differ, a value is NaN, max_fpr is outside (0, 1], or there is no defective or no
    normal pixel.

    >>> truth = np.array([[[1, 1, 0, 0], [0, 0, 0, 0]]])
    >>> maps = np.array([[[0.9, 0.3, 0.2, 0.1], [0.5, 0.1, 0.1, 0.1]]])  # one of 6 normal pixels is above 0.3
    >>> round(aupro(maps, truth), 4)  # half found from the start, all of it from FPR 1/6 on: 1 - 0.5 / 6 / 0.3
    0.7222
    """
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr must be above 0 and at most 1, not {max_fpr}")
    normal_parts, defect_parts, weight_parts = [], [], []
    components = 0
    for scores, truth in _pairs(anomaly_maps, masks):
        normal_parts.append(scores[~truth])
        if truth.any():
            labels, count = connected_components(truth, connectivity=8)
            inside = labels[truth]
            defect_parts.append(scores[truth])
            weight_parts.append(1.0 / np.bincount(inside)[inside])
            components += count
    if not components:
        raise ValueError(f"AUPRO needs a defect, but all {len(normal_parts)} masks are empty")
    normal = np.concatenate(normal_parts)
    normal_parts.clear()
    if not normal.size:
        raise ValueError("AUPRO needs normal pixels, but the masks cover every image entirely")
    normal.sort()
    defects, weights = np.concatenate(defect_parts), np.concatenate(weight_parts)
    order = np.argsort(defects)  # sorted look-ups stay in the cache
    defects, weights = defects[order], weights[order]

    detected = np.empty(defects.size)  # the length of [0, max_fpr] in which each defective pixel is detected
    start = 0
    for below, upto in _look_up(defects, normal):
        before = (normal.size - upto) / normal.size  # false-positive rate just above the pixel's score
        at = (normal.size - below) / normal.size  # ... and at it: they differ when normal pixels tie with it
        step = at - before
        rise = np.clip(max_fpr - before, 0, step)  # detection rises linearly from 0 to 1 over the step
        ramp = np.divide(rise * rise / 2, step, out=np.zeros_like(rise), where=step > 0)
        detected[start : start + at.size] = ramp + np.clip(max_fpr - at, 0, None)
        start += at.size
    return float(weights @ detected) / components / max_fpr


def iou(mask: ArrayLike, truth: ArrayLike) -> float:
    """Intersection over union of two masks of one image, bool or 0/1, the same shape; 1 when both are empty.

    >>> iou([[1, 1, 0]], [[0, 1, 1]])
    0.3333333333333333
    """
    found, true = _as_bool(mask, "mask"), _as_bool(truth, "truth")
    _check_shapes(found.shape, true.shape, "mask", "truth")
    union = int(np.count_nonzero(found | true))
    return int(np.count_nonzero(found & true)) / union if union else 1.0


def mean_iou(masks: Images, truths: Images) -> float:
    """Mean over images of the intersection over union (the paper's mIoU); an image where both are empty counts 1.

    masks, truths: (N, H, W), or N arrays (H, W), bool or 0/1.

    >>> mean_iou(np.array([[[1, 1, 0]], [[0, 0, 0]]]), np.array([[[0, 1, 0]], [[0, 0, 0]]]))
    0.75
    """
    _check_count(masks, truths, "masks")
    return float(np.mean([iou(mask, truth) for mask, truth in zip(masks, truths, strict=True)]))


def best_iou(anomaly_maps: Images, masks: Images) -> tuple[float, float]:
    """The best mean IoU that one threshold for all images can reach, and that threshold (mask = map >= threshold).

    anomaly_maps, masks: (N, H, W), or N arrays (H, W); masks bool or 0/1. Exact: between two scores of defective
    pixels a higher threshold only removes false pixels, so those scores are all the candidates, with "above
    everything" (given as the next float after the largest score). The truth is used to choose: this is a bound to
    stand beside an automatic threshold, not a result. Memory: the defective scores, and one image at a time.

    Raises ValueError when shapes differ or a value is NaN.

    >>> best_iou(np.array([[[0.9, 0.6, 0.2]]]), np.array([[[1, 1, 0]]]))
    (1.0, 0.6)
    """
    defects = [scores[truth] for scores, truth in _pairs(anomaly_maps, masks)]
    candidates = np.unique(np.concatenate(defects))
    # gain[j]: what lowering the threshold to candidate j adds to the sum of IoUs; the last one is "above everything".
    gain = np.zeros(candidates.size + 1)
    for scores, truth in _pairs(anomaly_maps, masks):
        ranked, ranked_defects = np.sort(scores, axis=None), np.sort(scores[truth])
        # This image's mask changes only at the largest candidates that its scores reach.
        steps = np.unique(np.searchsorted(candidates, ranked, side="right")) - 1
        steps = steps[steps >= 0]
        thresholds = candidates[steps]
        found = ranked.size - np.searchsorted(ranked, thresholds, side="left")
        true = ranked_defects.size - np.searchsorted(ranked_defects, thresholds, side="left")
        above_everything = 0.0 if ranked_defects.size else 1.0
        values = np.append(true / (found + ranked_defects.size - true), above_everything)
        gain[steps] -= np.diff(values)
        gain[-1] += above_everything

    best = candidates.size - int(np.argmax(np.cumsum(gain[::-1])))  # of equals the highest threshold
    if best < candidates.size:
        threshold = float(candidates[best])
    else:
        largest = max(scores.max() for scores, _ in _pairs(anomaly_maps, masks))
        threshold = float(np.nextafter(largest, np.inf, dtype=largest.dtype))
    ious = [iou(scores >= threshold, truth) for scores, truth in _pairs(anomaly_maps, masks)]
    return float(np.mean(ious)), threshold


# ---- checks


def _pairs(anomaly_maps: Images, masks: Images) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]:
    """The maps and masks image by image, checked: (H, W) floats without NaN, and bool of the same shape."""
    _check_count(anomaly_maps, masks, "anomaly maps")
    for index, (one_map, one_mask) in enumerate(zip(anomaly_maps, masks, strict=True)):
        scores = _as_scores(one_map, f"anomaly map {index}")
        truth = _as_bool(one_mask, f"mask {index}")
        if scores.ndim != 2 or scores.size == 0:
            raise ValueError(f"anomaly map {index} must be (H, W) and not empty, not {scores.shape}: pass (N, H, W)")
        _check_shapes(scores.shape, truth.shape, f"anomaly map {index}", f"mask {index}")
        yield scores, truth


def _as_scores(values: ArrayLike, name: str) -> NDArray[Any]:
    scores = np.asarray(values)
    if scores.dtype.kind not in "fiub":
        raise ValueError(f"{name} must hold real numbers, not {scores.dtype}")
    if scores.dtype.kind != "f":
        scores = scores.astype(np.float64)
    if scores.size and np.isnan(scores.max()):  # a maximum passes NaN on, without a bool array of that size
        raise ValueError(f"{name} holds {int(np.isnan(scores).sum())} NaN among {scores.size} values")
    return scores


def _as_bool(values: ArrayLike, name: str) -> NDArray[np.bool_]:
    array = np.asarray(values)
    if array.dtype == np.bool_:
        return array
    truth: NDArray[np.bool_] = array == 1
    if array.dtype.kind not in "fiu" or not np.logical_or(truth, array == 0).all():
        raise ValueError(f"{name} must be bool or hold only 0 and 1 (dtype seen: {array.dtype})")
    return truth


def _check_shapes(one: tuple[int, ...], other: tuple[int, ...], one_name: str, other_name: str) -> None:
    if one != other:
        raise ValueError(f"{one_name} and {other_name} must have the same shape, not {one} and {other}")


def _check_count(predictions: Images, truths: Images, name: str) -> None:
    if len(predictions) != len(truths) or len(predictions) == 0:
        counts = f"{len(predictions)} and {len(truths)}"
        raise ValueError(f"{name} and truths must be of the same number of images, at least one, not {counts}")
