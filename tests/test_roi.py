"""The region of interest: what lies outside is not seen, and what lies inside is judged as promised."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from shapely import Point
from shapely import Polygon as Shape

from conftest import one_line, texture
from test_fuzz import QUICK
from test_predictor import Brightness, BrightnessAndDistance, brightness, noise_pictures
from uflow.deploy import exported
from uflow.detector import Detector, load
from uflow.features import FeatureCache, TrainingFeatures, channel_moments
from uflow.fields import judge_fields
from uflow.flow import UFlow
from uflow.memory import MemoryBank
from uflow.outline import Drawing, draw_regions
from uflow.prediction import Prediction
from uflow.predictor import Predictor
from uflow.roi import RegionOfInterest, as_roi
from uflow.scoring import Blend, Evidence, largest_map_values
from uflow.segmentation import Background, number_of_tests
from uflow.threshold import CalibratedThreshold, PaperThreshold
from uflow.tile_reader import masks_of_tiles, turned_copies
from uflow.tiling import tiled
from uflow.training import TrainingSettings

SIZE = (80, 96)  # of the images of `dataset`
LEFT = RegionOfInterest(SIZE, polygons=(((0, 0), (50, 0), (50, 80), (0, 80)),))
SETTINGS = TrainingSettings(epochs=3, batch_size=4, augment=False, memory_size=500)
ALPHA = 0.2

pytestmark = pytest.mark.usefixtures("one_thread")


def alike(one: Prediction, other: Prediction) -> bool:
    """Whether two predictions say the same of two images, bit for bit."""
    if not all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("anomaly_map", "log_nfa", "mask")):
        return False
    numbers = [(each.score, each.p_value, [region.to_dict() for region in each.regions]) for each in (one, other)]
    return numbers[0] == numbers[1]


# Where it is ----------------------------------------------------------------------------------------------------------


@QUICK
@given(corners=st.lists(st.tuples(st.integers(-3, 14), st.integers(-3, 11)), min_size=3, max_size=6, unique=True))
def test_pixels_are_inside_where_their_centres_are(corners: list[tuple[int, int]]) -> None:
    shape = Shape(corners)
    centres = [[Point(x + 0.5, y + 0.5) for x in range(11)] for y in range(8)]
    inside = np.array([[shape.is_valid and shape.contains(each) for each in row] for row in centres])
    if not inside.any():
        return
    on_edge = np.array([[shape.boundary.distance(each) < 1e-9 for each in row] for row in centres])
    found = RegionOfInterest((8, 11), polygons=(tuple(corners),)).pixels((8, 11))
    np.testing.assert_array_equal(found[~on_edge], inside[~on_edge])


@QUICK
@given(seed=st.integers(0, 99), grid=st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_a_cell_counts_where_any_part_of_it_is_inside(seed: int, grid: tuple[int, int]) -> None:
    mask = np.random.default_rng(seed).random((9, 12)) < 0.1
    mask[4, 7] = True
    cells = RegionOfInterest.from_mask(mask).cells(grid)
    large = np.kron(mask, np.ones(grid, bool))  # each pixel in parts that fit the cells
    wanted = large.reshape(grid[0], 9, grid[1], 12).any(axis=(1, 3))
    np.testing.assert_array_equal(cells, wanted)


def test_polygons_join_and_what_is_ignored_is_left_out() -> None:
    square = ((1, 1), (5, 1), (5, 5), (1, 5))
    other = ((4, 4), (9, 4), (9, 8), (4, 8))
    roi = RegionOfInterest((8, 10), polygons=(square, other), ignore=(((2, 2), (4, 2), (4, 4), (2, 4)),))
    wanted = np.zeros((8, 10), bool)
    wanted[1:5, 1:5] = wanted[4:8, 4:9] = True
    wanted[2:4, 2:4] = False
    np.testing.assert_array_equal(roi.pixels((8, 10)), wanted)
    assert roi.is_same(RegionOfInterest.from_mask(wanted))
    assert not roi.is_same(None)
    np.testing.assert_array_equal(roi.pixels((16, 20)), np.kron(wanted, np.ones((2, 2), bool)))


def test_what_a_region_may_be_given_as(tmp_path: Path) -> None:
    mask = np.zeros((6, 8), bool)
    mask[2:, 3:] = True
    Image.fromarray(mask).save(tmp_path / "roi.png")
    for given_as in (mask, tmp_path / "roi.png", str(tmp_path / "roi.png"), RegionOfInterest.from_mask(mask)):
        found = as_roi(given_as)
        assert found is not None
        np.testing.assert_array_equal(found.pixels((6, 8)), mask)
    with pytest.raises(TypeError, match="roi is a RegionOfInterest, a bool mask, or the path of one; got 3"):
        as_roi(3)  # type: ignore[arg-type]
    for wrong in (mask.astype(np.uint8), mask[0]):
        with pytest.raises(ValueError, match=r"must be \(H, W\) bool"):
            as_roi(wrong)
    with pytest.raises(ValueError, match="has no pixel inside"):
        as_roi(np.zeros((6, 8), bool))


def test_other_sizes_of_the_same_shape_are_scaled_and_other_shapes_refused() -> None:
    roi = RegionOfInterest((480, 640))
    for size in ((480, 640), (240, 320), (960, 1280), (101, 135), (3, 4)):
        roi.check_size(size)
    for size in ((640, 480), (480, 644), (240, 330)):
        with pytest.raises(ValueError, match=r"part\.png has .* was drawn on 480 x 640, another shape") as error:
            roi.check_size(size, "part.png")
        one_line(error)


# On evidence ----------------------------------------------------------------------------------------------------------


def evidence(count: int = 20, seed: int = 0) -> list[Evidence]:
    rng = np.random.default_rng(seed)
    return [
        Evidence(
            [rng.chisquare(20, (1, n, n)).astype(np.float32) for n in (16, 8)],
            [rng.chisquare(5, (1, n, n)).astype(np.float32) for n in (16, 8)],
        )
        for _ in range(count)
    ]


def learnt(images: list[Evidence]) -> tuple[CalibratedThreshold, Blend]:
    blend = Blend.from_good_images(images)
    return CalibratedThreshold.from_good_images(images, 0.1, None, largest_map_values(images, (20, 20), blend)), blend


def test_with_all_inside_the_masked_formulas_give_the_same() -> None:
    """The way of a region of interest, which is not taken where all is inside, has no formula of its own."""
    whole = RegionOfInterest((64, 64))
    plain, masked = evidence(), [image.within(whole) for image in evidence()]
    (threshold, blend), (other, _) = learnt(plain), learnt(masked)
    np.testing.assert_allclose(other.minima, threshold.minima, rtol=1e-4)
    np.testing.assert_allclose(other.weights.energy_means, threshold.weights.energy_means, rtol=1e-6)
    assert (other.exponent, other.cell) == (pytest.approx(threshold.exponent), pytest.approx(threshold.cell, abs=1e-3))
    strange = evidence(seed=9)[0]
    strange.energies[0][0, 4:8, 4:8] += 60
    for rule in (threshold, PaperThreshold(), PaperThreshold("exact", "by-area")):
        wanted = rule.log_nfa(strange, (20, 20), 64)
        np.testing.assert_allclose(rule.log_nfa(strange.within(whole), (20, 20), 64), wanted, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(blend.anomaly_map(strange.within(whole), 64), blend.anomaly_map(strange, 64))


def test_cells_outside_have_no_part_in_what_is_learnt() -> None:
    roi = RegionOfInterest((64, 64), polygons=(((0, 0), (32, 0), (32, 64), (0, 64)),))
    good, spoilt = evidence(), evidence()
    for image in spoilt:
        for values in image.maps:
            values[:, :, values.shape[2] // 2 :] = 1000
    assert learnt([image.within(roi) for image in spoilt]) == learnt([image.within(roi) for image in good])
    assert learnt(spoilt) != learnt(good)


def test_fewer_cells_are_fewer_tests() -> None:
    roi = RegionOfInterest((64, 64), polygons=(((0, 0), (32, 0), (32, 64), (0, 64)),))
    quiet = [np.full((1, n, n), 20, np.float32) for n in (16, 8)]
    image = Evidence(quiet, [each / 20 for each in quiet])
    image.energies[0][0, 4:7, 2:5] = 100
    half_the_tests = number_of_tests([128, 32]) - number_of_tests([256, 64])
    for tests, fewer in (("total", half_the_tests), ("by-area", 2 * np.log10(0.5))):
        rule = PaperThreshold("exact", tests)  # type: ignore[arg-type]
        all_tests, few_tests = (rule.log_nfa(each, (20, 20), 16) for each in (image, image.within(roi)))
        np.testing.assert_allclose(few_tests[0, 4:7, 2:5] - all_tests[0, 4:7, 2:5], fewer, rtol=1e-4)
    threshold, _ = learnt(evidence())
    all_tests, few_tests = (threshold.log_nfa(each, (20, 20), 16) for each in (image, image.within(roi)))
    places = (1 + threshold.exponent) * np.log10(0.5)
    assert few_tests.min() - all_tests.min() == pytest.approx(places, abs=0.01)


# Predicting -----------------------------------------------------------------------------------------------------------


def left_half() -> RegionOfInterest:
    return RegionOfInterest((64, 64), polygons=(((0, 0), (30, 0), (30, 64), (0, 64)),))


@pytest.mark.parametrize("network", [Brightness, BrightnessAndDistance])
@pytest.mark.parametrize("tile", [False, True])
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_defect_outside_is_not_seen_and_the_same_inside_is_found(
    network: Callable[[], Any], tile: bool, calibrated: bool
) -> None:
    rng = np.random.default_rng(0)
    good = list(rng.integers(0, 60, (30, 64, 64, 3), np.uint8))
    predictor = Predictor(network(), PaperThreshold(n_tests="by-area"), tile=tile, roi=left_half())
    if calibrated:
        if network is BrightnessAndDistance:
            predictor.blend = Blend.from_good_images(predictor.evidence(good, 8))
        predictor.calibrate(good, alpha=0.1)
    part = rng.integers(0, 60, (64, 64, 3), np.uint8)
    outside, inside = part.copy(), part.copy()
    outside[:, 30:] = 255
    inside[24:40, 8:24] = 255
    plain, same, found = predictor.predict([part, outside, inside])
    assert alike(same, plain)
    assert not plain.mask[:, 30:].any()
    assert not plain.anomaly_map[:, 30:].any()
    np.testing.assert_array_equal(same.image, outside)
    assert found.is_anomalous
    assert not found.mask[:, 30:].any()
    assert found.mask[24:40, 8:24].mean() > 0.5


def test_a_defect_on_the_border_is_found_where_any_of_it_is_inside() -> None:
    """Its cell's middle lies outside."""
    predictor = brightness(tile=True, roi=RegionOfInterest((64, 64), polygons=(((0, 0), (34, 0), (34, 64), (0, 64)),)))
    rng = np.random.default_rng(0)
    predictor.calibrate(list(rng.integers(0, 20, (30, 64, 64, 3), np.uint8)), alpha=0.1)
    part = rng.integers(0, 20, (64, 64, 3), np.uint8)
    part[16:48, 32:34] = 255
    found = predictor.predict(part)
    assert found.is_anomalous
    assert found.mask[:, 32:34].any()
    assert not found.mask[:, 34:].any()


def test_outlines_count_from_the_background_inside() -> None:
    """Cells outside are 0 and many: with them in the background, heights would count from 0, and outlines be wider."""
    values = np.zeros((8, 8), np.float32)
    values[:, :3] = 4
    values[2:5, 1] = (5, 8, 7)
    found, inside = values == 8, values > 0
    roi = RegionOfInterest((8, 8), polygons=(((0, 0), (3, 0), (3, 8), (0, 8)),))
    rule = SimpleNamespace(cell=Background(1.0, 2.0, 1.0), exponent=0.0, drawing=Drawing(1.0, 9.0), shift=100.0)
    judge = partial(judge_fields, rule, values[None], values[None], (8, 8), roi)
    (nothing_found,) = judge()
    rule.shift -= float(nothing_found[[3, 4], 1].mean())  # between 8 and 7, so that the 8 alone is found
    assert (judge() < 0).sum() == 2
    assert draw_regions(values, found, rule.drawing, (8, 8), inside).sum() == 2
    assert draw_regions(values, found, rule.drawing, (8, 8)).sum() == 24  # as high as half of 8


def test_the_promise_holds_inside_whatever_is_outside() -> None:
    """Of 400 new good parts, half with a defect outside, about alpha are flagged; p-values are uniform."""
    rng = np.random.default_rng(5)
    predictor = brightness(roi=RegionOfInterest((32, 32), polygons=(((0, 0), (16, 0), (16, 32), (0, 32)),)))
    predictor.calibrate(noise_pictures(99, seed=1), alpha=0.1)
    parts = noise_pictures(400, seed=2)
    for part in parts[::2]:
        part[:, 17:] = rng.integers(100, 255)
    found = list(predictor.stream(iter(parts)))
    flagged = np.mean([each.is_anomalous for each in found])
    assert flagged == pytest.approx(0.1, abs=0.075)  # five standard deviations, of parts and of calibration images
    assert np.mean([each.p_value for each in found]) == pytest.approx(0.5, abs=0.15)
    everywhere = brightness()
    everywhere.calibrate(noise_pictures(99, seed=1), alpha=0.1)
    assert np.mean([everywhere.predict(part).is_anomalous for part in parts]) > 0.5


def test_a_full_mask_changes_no_bit() -> None:
    plain, full = brightness(), brightness(roi=RegionOfInterest((32, 32)))
    for each in (plain, full):
        each.calibrate(noise_pictures(30), alpha=0.1)
    assert full.to_dict() == plain.to_dict()
    part = noise_pictures(1, seed=3)[0]
    part[4:12, 4:12] = 250
    assert alike(full.predict(part), plain.predict(part))


def test_without_a_region_nothing_is_done_for_one() -> None:
    """Neither a copy nor a look at a pixel."""
    predictor, image = brightness(), noise_pictures(1)[0]
    assert predictor.seen(image) is image
    (found,) = predictor.evidence([image], 1)
    assert found.within(None) is found
    judged = predictor.judge(image, image, found)
    assert judged.shown is judged.image
    assert judged.roi is None


def test_pictures_are_darker_outside() -> None:
    predictor = brightness(roi=left_half())
    image = np.full((64, 64, 3), 200, np.uint8)
    shown = predictor.predict(image).shown
    np.testing.assert_array_equal(shown[:, :30], image[:, :30])
    np.testing.assert_array_equal(shown[:, 30:], 100)


def test_calibrating_takes_another_region() -> None:
    predictor = brightness()
    predictor.calibrate(noise_pictures(30), alpha=0.1)
    before = predictor.to_dict()
    mask = np.zeros((32, 32), bool)
    mask[:, :16] = True
    with pytest.raises(ValueError, match="has 48 x 32 pixels"):
        predictor.calibrate([np.zeros((48, 32, 3), np.uint8)], roi=mask)
    assert predictor.to_dict() == before
    predictor.calibrate(noise_pictures(30), alpha=0.1, roi=mask)
    assert predictor.roi is not None
    kept = predictor.to_dict()
    assert Predictor.from_dict(predictor.network, kept).to_dict() == kept
    predictor.calibrate(noise_pictures(30), alpha=0.1)
    assert predictor.roi is not None
    predictor.calibrate(noise_pictures(30), alpha=0.1, roi=np.ones((32, 32), bool))
    assert predictor.to_dict() == before


def test_an_image_of_another_shape_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (48, 32)).save(tmp_path / "wide.png")
    predictor = brightness(roi=RegionOfInterest((32, 32), ignore=(((0, 0), (8, 0), (8, 8)),)))
    with pytest.raises(ValueError, match=r"wide\.png has 32 x 48 pixels") as error:
        predictor.predict(tmp_path / "wide.png")
    one_line(error)
    failed, good = predictor.stream_all([tmp_path / "wide.png", np.zeros((64, 64, 3), np.uint8)])
    assert "wide.png has 32 x 48 pixels" in str(failed.error)  # type: ignore[union-attr]
    assert isinstance(good, Prediction)


# Learning -------------------------------------------------------------------------------------------------------------


def masked_cache() -> FeatureCache:
    """Six images of two scales, whose right half does not count and is huge."""
    cache = FeatureCache(6, [(8, 8, 8), (16, 4, 4)], layer_norm=False, exact=True)
    rng = np.random.default_rng(0)
    for array in cache.arrays:
        array[:] = rng.standard_normal(array.shape)
        array[..., array.shape[-1] // 2 :] = 50
    cache.inside = [np.zeros((6, n, n), bool) for n in (8, 4)]
    for mask in cache.inside:
        mask[..., : mask.shape[-1] // 2] = True
    return cache


def test_moments_and_memory_are_of_cells_inside() -> None:
    cache = masked_cache()
    for (mean, std), array in zip(channel_moments(cache, range(6)), cache.arrays, strict=True):
        cells = array[..., : array.shape[-1] // 2].transpose(1, 0, 2, 3).reshape(array.shape[1], -1)
        np.testing.assert_allclose(mean, cells.mean(axis=1), atol=1e-6)
        np.testing.assert_allclose(std, cells.std(axis=1), atol=1e-6)
    memory = MemoryBank.from_features(cache, range(6), size=1000)
    assert [len(kept) for kept in memory.vectors] == [6 * 8 * 4, 6 * 4 * 2]
    inside = [torch.from_numpy(mask[:1]) for mask in cache.inside or ()]
    far = [100 * torch.ones(1, c, n, n) for c, n in ((8, 8), (16, 4))]
    joined = memory.with_unknown_cells(far, [1.0, 1.0], inside)
    assert [len(new) - len(old) for new, old in zip(joined.vectors, memory.vectors, strict=True)] == [32, 8]


def test_the_loss_is_of_cells_inside() -> None:
    flow = UFlow((8, 16), ((8, 8), (4, 4)), steps=2, affine=True)
    with torch.no_grad():
        for affine in flow.affines:
            affine.weight.uniform_(0.5, 2)
    x = [torch.randn(2, 8, 8, 8), torch.randn(2, 16, 4, 4)]
    every = [torch.ones(2, 8, 8, dtype=torch.bool), torch.ones(2, 4, 4, dtype=torch.bool)]
    latents, log_det = flow(x)
    torch.testing.assert_close(flow(x, every)[1], log_det)
    torch.testing.assert_close(flow.nll(latents, log_det, every), flow.nll(latents, log_det))
    left = [mask.clone() for mask in every]
    for mask in left:
        mask[..., mask.shape[-1] // 2 :] = False
    right = [~mask for mask in left]
    parts = [flow.nll(latents, flow(x, each)[1], each) for each in (left, right)]
    torch.testing.assert_close(parts[0] + parts[1], flow.nll(latents, log_det))
    for mask in left:
        mask[:] = False
    assert not flow.nll(latents, flow(x, left)[1], left).any()


def test_likelihoods_are_in_numbers_of_cells_inside() -> None:
    cache = masked_cache()
    assert cache.dimensions(range(6)) == 8 * 32 + 16 * 8
    (batch,) = TrainingFeatures(cache, range(6), []).epoch(np.random.default_rng(0), 6)
    assert batch.inside is not None
    assert [tuple(mask.shape) for mask in batch.inside] == [(6, 8, 8), (6, 4, 4)]


@pytest.mark.parametrize("copies", [1, 8])
def test_masks_lie_as_tiles_and_copies_do(copies: int) -> None:
    mask = np.zeros((100, 140), bool)
    mask[10:60, 20:90] = True
    roi = RegionOfInterest.from_mask(mask)
    tiling = tiled((100, 140), (64, 64), 16)
    masks = masks_of_tiles(roi, [tiling, tiling], [(8, 8), (4, 4)], copies)
    image = np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2)
    tiles = [copy for tile in tiling.cut(image) for copy in turned_copies(tile)[:copies]] * 2
    for scale, stride in zip(masks, (8, 16), strict=True):
        shown = np.array([tile[..., 0].reshape(len(tile) // stride, stride, -1, stride).max((1, 3)) for tile in tiles])
        assert scale.shape == shown.shape
        assert not (scale < (shown > 250)).any()
        assert (scale != (shown > 0)).mean() < 0.05  # resizing blurs the border


Fit = Callable[..., Detector]


@pytest.fixture(scope="module")
def fit(dataset: Path, resnet18_file: Path) -> Fit:
    """`Detector.fit`, small, on images in each of which something on the right changes."""

    def fit_labelled(count: int = 30, **options: Any) -> Detector:
        options = {"settings": SETTINGS, "strides": (4, 8), "flow_steps": 1, "image_size": 64, **options}
        images = labelled(sorted((dataset / "train/good").glob("*.png"))[:count])
        options |= {"weights": resnet18_file, "alpha": ALPHA, "device": "cpu", "progress": False}
        return Detector.fit(images, "resnet18", **options)

    return fit_labelled


def labelled(paths: list[Path]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    images = [np.array(Image.open(path)) for path in paths]
    for image in images:
        image[rng.integers(60) :, rng.integers(52, 90) :] = rng.integers(255)
    return images


@pytest.fixture(scope="module")
def half(fit: Fit) -> Detector:
    """A detector that has learnt the left half of the images."""
    return fit(roi=LEFT)


def squares() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A good part, with a bright square right of the border, and with the same left of it."""
    part = texture(np.random.default_rng(52))
    outside, inside = part.copy(), part.copy()
    outside[10:70, 50:96] = 255
    inside[20:50, 10:40] = 255
    return part, outside, inside


def judge(model: Detector | Predictor) -> list[Prediction]:
    """Of each of `squares` by itself: bits may depend on the batch."""
    return [found for image in squares() for found in [model.predict(image)] if isinstance(found, Prediction)]


def test_a_detector_learns_and_judges_inside_alone(half: Detector, resnet18_file: Path, tmp_path: Path) -> None:
    part, outside, inside = judge(half)
    assert alike(outside, part)
    assert not part.is_anomalous
    assert inside.is_anomalous
    assert inside.mask[20:50, 10:40].mean() > 0.5
    assert not inside.mask[:, 50:].any()

    half.save(tmp_path / "half.uflow")
    again = load(tmp_path / "half.uflow", device="cpu", weights=resnet18_file)
    assert LEFT.is_same(again.predictor.roi)
    assert RegionOfInterest(**again.record["roi"]) == LEFT  # of lists, as JSON has them
    assert all(alike(one, other) for one, other in zip(judge(again), (part, outside, inside), strict=True))
    with pytest.raises(ValueError, match="another shape"):
        again.predict(np.zeros((96, 80, 3), np.uint8))
    assert isinstance(again.predict(np.zeros((160, 192, 3), np.uint8)), Prediction)


def test_good_images_that_are_added_are_learnt_inside_alone(half: Detector) -> None:
    part, outside, _ = squares()
    banks = []
    for image in (part, outside):
        new = half.at(ALPHA)
        new.add_good([image])
        assert new.network.memory is not None
        banks.append(new.network.memory.vectors)
    assert all(torch.equal(one, other) for one, other in zip(*banks, strict=True))


@pytest.mark.parametrize("copies", [False, True])
def test_tiles_and_copies_learn_the_region_too(fit: Fit, copies: bool) -> None:
    settings = TrainingSettings(epochs=1, batch_size=8, augment=copies, memory_size=100)
    part, outside, inside = judge(fit(14, settings=settings, tile=True, roi=LEFT))
    assert alike(outside, part)
    assert inside.is_anomalous


@pytest.mark.filterwarnings("ignore")  # of the exporter
def test_an_export_judges_inside_alone_and_a_full_mask_changes_no_bit(fit: Fit, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from uflow.deploy.export import export

    settings = TrainingSettings(epochs=1, batch_size=8, augment=False, memory_size=50)
    plain, full = fit(settings=settings), fit(settings=settings, roi=np.ones(SIZE, bool))
    assert full.predictor.to_dict() == plain.predictor.to_dict()
    assert all(alike(one, other) for one, other in zip(judge(full), judge(plain), strict=True))

    export(plain, tmp_path / "onnx")
    predictor = exported.load(tmp_path / "onnx")
    whole = Predictor.from_dict(predictor.network, predictor.to_dict() | {"roi": RegionOfInterest(SIZE).to_dict()})
    assert all(alike(one, other) for one, other in zip(judge(whole), judge(predictor), strict=True))
    rng = np.random.default_rng(7)
    predictor.calibrate([texture(rng) for _ in range(19)], alpha=ALPHA, roi=LEFT)
    exported.save_threshold(predictor)
    predictor = exported.load(tmp_path / "onnx")
    assert LEFT.is_same(predictor.roi)
    part, outside, inside = judge(predictor)
    assert alike(outside, part)
    assert inside.is_anomalous


def test_an_image_of_another_shape_is_named_before_training(dataset: Path, tmp_path: Path) -> None:
    for path in sorted((dataset / "train/good").glob("*.png"))[:3]:
        Image.open(path).save(tmp_path / path.name)
    Image.new("RGB", (48, 32)).save(tmp_path / "wide.png")
    with pytest.raises(ValueError, match=r"wide\.png has 32 x 48 pixels"):
        Detector.fit(tmp_path, image_size=64, settings=SETTINGS, alpha=ALPHA, progress=False, device="cpu", roi=LEFT)
