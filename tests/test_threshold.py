"""The decision rule: the paper's test on white noise, the calibrated one on new images, and what each keeps of itself.

What it promises of real parts: test_threshold_promise.py.
"""

import json
import math
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from uflow import arrays, segmentation
from uflow.calibration_log import log_calibration, warn_of_few_images, warn_of_learnt_images
from uflow.conformal import AddedImage, conformal_shift, images_needed, supported_alpha
from uflow.detector import Detector
from uflow.fields import _set_lowest, area_exponent
from uflow.images import read_image
from uflow.input_size import choose_input_size
from uflow.outline import draw_regions
from uflow.predictor import Predictor
from uflow.scoring import Evidence, EvidenceWeights
from uflow.threshold import CalibratedThreshold, PaperThreshold, threshold_from_dict


def good_images(rng: np.random.Generator, count: int) -> list[Evidence]:
    """Two scales; some images are noisier than others, and cells beside each other are alike."""
    noise = 1 + 0.2 * rng.standard_exponential((count, 1, 1))
    fine = ndimage.uniform_filter(rng.chisquare(8, size=(count, 12, 12)), (0, 2, 2))
    maps = [(e * noise).astype(np.float32)[:, None] for e in (fine, rng.chisquare(30, size=(count, 6, 6)))]
    return [Evidence([fine, coarse]) for fine, coarse in zip(*maps, strict=True)]


def calibrate(rng: np.random.Generator, count: int, alpha: float = 0.2) -> CalibratedThreshold:
    return CalibratedThreshold.from_good_images(good_images(rng, count), alpha)


def lowest(threshold: CalibratedThreshold, evidence: Evidence) -> float:
    return float(threshold.log_nfa(evidence, (8, 30), (12, 12)).min())


# White noise: independent standard normals, for which the paper promises at most one false region an image ------------


@pytest.fixture(scope="module")
def white_noise() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in ((60, 24, 28, 28), (60, 48, 14, 14))]


@pytest.mark.parametrize("n_tests", ["total", "by-area"])
@pytest.mark.parametrize("tail", ["exact", "chernoff", "binomial"])
def test_white_noise_has_at_most_one_false_region_an_image(white_noise, tail, n_tests) -> None:
    log_nfa = segmentation.log_nfa(white_noise, size=112, tail=tail, n_tests=n_tests)
    regions = [segmentation.connected_components(image < 0)[1] for image in log_nfa]
    assert np.mean(regions) <= 1


@pytest.mark.parametrize("n_tests", ["total", "by-area"])
@pytest.mark.parametrize("tail", ["exact", "chernoff", "binomial"])
def test_a_variance_of_095_flags_nothing(white_noise, tail, n_tests) -> None:
    quiet = [np.float32(np.sqrt(0.95)) * z for z in white_noise]
    assert segmentation.log_nfa(quiet, size=112, tail=tail, n_tests=n_tests).min() >= 0


# Calibrated -----------------------------------------------------------------------------------------------------------


def test_the_shift_is_added_to_log_nfa() -> None:
    rng = np.random.default_rng(1)
    threshold = calibrate(rng, 9)
    other = threshold.at(0.5)
    assert other.minima == threshold.minima
    assert (threshold.alpha, other.alpha) == (0.2, 0.5)
    image = next(image for image in good_images(rng, 50) if lowest(other, image) >= 0)
    difference = other.log_nfa(image, (8, 30), (20, 24)) - threshold.log_nfa(image, (8, 30), (20, 24))
    np.testing.assert_allclose(difference, other.shift - threshold.shift, atol=1e-4)
    assert other.shift < threshold.shift  # more may be flagged
    assert threshold.shift == pytest.approx(conformal_shift(threshold.minima, 0.2), abs=2e-3)


def test_inside_an_outline_is_the_regions_lowest_and_outside_nothing_is_found() -> None:
    rng = np.random.default_rng(2)
    threshold = calibrate(rng, 19, alpha=0.05)
    (image,) = good_images(rng, 1)
    image.energies[0][0, 3:6, 4:8] += 60
    log_nfa = threshold.log_nfa(image, (8, 30), (48, 48))[0]
    labels, count = segmentation.connected_components(log_nfa < 0)
    assert count == 1
    assert len(np.unique(log_nfa[labels > 0])) == 1
    assert labels[16:20, 20:28].all()  # the middle of what was changed
    assert log_nfa.min() == pytest.approx(lowest(threshold, image), rel=1e-3)


def test_images_move_outlines_and_no_decision() -> None:
    rng = np.random.default_rng(2)
    threshold = calibrate(rng, 19, alpha=0.05)
    evidence = Evidence([np.concatenate(maps) for maps in zip(*(i.energies for i in good_images(rng, 3)), strict=True)])
    evidence.energies[0][:2, 3:6, 4:8] += 60
    images = [rng.integers(90, 110, (size, 70, 3), np.uint8) for size in (50, 60, 70)]
    images[1][18:24, 28:42] += np.uint8(50)
    plain, coloured = (threshold.log_nfa(evidence, (8, 30), (48, 48), given) for given in (None, images))
    np.testing.assert_array_equal(coloured.min(axis=(1, 2)), plain.min(axis=(1, 2)))
    assert ((plain < 0) != (coloured < 0)).any(axis=(1, 2)).tolist() == [True, True, False]
    assert (coloured[1] < 0).sum() < 0.7 * (plain[1] < 0).sum()


def test_what_follows_the_network_needs_no_torch() -> None:
    code = (
        "import sys, numpy as np, uflow.predictor, uflow.scoring\n"
        "from uflow.scoring import Evidence\n"
        "from uflow.threshold import CalibratedThreshold\n"
        "energies = np.random.default_rng(0).chisquare(4, (9, 1, 6, 6)).astype(np.float32)\n"
        "images = [Evidence([e]) for e in energies]\n"
        "threshold = CalibratedThreshold.from_good_images(images, 0.2)\n"
        "threshold.log_nfa(images[0], [4], 12)\n"
        "uflow.scoring.anomaly_map([np.zeros((1, 4, 2, 2), np.float32)], 3)\n"
        "print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_calibration_images_are_judged_as_new_ones_are() -> None:
    """What is stored of each is what the rule says of it, so that new ones are compared under one law."""
    evidence = good_images(np.random.default_rng(5), 9)
    threshold = CalibratedThreshold.from_good_images(evidence, 0.2)
    judged = [lowest(threshold, image) - threshold.shift for image in evidence]
    np.testing.assert_allclose(threshold.minima, judged, atol=1e-4)


@pytest.mark.parametrize("count", [4, 9])
def test_the_promise_is_kept_and_used_with_few_images(count: int) -> None:
    """A new good image is the strangest with probability 1 / (n + 1), though the law is learnt from those n."""
    rng = np.random.default_rng(count)
    flagged = []
    for _ in range(200):
        threshold = CalibratedThreshold.from_good_images(good_images(rng, count), 1 / (count + 1))
        flagged += [np.mean([lowest(threshold, image) < 0 for image in good_images(rng, 10)])]
    assert np.mean(flagged) == pytest.approx(1 / (count + 1), abs=3 * np.std(flagged) / math.sqrt(len(flagged)))


@pytest.mark.parametrize(("count", "alpha"), [(19, 0.05), (19, 0.2), (60, 0.1)])
def test_new_good_images_are_flagged_as_often_as_promised(count: int, alpha: float) -> None:
    """The whole way from energies to the threshold, over many calibrations and new images."""
    rng = np.random.default_rng(count)
    shares = []
    for _ in range(100):
        threshold = calibrate(rng, count, alpha)
        shares.append(np.mean([lowest(threshold, image) < 0 for image in good_images(rng, 20)]))
    error = np.std(shares) / np.sqrt(len(shares))
    assert np.mean(shares) <= alpha + 2 * error
    assert np.mean(shares) >= alpha / 2  # and the promise is used, not avoided


def test_p_values_are_the_decision_and_uniform() -> None:
    rng = np.random.default_rng(3)
    threshold = calibrate(rng, 19, alpha=0.1)
    values = []
    for image in good_images(rng, 200):
        values.append(threshold.p_value(lowest(threshold, image)))
        assert (lowest(threshold, image) < 0) == (values[-1] <= 0.1)
    np.testing.assert_allclose(np.array(values) * 20, np.round(np.array(values) * 20))
    assert np.mean(values) == pytest.approx(0.5, abs=0.15)
    assert (threshold.p_value(-1e9), threshold.p_value(1e9)) == (1 / 20, 1.0)
    assert PaperThreshold().p_value(-5.0) is None


def test_both_limits_are_promised_the_same_way() -> None:
    """What is not called good, and what is rejected: as often as each alpha says, and the first holds the second."""
    rng = np.random.default_rng(6)
    shares = []
    for _ in range(60):
        threshold = CalibratedThreshold.from_good_images(good_images(rng, 39), 0.1, look_alpha=0.3)
        lows = [lowest(threshold, image) for image in good_images(rng, 20)]
        verdicts = [threshold.verdict(low) for low in lows]
        assert [v == "reject" for v in verdicts] == [low < 0 for low in lows]
        looser = threshold.at(0.3)
        flagged = [low - threshold.shift + looser.shift < 0 for low in lows]
        assert [v != "good" for v in verdicts] == flagged == [threshold.p_value(low) <= 0.3 for low in lows]
        shares.append([np.mean([v == "reject" for v in verdicts]), np.mean([v != "good" for v in verdicts])])
    error = np.std(shares, 0) / np.sqrt(len(shares))
    assert (np.mean(shares, 0) <= np.array([0.1, 0.3]) + 2 * error).all()
    assert (np.mean(shares, 0) >= np.array([0.1, 0.3]) / 2).all()


def test_the_looser_limit_is_kept_where_it_is_looser() -> None:
    threshold = CalibratedThreshold.from_good_images(good_images(np.random.default_rng(0), 19), 0.1, look_alpha=0.2)
    alphas = [(t.alpha, t.look_alpha) for t in (threshold.at(0.05), threshold.at(0.3), threshold.at(look_alpha=0.4))]
    assert alphas == [(0.05, 0.2), (0.3, None), (0.1, 0.4)]
    assert threshold_from_dict(json.loads(json.dumps(threshold.to_dict()))) == threshold
    assert PaperThreshold().verdict(-1.0) == "reject"
    assert PaperThreshold().verdict(0.0) == "good"
    for alpha, look in ((0.1, 0.1), (0.1, 1.0), (0.3, 0.2)):
        with pytest.raises(ValueError, match="look_alpha is a probability between alpha"):
            threshold.at(alpha, look)
    with pytest.raises(ValueError, match="the paper's test has no alpha, so none can be set: calibrate"):
        PaperThreshold().at(0.1)
    for rule in (threshold, PaperThreshold()):
        with pytest.raises(ValueError, match="a verdict needs the lowest"):
            rule.verdict(float("nan"))


def test_a_large_image_is_judged_in_strips_and_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside log NFA itself some 15 bytes a pixel, however much of the image is found."""
    rng = np.random.default_rng(3)
    threshold = calibrate(rng, 19, alpha=0.05)
    (image,) = good_images(rng, 1)
    image.energies[0][0, 1:11, 2:9] += 60
    image.energies[0][0, 5, 5] = 0
    size = (2000, 1500)
    tracemalloc.start()
    whole = threshold.log_nfa(image, (8, 30), size)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (whole < 0).mean() > 0.3
    assert peak < 20 * math.prod(size)
    monkeypatch.setattr(arrays, "STRIP_PIXELS", 4000)
    np.testing.assert_array_equal(threshold.log_nfa(image, (8, 30), size), whole)


@pytest.mark.parametrize(("count", "odd"), [(19, 1), (39, 1), (39, 2), (99, 3)])
def test_images_far_out_are_named_wherever_the_limit_lies(
    count: int, odd: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A long tail, as log NFA has, is not far out; what is, is named: at the limit, beyond it, and nothing else."""
    tail = np.log((np.arange(count) + 0.5) / count)  # an exponential one
    names = [f"{i:02}.png" for i in range(count)]
    threshold = replace(calibrate(np.random.default_rng(0), 20), minima=tuple(tail), alpha=0.05)
    log_calibration(threshold, names)
    assert "far stranger" not in caplog.text
    far = [*(-1000.0 - np.arange(odd)), *tail[odd:]]
    log_calibration(replace(threshold, minima=tuple(far)), names)
    (words,) = [message for message in caplog.messages if "far stranger" in message]
    assert [name for name in names if name in words] == names[:odd]
    caplog.clear()
    log_calibration(replace(threshold, minima=tuple(far[:9])), names[:9])  # of nine images nobody can say
    assert "far stranger" not in caplog.text


def test_a_second_limit_that_tells_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    threshold = replace(calibrate(np.random.default_rng(0), 39), alpha=0.05)
    warn_of_few_images(threshold.at(0.05, look_alpha=0.075))
    assert caplog.text == ""
    warn_of_few_images(threshold.at(0.05, look_alpha=0.07))
    assert "39 calibration images can tell 0.075 from it" in caplog.text
    warn_of_few_images(replace(threshold, minima=threshold.minima[:1], look_alpha=0.2))
    assert "look_alpha 0.2 is the limit of alpha again, and no part is one to look at: calibrate on more" in caplog.text
    assert {threshold.at(0.05, look_alpha=0.07).verdict(lowest) for lowest in np.linspace(-50, 50, 999)} == {
        "good",
        "reject",
    }


@pytest.mark.parametrize(("known", "calm", "warns"), [(True, True, True), (True, False, False), (False, True, False)])
def test_images_learnt_from_are_calm_and_known(
    known: bool, calm: bool, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A black ground is known in every image, and a better camera makes calmer ones: either alone says nothing."""
    rng = np.random.default_rng(2)
    good = [Evidence(image.energies, [image.energies[0] / 8]) for image in good_images(rng, 40)]
    threshold, images = CalibratedThreshold.from_good_images(good[:20], 0.2), good[20:]
    for image in images:
        for values in image.maps if calm else []:
            values *= np.float32(0.5)
        if known:
            image.distances[0][0, 0, 0] = 0
    warn_of_learnt_images(threshold, images, (8, 30))
    assert ("seems to have learnt from" in caplog.text) is warns
    if known and calm:
        caplog.clear()
        for image in images:
            image.distances[0][:] = 0  # the memory holds all cells
        warn_of_learnt_images(threshold, images, (8, 30))
        assert "its memory holds cells of 20 of 20" in caplog.text


def added(*lows: float) -> list[AddedImage]:
    return [AddedImage(f"{low}.png", f"{i:064x}", low) for i, low in enumerate(lows)]


@pytest.mark.parametrize("chosen", ["flagged", "calm", "all"])
def test_the_promise_holds_whatever_is_added(chosen: str) -> None:
    """For every alpha: each image, however it was chosen, can only lower the limit and raise p-values."""
    rng = np.random.default_rng(7)
    minima = rng.normal(size=39)
    before = replace(calibrate(rng, 9), minima=tuple(minima), alpha=0.1)
    news = rng.normal(size=200)
    flagged = np.array([before.verdict(low + before.shift) == "reject" for low in news])
    picked = {"flagged": news[flagged], "calm": news[~flagged], "all": news}[chosen]
    after = before.with_added(added(*picked[:12]))
    assert (after.minima, after.calibration_images) == (before.minima, None)
    assert len(after.added) == len(picked[:12]) > 5
    for alpha in (0.03, 0.1, 0.3):
        old, new = before.at(alpha, 0.5), after.at(alpha, 0.5)
        assert new.shift >= old.shift
        for low in rng.normal(size=50):
            verdicts = [rule.verdict(low + rule.shift) for rule in (old, new)]
            assert ["reject", "look", "good"].index(verdicts[1]) >= ["reject", "look", "good"].index(verdicts[0])
            assert new.p_value(low + new.shift) >= old.p_value(low + old.shift)
            assert (verdicts[1] == "reject") == (new.p_value(low + new.shift) <= max(alpha, 1 / 40))


def test_added_images_are_kept_once() -> None:
    rule = calibrate(np.random.default_rng(0), 9).with_added(added(-3.0, 1.0))
    assert rule.with_added(added(-9.0, -9.0, 2.0)).added == (*rule.added, *added(0, 0, 2.0)[2:])
    assert threshold_from_dict(json.loads(json.dumps(rule.to_dict()))) == rule
    with pytest.raises(ValueError, match="the threshold is damaged"):
        threshold_from_dict(rule.to_dict() | {"added": [{"name": "a"}]})
    with pytest.raises(ValueError, match=r"nan\.png cannot be added"):
        added(float("nan"))


def chi_square_images(rng: np.random.Generator) -> list[Evidence]:
    return [Evidence([e]) for e in 1.7 * rng.chisquare(23.0, size=(50, 1, 40, 40)).astype(np.float32)]


def test_the_cell_model_recovers_a_scaled_chi_square() -> None:
    threshold = CalibratedThreshold.from_good_images(chi_square_images(np.random.default_rng(0)), 0.2)
    assert threshold.cell.dof == pytest.approx(23.0, rel=0.02)
    assert threshold.cell.scale == pytest.approx(threshold.weights.latents / 23, rel=0.02)
    assert threshold.exponent == pytest.approx(1, abs=0.05)


def test_one_odd_image_does_not_decide_the_cell_model() -> None:
    evidence = chi_square_images(np.random.default_rng(0))[:11]
    before = CalibratedThreshold.from_good_images(evidence, 0.2)
    evidence[4] = evidence[4].with_maps([100 * evidence[4].energies[0]])
    after = CalibratedThreshold.from_good_images(evidence, 0.2)
    assert after.cell.scale == pytest.approx(before.cell.scale, rel=0.1)
    assert after.cell.dof == pytest.approx(before.cell.dof, rel=0.1)
    assert np.argmin(after.minima) == 4


def test_images_of_other_flows_join_the_promise() -> None:
    rng = np.random.default_rng(4)
    first, second = calibrate(rng, 9), calibrate(rng, 5)
    both = first.with_images_of([second])
    assert both.minima == first.minima + second.minima
    assert replace(both, minima=first.minima) == first


def test_the_exponent_of_fields_of_known_truth() -> None:
    rng = np.random.default_rng(0)
    independent = [rng.normal(size=(1, 32, 32)).astype(np.float32) for _ in range(40)]
    assert area_exponent(independent) == pytest.approx(1, abs=0.05)
    alike = [np.full((1, 32, 32), i, np.float32) for i in range(9)]
    assert area_exponent(alike) == pytest.approx(0, abs=1e-9)
    smooth = [ndimage.uniform_filter(x, (0, 9, 9)) for x in independent]
    assert 0 < area_exponent(smooth) < 0.7
    assert area_exponent([x[:, :1] for x in independent]) == 0
    # what images differ by: the mean over A cells varies by 1 / A + 1, which is worth 2 / (1 / 64 + 1) = 1.97 cells
    lifted = [x + np.float32(rng.normal()) for x in independent * 25]
    assert area_exponent(lifted) == pytest.approx(math.log(2 / (1 + 1 / 64), 64), rel=0.15)


@pytest.mark.parametrize("sigma", [0.5, 0.7, 1.5, 3.0])
def test_no_square_is_worth_less_than_the_exponent_says(sigma: float) -> None:
    """Of noise smoothed by a Gaussian, the variance of a mean over A = s x s cells is known, and with it its worth."""
    rng = np.random.default_rng(1)
    noise = ndimage.gaussian_filter(rng.normal(size=(40, 48, 48)), (0, sigma, sigma), mode="wrap")
    lags = np.zeros((1, 48, 48))
    lags[0, 0, 0] = 1
    kernel = ndimage.gaussian_filter(lags, (0, sigma, sigma), mode="wrap")
    worths = {}
    for side in (2, 4, 8):
        mean = ndimage.uniform_filter(kernel, (0, side, side), mode="wrap")
        worths[side**2] = np.square(kernel).sum() / np.square(mean).sum()
    exponent = area_exponent([x[None].astype(np.float32) for x in noise])
    assert exponent == pytest.approx(min(math.log(w, a) for a, w in worths.items()), rel=0.1)


def test_evidence_that_does_not_vary_is_refused() -> None:
    for value in (2.0, np.nan):
        constant = [Evidence([np.full((1, 4, 4), value, np.float32)])] * 3
        with pytest.raises(ValueError, match="not finite"):
            CalibratedThreshold.from_good_images(constant, 0.2)


@pytest.mark.parametrize(
    "threshold", [PaperThreshold(), PaperThreshold("exact", "by-area"), calibrate(np.random.default_rng(0), 9)]
)
def test_survives_json(threshold: PaperThreshold | CalibratedThreshold) -> None:
    content = json.loads(json.dumps(threshold.to_dict()))
    assert threshold_from_dict(content) == threshold


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "other"}, "the threshold is damaged: it is neither of the kind 'paper' nor"),
        ({"cell": None}, "the threshold is damaged"),
        ({"drawing": None}, "the threshold is damaged"),
        ({"weights": None}, "the threshold is damaged: it: weights should be an object, found None"),
        ({"minima": []}, "one finite number for each image"),
        ({"minima": None}, "the threshold is damaged"),
        ({"alpha": 2}, "alpha is a probability"),
        ({"exponent": 1.5}, r"the exponent of the area lies between 0 and 1, got 1\.5"),
        ({"more": 1}, "the threshold is damaged"),
    ],
)
def test_damaged_thresholds_are_one_line(changes: dict[str, Any], message: str) -> None:
    content = calibrate(np.random.default_rng(0), 9).to_dict() | changes
    with pytest.raises(ValueError, match=message) as error:
        threshold_from_dict(content)
    assert "\n" not in str(error.value)
    for nothing in (None, {}, []):
        with pytest.raises(ValueError, match="the threshold is damaged"):
            threshold_from_dict(nothing)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tail": "normal"}, "tail must be one of .*, got 'normal'"),
        ({"n_tests": "none"}, "n_tests must be one of .*, got 'none'"),
    ],
)
def test_unknown_tests_are_one_line(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PaperThreshold(**options)


# The promise ----------------------------------------------------------------------------------------------------------


def test_shift_is_the_least_that_keeps_the_promise() -> None:
    minima = np.random.default_rng(1).normal(size=99)
    for alpha in (0.01, 0.05, 0.2, 0.5):
        shift = conformal_shift(minima, alpha)
        assert (np.sum(minima + shift < 0) + 1) / 100 <= alpha + 1e-12
        smaller = shift - 1e-9
        assert (np.sum(minima + smaller < 0) + 1) / 100 > alpha


def test_share_of_new_images_flagged_is_at_most_alpha() -> None:
    rng = np.random.default_rng(2)
    for alpha in (0.05, 0.2):
        flagged = []
        for _ in range(3000):
            minima = rng.standard_t(3, size=41)
            flagged.append(minima[0] + conformal_shift(minima[1:], alpha) < 0)
        assert np.mean(flagged) <= alpha + 2 * np.sqrt(alpha / 3000)
        assert np.mean(flagged) >= alpha / 3  # and the promise is used, not avoided


@pytest.mark.parametrize("alpha", [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5])
def test_images_needed_are_the_fewest_that_support_alpha(alpha: float) -> None:
    needed = images_needed(alpha)
    assert supported_alpha(needed) <= alpha + 1e-12
    assert supported_alpha(needed - 1) > alpha


@pytest.mark.parametrize(("alpha", "count", "counting"), [(0.05, 38, 19), (0.05, 39, 39), (0.05, 9, 9), (0.3, 40, 39)])
def test_as_many_images_count_as_use_alpha_in_full(alpha: float, count: int, counting: int) -> None:
    learnt = calibrate(np.random.default_rng(0), count, alpha)
    assert learnt.without_surplus().minima == learnt.minima[:counting]


def test_surplus_images_make_the_promise_stricter_than_asked_for() -> None:
    minima = np.random.default_rng(0).uniform(size=(4000, 38))  # so that -shift is the chance to flag a new image
    flagged = [-np.mean([conformal_shift(m[:count], 0.05) for m in minima]) for count in (38, 19)]
    assert flagged == pytest.approx([1 / 39, 1 / 20], abs=0.003)


def test_too_few_images_support_a_larger_alpha_only() -> None:
    assert supported_alpha(9) == pytest.approx(0.1)
    assert conformal_shift([2.0, -1.0, 5.0], alpha=0.05) == 1.0  # flags none of the three


@pytest.mark.parametrize(("minima", "alpha"), [([], 0.1), ([1.0, np.nan], 0.1), ([[1.0]], 0.1), ([1.0, 2.0], 1.0)])
def test_bad_minima_and_alpha_are_refused(minima: list, alpha: float) -> None:
    with pytest.raises(ValueError, match=r"one finite number for each image|alpha is a probability"):
        conformal_shift(minima, alpha)


def fastest(function: Callable[[], object], times: int) -> float:
    """Seconds of the fastest of many calls: a busy machine slows some of them, not all."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


@pytest.mark.parametrize("name", ["good", "square"])
def test_calibrated_prediction_takes_at_most_5_percent_more(detector: Detector, dataset: Path, name: str) -> None:
    own, image = detector.predictor, read_image(dataset / f"test/{name}/00.png")
    paper = Predictor(own.network, PaperThreshold(), own.blend)
    (evidence,) = own.evidence([image], 1)
    whole = fastest(lambda: paper.predict(image), 15)
    calibrated, plain = (fastest(partial(p.log_nfa, evidence, image.shape[:2]), 100) for p in (own, paper))
    assert calibrated - plain <= 0.05 * whole


@pytest.mark.parametrize(
    ("cells", "regions", "wanted"),
    [
        ([-9, 4, 4, -2], [0, 0, 0, 1], [1, 1, 1, -9]),  # the outline left the cell that decided
        ([-2, 4, -3, 4], [1, 0, 0, 1], [-3, 1, 1, -3]),  # the second region covers no cell that was found
        ([-2, 4, -3, 4], [1, 0, 1, 0], [-2, 1, -3, 1]),
    ],
)
def test_the_lowest_value_of_an_image_stays_in_its_mask(
    cells: list[int], regions: list[int], wanted: list[int]
) -> None:
    log_nfa = np.ones((1, 4), np.float32)
    _set_lowest(log_nfa, np.array([regions], bool), np.array([cells], np.float32))
    assert log_nfa.tolist() == [wanted]


def test_what_cannot_be_judged_is_one_clear_line() -> None:
    """Nothing to learn from, NaN, and maps that do not fit: an error, never an answer."""
    threshold = CalibratedThreshold.from_good_images(good_images(np.random.default_rng(0), 8), 0.2)
    for learn in (EvidenceWeights.from_good_images, partial(CalibratedThreshold.from_good_images, alpha=0.2)):
        with pytest.raises(ValueError, match=r"at least one good image is needed, got none$"):
            learn([])
    with pytest.raises(ValueError, match=r"^p_value needs the lowest log10 NFA of an image, got NaN$"):
        threshold.p_value(float("nan"))
    values, found = np.zeros((4, 4), np.float32), np.zeros((5, 5), np.bool_)
    with pytest.raises(ValueError, match=r"a cell for each value of shape \(4, 4\), got \(5, 5\)$"):
        draw_regions(values, found, threshold.drawing, (8, 8))
    for sizes in ([], [(0, 5)]):
        with pytest.raises(ValueError, match=r"heights and widths of at least 1 pixel, got "):
            choose_input_size(sizes, 65536, 16)


def test_levels_of_the_map_are_those_of_good_images() -> None:
    maxima = (0.5, 0.2, 0.4, 0.3, 0.6, 0.9, 0.1, 0.7, 0.8)
    images = good_images(np.random.default_rng(0), 9)
    threshold = CalibratedThreshold.from_good_images(images, 0.1, map_maxima=maxima)
    assert threshold.map_levels() == (0.5, 0.9)  # of 10 with the new one, 1 may exceed it
    assert threshold.at(0.2).map_levels() == (0.5, 0.8)
    assert threshold.at(0.9).map_levels() == (0.1, 0.1)
    assert threshold.with_images_of([threshold]).map_maxima == 2 * maxima
    content = json.loads(json.dumps(threshold.to_dict()))
    assert threshold_from_dict(content) == threshold
    content["map_maxima"] = []  # not known
    assert threshold_from_dict(content).map_levels() is None
    assert CalibratedThreshold.from_good_images(images, 0.1).map_levels() is None
    assert PaperThreshold().map_levels() is None
