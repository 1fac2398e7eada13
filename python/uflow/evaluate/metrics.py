"""How good a map or a mask is against the truth: AUROC, AUPRO, intersection over union, F1, in numpy.

The prediction comes first, the truth second. Higher scores mean "more anomalous": pass `-log_nfa`, not `log_nfa`.
`PixelMetrics`, `BestIoU` and `MaskMetrics` take images one by one and keep none of them; the functions below them feed
them what is in memory, and are exact for float32 scores.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..segmentation import connected_components
from .histogram import BINS, ScoreHistogram, group, lowest_score, lowest_scores, next_above, to_keys

__all__ = ["BestIoU", "MaskMetrics", "PixelMetrics", "aupro", "auroc", "best_iou", "iou", "mean_iou"]

Images = NDArray[Any] | Sequence[NDArray[Any]]  # (N, H, W), or N arrays (H, W) that may differ in size

ALL_SCORES = sys.maxsize  # bins, where nothing has to be bounded: then the result is exact


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

    def __init__(self, bins: int = BINS) -> None:
        self.normal = self.defective = self.components = 0
        self._normal = ScoreHistogram(1, bins)
        self._defects = ScoreHistogram(2, bins)  # pixels, and pixels over the area of their component
        self._largest = -np.inf

    def update(self, anomaly_map: ArrayLike, truth: ArrayLike, inside: NDArray[np.bool_] | None = None) -> None:
        """Add an image: (H, W) scores, and the defective pixels as bool or 0/1.

        Args:
            anomaly_map, truth: of all pixels.
            inside: which of them count; None is all. Of a defect the part that is inside counts.

        Raises:
            ValueError: the shapes differ or a score is NaN.
        """
        scores, defective = _pair(anomaly_map, truth)
        if inside is not None:
            defective = defective & inside
        keys, normal = to_keys(scores), inside
        self._largest = max(self._largest, float(scores.max()))
        if defective.any():
            labels, count = connected_components(defective, connectivity=8)
            owners = labels[defective]
            weights = 1.0 / np.bincount(owners)[owners]
            self._defects.add(keys[defective], np.stack([np.ones_like(weights), weights]))
            self.components += count
            normal = ~defective if inside is None else inside & ~defective
            self.defective += owners.size
        keys = keys if normal is None else keys[normal]
        self._normal.count(keys.ravel())
        self.normal += keys.size

    def auroc(self) -> float:
        """Area under the ROC curve of all pixels, as `metrics.auroc`.

        Raises:
            ValueError: there is one class only.
        """
        self._check()
        fpr, tpr, _ = self._curves()
        return float(_area(fpr, tpr))

    def aupro(self, max_fpr: float = 0.3) -> float:
        """Area under the per-region-overlap curve up to max_fpr, as `metrics.aupro`.

        Raises:
            ValueError: there is one class only, or max_fpr is outside (0, 1].
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
        return lowest_score(int(allowed[0]), self._normal.shift) if allowed.size else next_above(self._largest)

    def corner_threshold(self, false_positive_rate: float) -> float:
        """The threshold of a false-positive rate, between the corner points of the ROC curve of the normal pixels.

        A point on a straight line between its neighbours is left out, as by scikit-learn's ``drop_intermediate``: where
        all scores differ, that is every point but the ends. The threshold is interpolated linearly between what is
        left, so it depends on which scores are equal: give `bins` that keep all of them apart.

        Args:
            false_positive_rate: share of the normal pixels.

        Raises:
            ValueError: there was no normal pixel.
        """
        keys, (counts,) = self._normal.read()
        if not keys.size:
            raise ValueError("a threshold needs at least one normal pixel")
        scores = lowest_scores(keys[::-1], self._normal.shift)
        counts = counts[::-1]
        corner = np.append(True, counts[1:] != np.append(counts[2:], np.nan)) if len(counts) > 1 else np.array([True])
        rates = np.cumsum(counts)[corner] / self.normal
        above = next_above(self._largest)
        return float(np.interp(false_positive_rate, np.append(0.0, rates), np.append(above, scores[corner])))

    def _curves(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """False-positive rate, true-positive rate and per-region overlap at all edges of bins, highest first."""
        for histogram in (self._normal, self._defects):
            histogram.read()  # what is waiting may need a coarser grid
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

    def __init__(self, bins: int = BINS) -> None:
        self.images = 0
        self._gain = ScoreHistogram(1, bins)  # what lowering the threshold to a score adds to the sum of IoUs
        self._above_everything = 0.0  # the sum of IoUs of empty masks
        self._largest = -np.inf

    def update(self, anomaly_map: ArrayLike, truth: ArrayLike) -> None:
        """Add an image: (H, W) scores, and the defective pixels as bool or 0/1.

        Raises:
            ValueError: the shapes differ or a score is NaN.
        """
        scores, defective = _pair(anomaly_map, truth)
        self.images += 1
        self._largest = max(self._largest, float(scores.max()))
        if not defective.any():  # 1 above everything, 0 as soon as a pixel is found
            self._above_everything += 1
            self._gain.add(to_keys(scores.max(keepdims=True)).ravel(), np.full((1, 1), -1.0))
            return
        keys = to_keys(scores) >> self._gain.shift
        levels, (counts,) = group(keys.ravel())
        defect_levels, (defect_counts,) = group(keys[defective])
        hits = np.zeros_like(counts)
        hits[np.searchsorted(levels, defect_levels)] = defect_counts
        found, true = np.cumsum(counts[::-1])[::-1], np.cumsum(hits[::-1])[::-1]
        values = true / (found + true[0] - true)
        self._gain.add(levels << self._gain.shift, -np.diff(values, append=0.0)[None])

    def best(self, thresholds: Sequence[float] | None = None) -> tuple[float, float]:
        """The best mean IoU and the threshold that reaches it (mask = map >= threshold), of equals the highest one.

        Args:
            thresholds: those that are tried; None tries all.

        Raises:
            ValueError: there was no image, or there are no thresholds.
        """
        if not self.images:
            raise ValueError("the best IoU needs at least one image")
        keys, gain = self._gain.read()
        totals = np.cumsum(np.append(self._above_everything, gain[0, ::-1]))
        if thresholds is not None:
            tried = np.sort(np.asarray(thresholds, np.float64))[::-1]
            reached = len(keys) - np.searchsorted(keys, to_keys(tried) >> self._gain.shift)
            best = int(np.argmax(totals[reached]))
            return float(totals[reached[best]]) / self.images, float(tried[best])
        at = int(np.argmax(totals))
        threshold = lowest_score(int(keys[-at]), self._gain.shift) if at else next_above(self._largest)
        return float(totals[at]) / self.images, threshold


class MaskMetrics:
    """Intersection over union and F1 of masks that come one by one and are not kept.

    Attributes:
        ious: of each image so far; 1 where neither the mask nor the truth holds a pixel.
        defective_ious: of the images whose truth has defective pixels: an empty mask is 0 there, however many good
            images there are.

    >>> masks = MaskMetrics()
    >>> for mask, truth in ([[0, 0, 0]], [[0, 0, 0]]), ([[1, 1, 0]], [[0, 1, 1]]):
    ...     iou = masks.update(mask, truth)
    >>> round(masks.miou(), 4), round(masks.iou_defective(), 4), masks.pixel_f1()
    (0.6667, 0.3333, 0.5)
    """

    def __init__(self) -> None:
        self.ious: list[float] = []
        self.defective_ious: list[float] = []
        self._hits = self._found = self._defective = 0

    def update(self, mask: ArrayLike, truth: ArrayLike) -> float:
        """Add an image, the mask found and the defective pixels, both as bool or 0/1; gives its own IoU.

        Raises:
            ValueError: the shapes differ, or a value is neither 0 nor 1.
        """
        found, true = _as_bool(mask, "mask"), _as_bool(truth, "truth")
        _check_shapes(found.shape, true.shape, "mask", "truth")
        hits, n_found, n_true = (int(np.count_nonzero(pixels)) for pixels in (found & true, found, true))
        union = n_found + n_true - hits
        self.ious.append(hits / union if union else 1.0)
        if n_true:
            self.defective_ious.append(self.ious[-1])
        self._hits, self._found, self._defective = self._hits + hits, self._found + n_found, self._defective + n_true
        return self.ious[-1]

    def miou(self) -> float | None:
        """Mean IoU of all images (the paper's mIoU); None where there was none."""
        return float(np.mean(self.ious)) if self.ious else None

    def iou_defective(self) -> float | None:
        """Mean IoU of the images with defective pixels; None where there was none."""
        return float(np.mean(self.defective_ious)) if self.defective_ious else None

    def pixel_f1(self) -> float | None:
        """F1 of all pixels of all images together, 2 hits / (found + defective); None without a defective pixel."""
        return 2 * self._hits / (self._found + self._defective) if self._defective else None


# ---- of what is in memory


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve: the probability that an anomalous score exceeds a normal one, ties counting one half.

    Args:
        scores: any shape and real dtype; what float32 rounds to the same number counts as a tie.
        labels: the same shape, bool or 0/1.

    Raises:
        ValueError: the shapes differ, a score is NaN, a label is not 0 or 1, or there is one class only.

    >>> auroc([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1])
    0.875
    """
    values, truth = _as_scores(scores, "scores"), _as_bool(labels, "labels")
    _check_shapes(values.shape, truth.shape, "scores", "labels")
    pixels = PixelMetrics(ALL_SCORES)
    if values.size:
        pixels.update(values.reshape(1, -1), truth.reshape(1, -1))
    return pixels.auroc()


def aupro(anomaly_maps: Images, masks: Images, max_fpr: float = 0.3) -> float:
    """Area under the per-region-overlap curve up to a false-positive rate of max_fpr, divided by max_fpr.

    At a threshold, the overlap is the share of a ground-truth component (8-connectivity) at or above it, averaged over
    all components of all images; the false-positive rate is the share of all normal pixels at or above it. Over all
    thresholds, linear between neighbouring points of the curve and at the limit (Bergmann et al., MVTec AD, IJCV 2021).

    Args:
        anomaly_maps, masks: (N, H, W), or N arrays (H, W); masks bool or 0/1.
        max_fpr: above 0 and at most 1.

    Raises:
        ValueError: shapes differ, a value is NaN, max_fpr is out of its range, or there is no defective or no normal
            pixel.

    >>> truth = np.array([[[1, 1, 0, 0], [0, 0, 0, 0]]])
    >>> maps = np.array([[[0.9, 0.3, 0.2, 0.1], [0.5, 0.1, 0.1, 0.1]]])  # one of 6 normal pixels is above 0.3
    >>> round(aupro(maps, truth), 4)  # half found from the start, all of it from FPR 1/6 on: 1 - 0.5 / 6 / 0.3
    0.7222
    """
    pixels = PixelMetrics(ALL_SCORES)
    for scores, truth in _pairs(anomaly_maps, masks):
        pixels.update(scores, truth)
    return pixels.aupro(max_fpr)


def iou(mask: ArrayLike, truth: ArrayLike) -> float:
    """Intersection over union of two masks of one image, bool or 0/1, the same shape; 1 when both are empty.

    >>> iou([[1, 1, 0]], [[0, 1, 1]])
    0.3333333333333333
    """
    return MaskMetrics().update(mask, truth)


def mean_iou(masks: Images, truths: Images) -> float:
    """Mean over images of the intersection over union (the paper's mIoU); an image where both are empty counts 1.

    Args:
        masks, truths: (N, H, W), or N arrays (H, W), bool or 0/1.

    >>> mean_iou(np.array([[[1, 1, 0]], [[0, 0, 0]]]), np.array([[[0, 1, 0]], [[0, 0, 0]]]))
    0.75
    """
    _check_count(masks, truths, "masks")
    return float(np.mean([iou(mask, truth) for mask, truth in zip(masks, truths, strict=True)]))


def best_iou(anomaly_maps: Images, masks: Images) -> tuple[float, float]:
    """The best mean IoU that one threshold for all images can reach, and that threshold (mask = map >= threshold).

    The truth is used to choose: this is a bound to stand beside an automatic threshold, not a result.

    Args:
        anomaly_maps, masks: (N, H, W), or N arrays (H, W); maps are taken as float32, masks bool or 0/1.

    Raises:
        ValueError: shapes differ or a value is NaN.

    >>> best_iou(np.array([[[0.75, 0.5, 0.25]]]), np.array([[[1, 1, 0]]]))
    (1.0, 0.5)
    """
    best = BestIoU(ALL_SCORES)
    for scores, truth in _pairs(anomaly_maps, masks):
        best.update(scores, truth)
    return best.best()


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
    for index, (anomaly_map, mask) in enumerate(zip(anomaly_maps, masks, strict=True)):
        yield _pair(anomaly_map, mask, f" {index}", ": pass (N, H, W)")


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


def _check_shapes(first: tuple[int, ...], second: tuple[int, ...], first_name: str, second_name: str) -> None:
    if first != second:
        raise ValueError(f"{first_name} and {second_name} must have the same shape, not {first} and {second}")


def _check_count(predictions: Images, truths: Images, name: str) -> None:
    if len(predictions) != len(truths) or len(predictions) == 0:
        counts = f"{len(predictions)} and {len(truths)}"
        raise ValueError(f"{name} and truths must be of the same number of images, at least one, not {counts}")
