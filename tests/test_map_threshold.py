"""Maps of any model: the promise, what is found, files, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

import uflow
from conftest import one_line
from reference import iou
from uflow.map_threshold import Threshold


def good_maps(rng: np.random.Generator, count: int, size: tuple[int, int] = (20, 24)) -> list[np.ndarray]:
    """Smooth heavy-tailed noise around -3, some images noisier than others: nothing that a model of ours makes."""
    noise = ndimage.gaussian_filter(rng.standard_t(4, size=(count, *size)), (0, 1.5, 1.5))
    return list(noise * (1 + rng.standard_exponential((count, 1, 1))) - 3)


def strange_map(rng: np.random.Generator) -> np.ndarray:
    (values,) = good_maps(rng, 1)
    values[6:12, 8:16] += 12
    return values


@pytest.mark.parametrize(("count", "alpha", "look_alpha"), [(19, 0.05, 0.2), (40, 0.1, 0.3)])
def test_both_promises_are_kept(count: int, alpha: float, look_alpha: float) -> None:
    rng = np.random.default_rng(count)
    shares = []
    for _ in range(40):
        threshold = Threshold.from_good_maps(good_maps(rng, count), alpha, look_alpha)
        found = [threshold.apply(values) for values in good_maps(rng, 15)]
        for each in found:
            assert each.is_anomalous == (each.p_value <= alpha) == (each.verdict == "reject") == each.mask.any()
            assert (each.verdict != "good") == (each.p_value <= look_alpha)
        shares.append([np.mean([each.p_value <= limit for each in found]) for limit in (alpha, look_alpha)])
    error = np.std(shares, 0) / np.sqrt(len(shares))
    assert (np.mean(shares, 0) <= np.array([alpha, look_alpha]) + 2 * error).all()
    assert (np.mean(shares, 0) >= np.array([alpha, look_alpha]) / 2).all()  # and the promise is used, not avoided


def test_a_blob_is_found_where_it_is() -> None:
    rng = np.random.default_rng(0)
    threshold = Threshold.from_good_maps(good_maps(rng, 39), 0.05)
    found = threshold.apply(strange_map(rng))
    truth = np.zeros((20, 24), bool)
    truth[6:12, 8:16] = True
    assert (found.mask & truth).sum() / (found.mask | truth).sum() > 0.8
    assert (found.p_value, [region.p_value for region in found.regions]) == (1 / 40, [1 / 40])
    assert found.score == found.regions[0].score > 5
    (region,) = json.loads(json.dumps(found.to_dict()))["regions"]
    assert (region["p_value"], region["area"]) == (1 / 40, found.mask.sum())


def test_scale_and_origin_of_a_map_do_not_count() -> None:
    rng = np.random.default_rng(1)
    good, new = good_maps(rng, 30), [*good_maps(rng, 10), strange_map(rng)]
    plain = Threshold.from_good_maps(good, 0.1)
    other = Threshold.from_good_maps(np.float64(1e4) * np.array(good) + 7e4, 0.1)
    for values in new:
        a, b = plain.apply(values), other.apply(1e4 * values + 7e4)
        assert a.p_value == b.p_value
        assert (a.mask != b.mask).mean() < 0.01


def test_a_map_that_is_coarser_than_its_image() -> None:
    rng = np.random.default_rng(2)
    threshold = Threshold.from_good_maps(good_maps(rng, 30), 0.1)
    values = strange_map(rng)
    small, large = threshold.apply(values), threshold.apply(values, size=(160, 192))
    assert large.mask.shape == large.log_nfa.shape == (160, 192)
    assert large.p_value == small.p_value
    assert large.mask.mean() == pytest.approx(small.mask.mean(), rel=0.3)


def test_outlines_follow_the_colours_of_the_image() -> None:
    """The map has a spot of 6 x 8 cells with slopes around; in the picture, what is strange is half as high."""
    rng = np.random.default_rng(2)
    threshold = Threshold.from_good_maps(good_maps(rng, 30), 0.1)
    values = ndimage.gaussian_filter(strange_map(rng), 1.0)
    truth = np.zeros((160, 192), bool)
    truth[60:84, 64:128] = True
    image = rng.integers(95, 105, (160, 192, 3), np.uint8)
    image[truth] += np.uint8(40)
    alone, coloured = (threshold.apply(values, (160, 192), picture) for picture in (None, image))
    assert iou(coloured.mask, truth) > 0.9 > 0.6 > iou(alone.mask, truth)
    assert (coloured.p_value, coloured.verdict) == (alone.p_value, alone.verdict)
    assert coloured.log_nfa.min() == alone.log_nfa.min()
    for wrong in (image[:, :, 0], image[:, :, :2], image / 255.0, image[:0]):
        with pytest.raises(ValueError, match=r"^the image must be uint8 of shape \(height, width, 3\), got "):
            threshold.apply(values, (160, 192), wrong)


def test_another_alpha_and_a_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    threshold = uflow.Threshold.from_good_maps(np.array(good_maps(rng, 30)), 0.1, 0.2)
    assert isinstance(threshold, Threshold)
    threshold.save(tmp_path / "threshold.json")
    assert Threshold.load(tmp_path / "threshold.json") == threshold
    assert threshold.at(0.05) == Threshold.from_dict(threshold.to_dict() | {"alpha": 0.05})
    assert threshold.at(0.3).look_alpha is None
    watch = threshold.monitor()
    for values in good_maps(rng, 5):
        watch.add(threshold.apply(values).p_value)
    assert (watch.parts, watch.calibration_images) == (5, threshold.calibration_images)


def test_works_without_torch() -> None:
    code = (
        "import sys, numpy as np, uflow\n"
        "maps = np.random.default_rng(0).random((9, 8, 8))\n"
        "uflow.Threshold.from_good_maps(maps, 0.2).apply(maps[0])\n"
        "print([name for name in ('torch', 'rich', 'matplotlib', 'scipy') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ([], "at least one good image, got none"),
        (np.zeros((4, 5, 5)), "the 4 good maps do not vary"),
        (np.zeros((5, 5)), r"map 1 must be real numbers of shape \(height, width\), got float64 \(5,\)"),
        ([np.full((5, 5), np.nan)], "map 1 holds values that are not finite"),
        ([np.full((5, 5), 1e300)], "map 1 holds values that are not finite"),
        ([np.zeros((0, 5))], "map 1 must be real numbers"),
        ([np.zeros((5, 5), complex)], "map 1 must be real numbers"),
    ],
)
def test_maps_that_cannot_be_learnt_from_are_one_line(maps: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Threshold.from_good_maps(maps, 0.2)
    one_line(error)


def test_what_cannot_be_judged_is_an_error() -> None:
    threshold = Threshold.from_good_maps(good_maps(np.random.default_rng(0), 9), 0.2)
    bad = np.zeros((20, 24))
    bad[3, 3] = np.nan
    for values in (bad, np.zeros(5), np.zeros((2, 0)), np.array([["a"]])):
        with pytest.raises(ValueError, match="the map "):
            threshold.apply(values)
    for alphas in ((0.0, None), (0.2, 0.1)):
        with pytest.raises(ValueError, match="alpha"):
            threshold.at(*alphas)


@pytest.mark.parametrize(
    "damage",
    [
        {"kind": "calibrated"},
        {"version": 0},
        {"cell": {}},
        {"minima": []},
        {"minima": "012345678"},
        {"minima": [10**400]},
        {"low": float("inf")},
        {"low": 1e300},  # beyond float32: every map would be calm
        {"low": True},
        {"more": 1},
    ],
)
def test_damaged_files_are_one_line(damage: dict[str, object], tmp_path: Path) -> None:
    content = Threshold.from_good_maps(good_maps(np.random.default_rng(0), 9), 0.2).to_dict() | damage
    with pytest.raises(ValueError, match="the threshold is damaged") as error:
        Threshold.from_dict(content)
    one_line(error)
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "b.json").write_text("{")
    (tmp_path / "c.json").write_text("[" * 100_000)
    (tmp_path / "d.json").write_bytes(b"\xff")
    for name in "abcd":
        with pytest.raises(ValueError, match=r"[abcd]\.json is not a threshold that Threshold.save wrote") as error:
            Threshold.load(tmp_path / f"{name}.json")
        one_line(error)


def test_a_changed_digit_is_seen(tmp_path: Path) -> None:
    """Else a threshold that a bad disk, or an editor, has changed would pass every part, or none."""
    path = tmp_path / "threshold.json"
    threshold = Threshold.from_good_maps(good_maps(np.random.default_rng(0), 9), 0.2)
    threshold.save(path)
    text = path.read_text()
    path.write_text(text.replace('"low": -', '"low": '))
    with pytest.raises(ValueError, match="its SHA-256 is not the one in it; copy or learn it again") as error:
        Threshold.load(path)
    one_line(error)
    path.write_text(json.dumps(json.loads(text)))  # written otherwise, and the same
    assert Threshold.load(path) == threshold


def test_values_beyond_float32_are_refused() -> None:
    threshold = Threshold.from_good_maps(good_maps(np.random.default_rng(0), 9), 0.2)
    low = Threshold.from_dict(threshold.to_dict() | {"low": -3e38})
    with pytest.raises(ValueError, match=r"values up to 3e\+38 cannot be judged") as error:
        low.apply(np.full((4, 4), 3e38))
    one_line(error)
