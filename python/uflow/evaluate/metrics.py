"""How good a map or a mask is against the truth: exact AUROC, AUPRO and intersection over union, in numpy.

The prediction comes first, the truth second. Higher scores mean "more anomalous": pass `-log_nfa`, not `log_nfa`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..segmentation import connected_components

__all__ = ["BestIoU", "PixelMetrics", "aupro", "auroc", "best_iou", "iou", "mean_iou"]

Images = NDArray[Any] | Sequence[NDArray[Any]]  # (N, H, W), or N arrays (H, W) that may differ in size

_CHUNK = 1 << 20  # look-ups at a time: bounds the int64 positions that searchsorted returns
_BINS = 1 << 18  # different scores that a stream of images keeps apart: 2 MB for each number kept of them


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
    _check_max_fpr(max_fpr)
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


# ---- streams of images, in bounded memory


class PixelMetrics:
    """Pixel AUROC, AUPRO and their curves over images that come one by one and are not kept.

    What is kept is how many normal and defective pixels have each score. Scores are float32 (others are rounded to it),
    and exact, until more than `bins` different ones are seen; then neighbouring float32 values share a bin, of 2, 4,
    8... values, and count as ties. Points of the curves at the bins' edges stay exact: the curves are straight in
    between, so AUROC is off by at most half the probability that a normal and a defective pixel share a bin of
    different scores, AUPRO by that (defective pixels weighted by 1 / area of their component) over max_fpr. Both are
    below 1e-6 for the maps of the tests; 1e-3 was made by half of the scores within 0.0001 of each other, far from
    0, and the others spread over [0, 1]. The result does not depend on the order of the images.

    Attributes:
        normal: pixels seen so far that are normal.
        defective: pixels seen so far that are defective.
        components: connected components of the truth seen so far (8-connectivity).

    >>> pixels = PixelMetrics()
    >>> for anomaly_map, truth in ([[0.1, 0.4]], [[0, 0]]), ([[0.4, 0.8]], [[1, 1]]):
    ...     pixels.update(anomaly_map, truth)
    >>> pixels.auroc()
    0.875
    """

    def __init__(self, bins: int = _BINS) -> None:
        self.normal = self.defective = self.components = 0
        self._normal = _Histogram(1, bins)
        self._defects = _Histogram(2, bins)  # pixels, and pixels over the area of their component
        self._largest = -np.inf

    def update(self, anomaly_map: ArrayLike, truth: ArrayLike) -> None:
        """Add an image: (H, W) scores, and the defective pixels as bool or 0/1.

        Raises ValueError when the shapes differ or a score is NaN.
        """
        scores, defective = _pair(anomaly_map, truth)
        keys = _to_keys(scores)
        self._largest = max(self._largest, float(scores.max()))
        if defective.any():
            labels, count = connected_components(defective, connectivity=8)
            inside = labels[defective]
            weights = 1.0 / np.bincount(inside)[inside]
            self._defects.add(keys[defective], np.stack([np.ones_like(weights), weights]))
            self.components += count
            keys = keys[~defective]
            self.defective += inside.size
        self._normal.count(keys.ravel())
        self.normal += keys.size

    def auroc(self) -> float:
        """Area under the ROC curve of all pixels, as `metrics.auroc`.

        Raises ValueError when there is one class only.
        """
        self._check()
        fpr, tpr, _ = self._curves()
        return float(_area(fpr, tpr))

    def aupro(self, max_fpr: float = 0.3) -> float:
        """Area under the per-region-overlap curve up to max_fpr, as `metrics.aupro`.

        Raises ValueError when there is one class only, or max_fpr is outside (0, 1].
        """
        _check_max_fpr(max_fpr)
        self._check()
        fpr, _, pro = self._curves()
        inside = int(np.searchsorted(fpr, max_fpr, side="right"))  # the curve's points up to the limit
        at_limit = np.interp(max_fpr, fpr[inside - 1 : inside + 1], pro[inside - 1 : inside + 1])
        return float(_area(np.append(fpr[:inside], max_fpr), np.append(pro[:inside], at_limit))) / max_fpr

    def roc(self, points: int = 500) -> list[tuple[float, float]]:
        """Points (false-positive rate, true-positive rate) of the ROC curve, evenly spread along it, ends included."""
        self._check()
        fpr, tpr, _ = self._curves()
        return _thin(fpr, tpr, points)

    def pro(self, points: int = 500) -> list[tuple[float, float]]:
        """Points (false-positive rate, per-region overlap) of the PRO curve, evenly spread along it, ends included."""
        self._check()
        fpr, _, pro = self._curves()
        return _thin(fpr, pro, points)

    def threshold(self, false_pixels: int) -> float:
        """The lowest threshold that at most `false_pixels` normal pixels reach (mask = map >= threshold)."""
        keys, sums = self._normal.read()
        reached = np.cumsum(sums[0, ::-1])[::-1]
        allowed = keys[reached <= false_pixels]
        return _edge(int(allowed[0]), self._normal.shift) if allowed.size else _above(self._largest)

    def _curves(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """False-positive rate, true-positive rate and per-region overlap at all edges of bins, highest first."""
        normal_keys, normal = self._normal.read(self._defects.shift)
        defect_keys, defects = self._defects.read(self._normal.shift)
        keys = np.union1d(normal_keys, defect_keys)
        sums = np.zeros((3, keys.size + 1))  # the last column is "above everything"
        sums[0, np.searchsorted(keys, normal_keys)] = normal[0]
        sums[1:, np.searchsorted(keys, defect_keys)] = defects
        false, true, overlap = np.cumsum(sums[:, ::-1], axis=1)
        overlap = np.minimum(overlap, self.components)  # weights are rounded
        return false / self.normal, true / self.defective, overlap / self.components

    def _check(self) -> None:
        if not self.normal or not self.defective:
            only = "normal" if self.normal else "defective"
            raise ValueError(
                f"curves need normal and defective pixels, but all {self.normal + self.defective} are {only}"
            )


class BestIoU:
    """The best mean IoU that one threshold can reach, as `metrics.best_iou`, over images that are not kept.

    What is kept is the sum over images of their IoU at each score, on the grid of `PixelMetrics`. The IoU returned is
    that at the threshold returned. Where scores share bins, the best threshold may lie within a bin: then the result
    is too low by at most the largest sum over a bin of 1 / area of the component of its defective pixels, over the
    number of images.

    >>> best = BestIoU()
    >>> best.update([[0.9, 0.6, 0.2]], [[1, 1, 0]])
    >>> iou, threshold = best.best()
    >>> iou, round(threshold, 6)
    (1.0, 0.6)
    """

    def __init__(self, bins: int = _BINS) -> None:
        self.images = 0
        self._gain = _Histogram(1, bins)  # what lowering the threshold to a score adds to the sum of IoUs
        self._above_everything = 0.0  # the sum of IoUs of empty masks
        self._largest = -np.inf

    def update(self, anomaly_map: ArrayLike, truth: ArrayLike) -> None:
        """Add an image: (H, W) scores, and the defective pixels as bool or 0/1.

        Raises ValueError when the shapes differ or a score is NaN.
        """
        scores, defective = _pair(anomaly_map, truth)
        self.images += 1
        self._largest = max(self._largest, float(scores.max()))
        if not defective.any():  # 1 above everything, 0 as soon as a pixel is found
            self._above_everything += 1
            self._gain.add(_to_keys(scores.max(keepdims=True)).ravel(), np.full((1, 1), -1.0))
            return
        keys = _to_keys(scores) >> self._gain.shift
        levels, (counts,) = _group(keys.ravel())
        defect_levels, (defect_counts,) = _group(keys[defective])
        hits = np.zeros_like(counts)
        hits[np.searchsorted(levels, defect_levels)] = defect_counts
        found, true = np.cumsum(counts[::-1])[::-1], np.cumsum(hits[::-1])[::-1]
        values = true / (found + true[0] - true)
        self._gain.add(levels << self._gain.shift, -np.diff(values, append=0.0)[None])

    def best(self) -> tuple[float, float]:
        """The best mean IoU and the threshold that reaches it (mask = map >= threshold), of equals the highest one.

        Raises ValueError when there was no image.
        """
        if not self.images:
            raise ValueError("the best IoU needs at least one image")
        keys, gain = self._gain.read()
        totals = np.cumsum(np.append(self._above_everything, gain[0, ::-1]))
        at = int(np.argmax(totals))
        threshold = _edge(int(keys[-at]), self._gain.shift) if at else _above(self._largest)
        return float(totals[at]) / self.images, threshold


class _Histogram:
    """Sums of `columns` values by float32 score, given as the ordered integers of `_to_keys`, in bounded memory.

    The grid starts with a bin for each float32 value and loses its last bit, all over, whenever more than `bins` bins
    are in use: so it is fine where all scores are close together, and depends on the scores, not on their order.
    """

    def __init__(self, columns: int, bins: int) -> None:
        self.bins, self.shift = bins, 0
        self._keys = np.empty(0, np.int32)  # ascending, shifted
        self._sums = np.empty((columns, 0))
        self._waiting: list[tuple[NDArray[np.int32], NDArray[np.float64]]] = []
        self._n_waiting = 0

    def count(self, keys: NDArray[np.int32]) -> None:
        """Add 1 for each key."""
        if keys.size:
            self._add(*_group(keys >> self.shift))

    def add(self, keys: NDArray[np.int32], values: NDArray[np.float64]) -> None:
        """Add values (columns, n) at n keys."""
        self._add(keys >> self.shift, values)

    def _add(self, keys: NDArray[np.int32], values: NDArray[np.float64]) -> None:
        self._waiting.append((keys, values))
        self._n_waiting += keys.size
        if self._n_waiting > self.bins:  # seldom, because it touches all bins
            self._flush()

    def read(self, shift: int = 0) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """The keys in use, ascending, with at least `shift` bits less than at first, and their sums (columns, n)."""
        self._flush()
        while self.shift < shift:
            self._coarsen()
        return self._keys, self._sums

    def _flush(self) -> None:
        if self._waiting:
            keys, values = zip((self._keys, self._sums), *self._waiting, strict=True)
            self._waiting, self._n_waiting = [], 0
            self._keys, self._sums = _group(np.concatenate(keys), np.concatenate(values, axis=1))
        while self._keys.size > self.bins:
            self._coarsen()

    def _coarsen(self) -> None:
        self.shift += 1
        self._keys, self._sums = _group_sorted(self._keys >> 1, self._sums)


def _group(
    keys: NDArray[np.int32], values: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """The distinct ones of n keys, ascending, and the sums (columns, distinct) of their values (columns, n) or of 1."""
    low = int(keys.min())
    if int(keys.max()) - low < 4 * keys.size:  # close together: counting is several times quicker than sorting
        places = keys - np.int32(low)
        sums = np.stack([np.bincount(places, column) for column in ([None] if values is None else values)])
        used = np.flatnonzero(sums.any(axis=0))
        return used.astype(np.int32) + np.int32(low), sums[:, used].astype(np.float64)
    if values is None:
        distinct, counts = np.unique(keys, return_counts=True)
        return distinct, counts[None].astype(np.float64)
    order = np.argsort(keys, kind="stable")
    return _group_sorted(keys[order], values[:, order])


def _group_sorted(
    keys: NDArray[np.int32], values: NDArray[np.float64]
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    starts = np.flatnonzero(np.diff(keys, prepend=keys[:1] - 1))
    return keys[starts], np.add.reduceat(values, starts, axis=1)


def _to_keys(scores: NDArray[Any]) -> NDArray[np.int32]:
    """float32 scores as integers in the same order: the bits, those after the sign inverted where it is negative."""
    with np.errstate(over="ignore"):  # beyond float32: infinite
        bits = (scores.astype(np.float32) + np.float32(0)).view(np.int32)  # + 0: the two zeros are one
    return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))


_LOWEST_KEY = int(_to_keys(np.full(1, -np.inf))[0])


def _edge(key: int, shift: int) -> float:
    """The lowest float32 score of a bin."""
    lowest = max(key << shift, _LOWEST_KEY)  # below are the NaNs
    return float(np.int32(lowest if lowest >= 0 else lowest ^ 0x7FFFFFFF).view(np.float32))


def _above(largest: float) -> float:
    return float(np.nextafter(np.float32(largest), np.float32(np.inf)))


def _area(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    return float(np.diff(x) @ (y[1:] + y[:-1])) / 2


def _thin(x: NDArray[np.float64], y: NDArray[np.float64], points: int) -> list[tuple[float, float]]:
    """About `points` points of a rising curve, as far apart as each other along x + y."""
    along = x + y
    kept = np.unique(np.searchsorted(along, np.linspace(along[0], along[-1], points)))
    return list(zip(x[kept].tolist(), y[kept].tolist(), strict=True))


# ---- checks


def _pairs(anomaly_maps: Images, masks: Images) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]:
    """The maps and masks image by image, checked: (H, W) floats without NaN, and bool of the same shape."""
    _check_count(anomaly_maps, masks, "anomaly maps")
    for index, (one_map, one_mask) in enumerate(zip(anomaly_maps, masks, strict=True)):
        yield _pair(one_map, one_mask, f" {index}", ": pass (N, H, W)")


def _pair(
    anomaly_map: ArrayLike, mask: ArrayLike, which: str = "", hint: str = ""
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    scores, truth = _as_scores(anomaly_map, f"anomaly map{which}"), _as_bool(mask, f"mask{which}")
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"anomaly map{which} must be (H, W) and not empty, not {scores.shape}{hint}")
    _check_shapes(scores.shape, truth.shape, f"anomaly map{which}", f"mask{which}")
    return scores, truth


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


def _check_max_fpr(max_fpr: float) -> None:
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr must be above 0 and at most 1, not {max_fpr}")


def _check_shapes(one: tuple[int, ...], other: tuple[int, ...], one_name: str, other_name: str) -> None:
    if one != other:
        raise ValueError(f"{one_name} and {other_name} must have the same shape, not {one} and {other}")


def _check_count(predictions: Images, truths: Images, name: str) -> None:
    if len(predictions) != len(truths) or len(predictions) == 0:
        counts = f"{len(predictions)} and {len(truths)}"
        raise ValueError(f"{name} and truths must be of the same number of images, at least one, not {counts}")
