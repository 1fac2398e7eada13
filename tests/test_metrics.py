"""metrics.py against scikit-learn, torchmetrics, twins that try every threshold, and the twins in reference.py."""

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import reference
from uflow.evaluate.metrics import BestIoU, MaskMetrics, PixelMetrics, aupro, auroc, best_iou, iou, mean_iou

quick = settings(deadline=None, max_examples=60)


def slow_aupro(maps: np.ndarray, masks: np.ndarray, max_fpr: float) -> float:
    """The curve point by point, over every distinct score, then trapezoids up to the limit."""
    regions = []
    for index, mask in enumerate(masks):
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        regions += [maps[index][labels == label] for label in range(1, count + 1)]
    normal = maps[~masks]
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        points.append(((normal >= threshold).mean(), np.mean([(region >= threshold).mean() for region in regions])))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x1 > max_fpr:
            if x0 < max_fpr:
                y1 = y0 + (y1 - y0) * (max_fpr - x0) / (x1 - x0)
                area += (max_fpr - x0) * (y0 + y1) / 2
            break
        area += (x1 - x0) * (y0 + y1) / 2
    return area / max_fpr


def slow_best_iou(maps: np.ndarray, masks: np.ndarray) -> float:
    thresholds = [*np.unique(maps), np.inf]
    return max(mean_iou(maps >= threshold, masks) for threshold in thresholds)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Small stacks of maps with few or many ties, and masks of any density with at least one pixel of each class."""
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(2, 9)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([1, 2, 3, 10, 10**6]))
    masks = rng.random(shape) < draw(st.sampled_from([0.05, 0.3, 0.9]))
    masks.flat[:2] = True, False
    maps = rng.integers(0, levels, shape) / levels + draw(st.sampled_from([0.0, 0.4])) * masks
    maps = maps.astype(np.float32)  # what float32 rounds to the same number is a tie, as the docstring says
    return maps.astype(draw(st.sampled_from([np.float32, np.float64]))), masks


@quick
@given(cases())
def test_auroc_equals_scikit_learn(case: tuple[np.ndarray, np.ndarray]) -> None:
    from sklearn.metrics import roc_auc_score

    maps, masks = case
    assert auroc(maps, masks) == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)


@quick
@given(cases())
def test_auroc_equals_all_pairs(case: tuple[np.ndarray, np.ndarray]) -> None:
    maps, masks = case
    high, low = maps[masks][:, None], maps[~masks][None]
    assert auroc(maps, masks) == pytest.approx(((high > low) + 0.5 * (high == low)).mean(), abs=1e-12)


def test_auroc_equals_torchmetrics() -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.classification")
    rng = np.random.default_rng(0)
    labels = rng.random(3000) < 0.2
    scores = (np.round(rng.random(3000), 2) * 0.8 + 0.2 * labels).astype(np.float32)
    expected = functional.binary_auroc(torch.from_numpy(scores), torch.from_numpy(labels).long())
    assert auroc(scores, labels) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_auroc_of_more_scores_than_a_stream_keeps_apart_is_exact(share: float) -> None:
    rng = np.random.default_rng(1)
    labels, scores = rng.random(600_000) < share, rng.random(600_000, np.float32)
    assert np.unique(scores).size > 2**18
    assert auroc(scores, labels) == pytest.approx(reference.auroc(scores, labels), abs=1e-12)


@quick
@given(cases())
def test_auroc_and_aupro_depend_on_the_order_only(case: tuple[np.ndarray, np.ndarray]) -> None:
    maps, masks = case
    ranks = np.unique(maps, return_inverse=True)[1].reshape(maps.shape)
    assert auroc(ranks, masks) == auroc(maps, masks)
    assert aupro(np.exp(ranks / ranks.size), masks) == pytest.approx(aupro(maps, masks), abs=1e-12)


def test_auroc_known_values() -> None:
    assert auroc([0, 1], [False, True]) == 1
    assert auroc([1, 0], [0, 1]) == 0
    assert auroc(np.ones((3, 4)), np.eye(3, 4)) == 0.5
    assert auroc([-np.inf, np.inf, 0.0], [0, 1, 0]) == 1


@quick
@given(cases(), st.sampled_from([1e-3, 0.05, 0.3, 1.0]))
def test_aupro_equals_every_threshold(case: tuple[np.ndarray, np.ndarray], max_fpr: float) -> None:
    maps, masks = case
    assert aupro(maps, masks, max_fpr) == pytest.approx(slow_aupro(maps, masks, max_fpr), abs=1e-9)


def test_aupro_of_larger_defects_equals_every_threshold() -> None:
    rng = np.random.default_rng(2)
    masks = ndimage.zoom(rng.random((3, 5, 5)) < 0.3, (1, 6, 6), order=0)
    maps = (np.round(rng.random(masks.shape), 2) + 0.5 * masks).astype(np.float32)
    expected = slow_aupro(maps, masks, 0.3)
    assert aupro(maps, masks) == pytest.approx(expected, abs=1e-12)
    assert reference.aupro(maps, masks) == pytest.approx(expected, abs=1e-12)


def test_aupro_counts_regions_alike_and_joins_diagonals() -> None:
    mask = np.zeros((1, 12, 12), bool)
    mask[0, 0:6, 0:6] = True  # found
    mask[0, 9, 9] = mask[0, 10, 10] = True  # one region through its corner, missed
    maps = np.where(mask, 0.0, 0.5)
    maps[0, 0:6, 0:6] = 1
    assert aupro(maps, mask) == pytest.approx(0.5)


def test_aupro_of_a_constant_map_is_half_the_limit() -> None:
    mask = np.zeros((2, 8, 8), bool)
    mask[0, 2:4, 2:4] = True
    assert aupro(np.ones(mask.shape), mask, 1.0) == pytest.approx(0.5)
    assert aupro(np.ones(mask.shape), mask, 0.3) == pytest.approx(0.15)


def test_aupro_with_one_normal_pixel() -> None:
    mask = np.array([[[1, 0]]])
    assert aupro(np.array([[[0.9, 0.1]]]), mask) == 1
    assert aupro(np.array([[[0.1, 0.9]]]), mask) == 0


def test_iou() -> None:
    assert iou(np.zeros((2, 2)), np.zeros((2, 2))) == 1
    assert iou(np.ones((2, 2)), np.zeros((2, 2))) == 0
    assert iou([[1, 1], [0, 0]], [[1, 0], [0, 0]]) == 0.5
    assert mean_iou([np.ones((1, 2)), np.zeros((3, 3))], [np.array([[1, 0]]), np.zeros((3, 3))]) == 0.75


@quick
@given(cases(), st.booleans())
def test_best_iou_equals_every_threshold(case: tuple[np.ndarray, np.ndarray], with_good_image: bool) -> None:
    maps, masks = case
    if with_good_image:
        masks = masks.copy()
        masks[-1] = False
    best, threshold = best_iou(maps, masks)
    assert best == pytest.approx(slow_best_iou(maps, masks), abs=1e-12)
    assert best == pytest.approx(reference.best_iou(maps, masks), abs=1e-12)
    assert mean_iou(maps.astype(np.float32) >= threshold, masks) == pytest.approx(best, abs=1e-12)
    assert np.isfinite(threshold)


def test_best_iou_of_good_images_is_above_everything() -> None:
    maps = np.random.default_rng(3).random((3, 4, 5)).astype(np.float32)
    best, threshold = best_iou(maps, np.zeros(maps.shape, bool))
    assert best == 1
    assert not (maps >= threshold).any()


def test_maps_of_different_sizes() -> None:
    rng = np.random.default_rng(4)
    maps = [rng.random((4, 6)), rng.random((5, 3))]
    masks = [rng.random(scores.shape) < 0.4 for scores in maps]
    whole = [np.full((5, 6), -1.0), np.full((5, 6), -1.0)]  # padded with normal pixels that are never found
    for scores, padded in zip(maps, whole, strict=True):
        padded[: scores.shape[0], : scores.shape[1]] = scores
    assert 0 < aupro(maps, masks, 1.0) < 1
    assert best_iou(maps, masks)[0] == pytest.approx(
        best_iou(whole, [np.pad(m, ((0, 5 - m.shape[0]), (0, 6 - m.shape[1]))) for m in masks])[0]
    )


def test_inputs_are_not_changed() -> None:
    rng = np.random.default_rng(5)
    maps, masks = rng.random((2, 6, 6)).astype(np.float32), rng.random((2, 6, 6)) < 0.3
    maps.flags.writeable = masks.flags.writeable = False
    kept = maps.copy(), masks.copy()
    auroc(maps, masks), aupro(maps, masks), best_iou(maps, masks), mean_iou(masks, masks)
    assert (maps == kept[0]).all()
    assert (masks == kept[1]).all()


# ---- streams of images


def stream(maps, masks, **options) -> tuple[PixelMetrics, BestIoU]:
    pixels, best = PixelMetrics(**options), BestIoU(**options)
    for anomaly_map, mask in zip(maps, masks, strict=True):
        pixels.update(anomaly_map, mask)
        best.update(anomaly_map, mask)
    return pixels, best


def bounds(maps: np.ndarray, masks: np.ndarray, shift: int) -> tuple[float, float, float]:
    """How far AUROC, AUPRO (to 1) and the best mIoU may be off by the docstrings, by brute force over the bins."""
    bins = np.floor(maps.view(np.int32) / 2**shift)  # maps are positive: their bits are in their order
    p_auroc = p_aupro = rise = 0.0
    regions = [ndimage.label(mask, np.ones((3, 3))) for mask in masks]
    weights = np.zeros(maps.shape)
    for index, (labels, count) in enumerate(regions):
        for label in range(1, count + 1):
            weights[index][labels == label] = 1 / (labels == label).sum()
    components = sum(count for _, count in regions)
    for one in np.unique(bins):
        here = bins == one
        if np.unique(maps[here]).size > 1:
            false = (here & ~masks).sum() / (~masks).sum()
            p_auroc += false * (here & masks).sum() / masks.sum() / 2
            p_aupro += false * weights[here].sum() / components / 2
            rise = max(rise, weights[here].sum() / len(maps))
    return p_auroc, p_aupro, rise


@quick
@given(cases(), st.sampled_from([1e-3, 0.05, 0.3, 1.0]), st.booleans())
def test_a_stream_equals_the_whole(case: tuple[np.ndarray, np.ndarray], max_fpr: float, with_good_image: bool) -> None:
    maps, masks = case[0].astype(np.float32), case[1]
    if with_good_image:
        masks = np.concatenate([masks, np.zeros_like(masks[:1])])
        maps = np.concatenate([maps, maps[:1]])
    pixels, best = stream(maps, masks)
    assert pixels.auroc() == pytest.approx(reference.auroc(maps, masks), abs=1e-12)
    assert pixels.aupro(max_fpr) == pytest.approx(reference.aupro(maps, masks, max_fpr), abs=1e-9)
    found, threshold = best.best()
    assert found == pytest.approx(reference.best_iou(maps, masks), abs=1e-12)
    assert mean_iou(maps >= threshold, masks) == pytest.approx(found, abs=1e-12)


@quick
@given(cases(), st.sampled_from([4, 16, 64]))
def test_a_coarse_stream_keeps_its_bounds(case: tuple[np.ndarray, np.ndarray], bins: int) -> None:
    maps, masks = case[0].astype(np.float32), case[1]
    pixels, best = stream(maps, masks, bins=bins)
    measured, (found, threshold) = (pixels.auroc(), pixels.aupro(1.0)), best.best()
    shift = max(pixels._normal.shift, pixels._defects.shift)
    auroc_bound, aupro_bound, _ = bounds(maps, masks, shift)
    assert abs(measured[0] - reference.auroc(maps, masks)) <= auroc_bound + 1e-12
    assert abs(measured[1] - reference.aupro(maps, masks, 1.0)) <= aupro_bound + 1e-9
    rise = bounds(maps, masks, best._gain.shift)[2]
    assert reference.best_iou(maps, masks) - rise - 1e-12 <= found <= reference.best_iou(maps, masks) + 1e-12
    assert mean_iou(maps >= threshold, masks) == pytest.approx(found, abs=1e-12)


def made(images: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Smooth normal energies, some patches with more, in every other image, and the paper's map of them."""
    masks = np.zeros((images, size, size), bool)
    energies = 1 + 3.2 * ndimage.gaussian_filter(rng.normal(size=masks.shape), (0, 4, 4)).astype(np.float32)
    energies += rng.gamma(1, 0.1, (images, 1, 1)).astype(np.float32)
    for mask, energy in zip(masks[1::2], energies[1::2], strict=True):
        for _ in range(rng.integers(1, 4)):
            (y, x), (h, w) = rng.integers(0, size * 7 // 8, 2), rng.integers(3, size // 8, 2)
            mask[y : y + h, x : x + w] = True
        energy[mask] += rng.gamma(2, 0.4)
    return 1 - np.exp(-energies.clip(0) / 2), masks


REALISTIC = made(16, 256, np.random.default_rng(6))

# What maps may look like: each is a rising function of the realistic ones, in parts flat.
SHAPES = {
    "realistic": lambda maps: maps,
    "log NFA": lambda maps: 500 * (maps - 0.95),
    "tiny range": lambda maps: 0.3935 + 0.0001 * maps,
    "huge range": lambda maps: np.exp(150 * maps - 75),
    "both signs, huge range": lambda maps: np.sinh(150 * (maps - 0.4)),
    "about 0": lambda maps: maps - 0.4,
    "256 levels": lambda maps: np.round(255 * maps),
    "saturated": lambda maps: np.clip(maps, 0.42, 0.6),
    "infinite": lambda maps: np.where(maps < 0.35, -np.inf, np.where(maps > 0.8, np.inf, maps)),
    "constant": np.zeros_like,
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_stream_is_as_good_as_exact(name: str) -> None:
    maps, masks = REALISTIC
    maps = SHAPES[name](maps).astype(np.float32)
    pixels, best = stream(maps, masks)
    assert (pixels._normal.shift > 0) == (np.unique(maps).size > 2**18)
    assert pixels.auroc() == pytest.approx(reference.auroc(maps, masks), abs=1e-6)
    assert pixels.aupro() == pytest.approx(reference.aupro(maps, masks), abs=1e-6)
    found, threshold = best.best()
    assert found == pytest.approx(reference.best_iou(maps, masks), abs=2e-5)
    assert mean_iou(maps >= threshold, masks) == pytest.approx(found, abs=1e-9)


def test_a_stream_does_not_depend_on_the_order() -> None:
    maps, masks = REALISTIC[0][:12, :128, :128], REALISTIC[1][:12, :128, :128]
    order = np.random.default_rng(7).permutation(len(maps))
    one, other = stream(maps, masks, bins=5000), stream(maps[order], masks[order], bins=5000)
    assert one[0]._normal.shift == other[0]._normal.shift > 0
    assert one[0].auroc() == pytest.approx(other[0].auroc(), abs=1e-13)
    assert one[0].aupro() == pytest.approx(other[0].aupro(), abs=1e-13)
    assert one[1].best() == pytest.approx(other[1].best(), abs=1e-12)


def test_the_memory_of_a_stream_does_not_grow() -> None:
    maps, masks = REALISTIC[0][:, :128, :128], REALISTIC[1][:, :128, :128]
    pixels, best = PixelMetrics(bins=5000), BestIoU(bins=5000)
    peaks = []
    tracemalloc.start()
    try:
        for repeat in range(8):
            tracemalloc.reset_peak()
            for anomaly_map, mask in zip(maps, masks, strict=True):
                pixels.update(anomaly_map * np.float32(1 + repeat / 100), mask)  # other scores each time
                best.update(anomaly_map * np.float32(1 + repeat / 100), mask)
            peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    assert pixels.normal + pixels.defective == 8 * maps.size
    assert max(peaks[2:]) < 1.5 * peaks[1] < 2 * maps.nbytes  # of eight times as much seen


def test_curves_are_thinned_and_keep_their_area() -> None:
    maps, masks = REALISTIC
    pixels, _ = stream(maps, masks)
    for curve, area in ((pixels.roc(), pixels.auroc()), (pixels.pro(), pixels.aupro(1.0))):
        x, y = np.array(curve).T
        assert 100 < len(curve) <= 500
        assert curve[0] == (0, 0)
        assert curve[-1] == pytest.approx((1, 1))
        assert (np.diff(x) >= 0).all()
        assert (np.diff(y) >= 0).all()
        assert np.hypot(np.diff(x), np.diff(y)).max() < 0.02
        assert np.diff(x) @ (y[1:] + y[:-1]) / 2 == pytest.approx(area, abs=1e-4)


def test_threshold_for_so_many_false_pixels() -> None:
    maps, masks = REALISTIC
    pixels, _ = stream(maps, masks)
    normal = maps[~masks]
    for allowed in (1, 30, 1000):
        threshold = np.float32(pixels.threshold(allowed))
        assert 0.97 * allowed <= (normal >= threshold).sum() <= allowed
    above = np.float32(pixels.threshold(0))
    assert not (normal >= above).any()
    constant, _ = stream(np.full((2, 3, 3), 0.5, np.float32), np.zeros((2, 3, 3), bool))
    assert constant.threshold(17) > 0.5  # 18 pixels tie: all or none
    assert constant.threshold(18) == 0.5


def test_masks_equal_the_exact_twins() -> None:
    rng = np.random.default_rng(9)
    truths = [rng.random(size) < share for size, share in (((4, 6), 0.4), ((5, 3), 0.2), ((6, 6), 0.0), ((2, 2), 1.0))]
    found = [rng.random(truth.shape) < 0.3 for truth in truths]
    masks = MaskMetrics()
    ious = [masks.update(mask, truth) for mask, truth in zip(found, truths, strict=True)]
    assert ious == masks.ious == [reference.iou(mask, truth) for mask, truth in zip(found, truths, strict=True)]
    assert masks.miou() == reference.mean_iou(found, truths) == mean_iou(found, truths)
    assert masks.iou_defective() == pytest.approx(reference.mean_iou(found[:2] + found[3:], truths[:2] + truths[3:]))
    assert masks.pixel_f1() == pytest.approx(reference.pixel_f1(found, truths), abs=1e-12)


def test_an_empty_mask_finds_no_defect_however_many_good_images_there_are() -> None:
    masks = MaskMetrics()
    assert (masks.miou(), masks.iou_defective(), masks.pixel_f1()) == (None, None, None)
    for _ in range(9):
        masks.update(np.zeros((4, 4), bool), np.zeros((4, 4), bool))
    assert (masks.miou(), masks.iou_defective(), masks.pixel_f1()) == (1, None, None)
    masks.update(np.zeros((4, 4), bool), np.eye(4, dtype=bool))
    assert (masks.miou(), masks.iou_defective(), masks.pixel_f1()) == (0.9, 0, 0)


def test_the_best_of_good_images_is_above_everything() -> None:
    maps = np.random.default_rng(8).random((3, 4, 5)).astype(np.float32)
    _, best = stream(maps, np.zeros(maps.shape, bool))
    found, threshold = best.best()
    assert found == 1
    assert not (maps >= threshold).any()


NAN_MAP = np.array([[[0.0, np.nan]]])
PAIR = np.array([[[0, 1]]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: auroc([1, 2], [0, 1, 1]), r"same shape, not \(2,\) and \(3,\)"),
        (lambda: auroc([1, 2], [0, 0]), "need normal and defective pixels, but all 2 are normal"),
        (lambda: auroc([1, 2], [1, 1]), "but all 2 are defective"),
        (lambda: auroc([], []), "but all 0"),
        (lambda: auroc([np.nan, 2], [0, 1]), "1 NaN among 2"),
        (lambda: auroc([1, 2], [0, 255]), "only 0 and 1"),
        (lambda: auroc(["a", "b"], [0, 1]), "real numbers"),
        (lambda: aupro(NAN_MAP, PAIR), "anomaly map 0 holds 1 NaN"),
        (lambda: aupro(PAIR, PAIR * 0), "but all 2 are normal"),
        (lambda: aupro(PAIR, PAIR * 0 + 1), "need normal and defective pixels, but all 2 are defective"),
        (lambda: aupro(PAIR, PAIR, 0), "above 0 and at most 1, not 0"),
        (lambda: aupro(PAIR, PAIR, 1.5), "not 1.5"),
        (lambda: aupro(PAIR, np.array([[[0, 1, 0]]])), r"not \(1, 2\) and \(1, 3\)"),
        (lambda: aupro(PAIR, np.concatenate([PAIR, PAIR])), "not 1 and 2"),
        (lambda: aupro(PAIR[0], PAIR[0]), r"must be \(H, W\) and not empty, not \(2,\)"),
        (lambda: best_iou(NAN_MAP, PAIR), "NaN"),
        (lambda: best_iou([], []), "at least one"),
        (lambda: PixelMetrics().update(NAN_MAP[0], PAIR[0]), "anomaly map holds 1 NaN"),
        (lambda: PixelMetrics().update(PAIR, PAIR), r"must be \(H, W\) and not empty, not \(1, 1, 2\)"),
        (lambda: BestIoU().update(PAIR[0], PAIR[0, :, :1]), r"not \(1, 2\) and \(1, 1\)"),
        (lambda: PixelMetrics().auroc(), "need normal and defective pixels, but all 0"),
        (lambda: stream(PAIR, PAIR * 0)[0].aupro(), "but all 2 are normal"),
        (lambda: stream(PAIR, PAIR * 0 + 1)[0].roc(), "but all 2 are defective"),
        (lambda: stream(PAIR, PAIR)[0].aupro(2), "at most 1, not 2"),
        (lambda: BestIoU().best(), "at least one image"),
        (lambda: iou([[1]], [[1, 0]]), "same shape"),
        (lambda: iou([[2]], [[1]]), "only 0 and 1"),
        (lambda: mean_iou([], []), "at least one"),
    ],
)
def test_bad_input_is_one_clear_line(call, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
