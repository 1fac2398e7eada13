"""The predictor with a formula as network: streams of images, images larger than the network, settings as JSON."""

import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import stream_threads, wait_for
from uflow import tiling
from uflow.detector import Detector
from uflow.images import list_images, read_image, resize_image
from uflow.outline import Drawing
from uflow.prediction import Prediction
from uflow.predictor import Predictor
from uflow.scoring import Blend, Evidence, EvidenceWeights, anomaly_map_from_energies
from uflow.segmentation import Background
from uflow.threshold import CalibratedThreshold, PaperThreshold

PATIENCE_S = 10.0  # that threads have to end

UNIT = Background(1, 1, 1)
WEIGHTS = EvidenceWeights((400.0, 400.0), 0.5, (2.0,))
DRAWING = Drawing(1.0, 2.0)
OF_ONE_SCALE = CalibratedThreshold(EvidenceWeights((1.0,), 1.0), UNIT, 0.5, DRAWING, (0.0,), 0.5)


class Brightness:
    """Energies that are the mean brightness of each cell: of 32 x 32 pixels, strides 8 and 16, 400 channels a scale."""

    image_size, strides, latent_channels = (32, 32), (8, 16), (400, 400)

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.batches: list[int] = []

    def evidence(self, images: np.ndarray) -> Evidence:
        time.sleep(self.seconds)
        self.batches.append(len(images))
        grey = images.mean(axis=3, dtype=np.float32)
        height, width = self.image_size
        cells = [grey.reshape(len(grey), height // s, s, width // s, s) for s in self.strides]
        return Evidence([6 * cell.mean(axis=(2, 4)) for cell in cells])

    def phases(self) -> list[tuple[str, Callable[[Any], Any]]]:
        return [("network", self.evidence)]


class LargeBrightness(Brightness):
    image_size = (96, 224)


class BrightnessAndDistance(Brightness):
    """With distances of the finest scale: the brightness itself."""

    def evidence(self, images: np.ndarray) -> Evidence:
        energies = super().evidence(images).energies
        return Evidence(energies, [energies[0] / 6])


class FailsAtThree(Brightness):
    def evidence(self, images: np.ndarray) -> Evidence:
        if images.max() == 3:
            raise RuntimeError("out of memory")
        return super().evidence(images)


def brightness(seconds: float = 0.0, **options: Any) -> Predictor:
    return Predictor(Brightness(seconds), **options)


def picture(value: int, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    return np.full((*size, 3), value, np.uint8)


def noise_pictures(count: int, seed: int = 0, most: int = 60) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, most, (count, 32, 32, 3), np.uint8))


# One image, a list, a stream ------------------------------------------------------------------------------------------


def test_the_source_decides_what_is_given(tmp_path: Path) -> None:
    path = tmp_path / "0.png"
    Image.fromarray(picture(9)).save(path)
    predictor = brightness()
    for one in (path, str(path), picture(9), Image.fromarray(picture(9))):
        result = predictor.predict(one)
        assert isinstance(result, Prediction)
        assert result.path == (path if isinstance(one, str | Path) else None)
        np.testing.assert_array_equal(result.image, picture(9))
    assert [result.image.max() for result in predictor.predict([picture(1), picture(2)])] == [1, 2]
    for many in (tmp_path, str(tmp_path / "*.png"), iter([picture(9)])):
        results = predictor.predict(many)
        assert isinstance(results, Iterator)
        assert [result.image.max() for result in results] == [9]


def test_judges_by_map_threshold_and_regions() -> None:
    image = picture(40)
    image[8:24, 8:24] = 250
    result = brightness().predict(image)
    evidence = Brightness().evidence(image[None])
    wanted = anomaly_map_from_energies(evidence.energies, (400, 400), 32)
    np.testing.assert_array_equal(result.anomaly_map, wanted[0])
    np.testing.assert_array_equal(result.log_nfa, PaperThreshold().log_nfa(evidence, (400, 400), 32)[0])
    np.testing.assert_array_equal(result.mask, result.log_nfa < 0)
    assert result.score == result.anomaly_map.max()
    assert (result.is_anomalous, result.p_value) == (True, None)
    assert sum(region.area for region in result.regions) == result.mask.sum()


def test_a_blend_makes_the_map_of_all_evidence_and_leaves_the_papers_test() -> None:
    image = picture(3)
    image[:8, :8] = 9
    blend = Blend(WEIGHTS, reference=20.0)
    alone, without = brightness().predict(image), Predictor(BrightnessAndDistance()).predict(image)
    both = Predictor(BrightnessAndDistance(), blend=blend).predict(image)
    np.testing.assert_array_equal(without.anomaly_map, alone.anomaly_map)
    np.testing.assert_array_equal(both.log_nfa, alone.log_nfa)
    evidence = BrightnessAndDistance().evidence(image[None])
    np.testing.assert_array_equal(both.anomaly_map, blend.anomaly_map(evidence, 32)[0])
    assert both.score == both.anomaly_map.max() == both.anomaly_map[0, 0] != alone.score


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_stream_keeps_the_order_and_equals_one_by_one(detector: Detector, dataset: Path, batch_size: int) -> None:
    paths = list_images(dataset / "test")
    for path, streamed in zip(paths, detector.stream(dataset / "test", batch_size), strict=True):
        alone = detector.predict(path)
        assert streamed.path == path
        np.testing.assert_array_equal(streamed.image, alone.image)
        np.testing.assert_allclose(streamed.anomaly_map, alone.anomaly_map, atol=1e-5)
        np.testing.assert_allclose(streamed.log_nfa, alone.log_nfa, rtol=1e-4, atol=1e-2)
        assert [region.box for region in streamed.regions] == [region.box for region in alone.regions]


def test_an_endless_source_waits_for_the_caller() -> None:
    taken = 0

    def camera() -> Iterator[np.ndarray]:
        nonlocal taken
        while True:
            taken += 1
            yield picture(taken % 200)

    results = brightness().predict(camera(), batch_size=4)
    for i in range(1, 30):
        assert next(results).image[0, 0, 0] == i
        assert taken <= i + 2 * 4 + 1
    time.sleep(0.2)
    assert taken <= 29 + 2 * 4 + 1
    results.close()
    wait_for(lambda: not stream_threads(), PATIENCE_S)


def test_what_is_ready_passes_together() -> None:
    predictor = brightness(seconds=0.05)
    assert len(list(predictor.stream([picture(i) for i in range(20)], batch_size=4))) == 20
    assert max(predictor.network.batches) == 4
    assert len(predictor.network.batches) < 20


def unplugged_camera() -> Iterator[np.ndarray]:
    yield picture(1)
    yield picture(2)
    raise RuntimeError("the camera was unplugged")


def test_errors_come_to_the_caller_after_the_predictions_before(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    for predictor, source, message, expected in (
        (brightness(), unplugged_camera(), "unplugged", [1, 2]),
        (brightness(), [picture(1), picture(2), tmp_path / "broken.png"], "cannot read .*broken", [1, 2]),
        (Predictor(FailsAtThree()), map(picture, (1, 2, 3, 4)), "out of memory", [1, 2]),
        (brightness(threshold=OF_ONE_SCALE), [picture(0)], "one dof per scale", []),
    ):
        results = predictor.stream(source, batch_size=1)
        seen: list[int] = []
        with pytest.raises((RuntimeError, ValueError), match=message):
            seen += (result.image[0, 0, 0] for result in results)
        assert seen == expected
        wait_for(lambda: not stream_threads(), PATIENCE_S)
    assert list(brightness(threshold=OF_ONE_SCALE).stream(iter([]))) == []


def test_an_abandoned_stream_ends_its_threads() -> None:
    results = brightness().stream(picture(i % 9) for i in itertools.count())
    next(results)
    assert stream_threads()
    del results
    wait_for(lambda: not stream_threads(), PATIENCE_S)


def test_run_gives_what_is_finished_of_each_image() -> None:
    pictures = [Image.fromarray(picture(i)) for i in range(5)]
    finished = brightness().run(pictures, lambda source, image, evidence: (source, image, evidence), 2)
    for i, (source, image, evidence) in enumerate(finished):
        assert source is pictures[i]
        np.testing.assert_array_equal(image, picture(i))
        assert [e.tolist() for e in evidence.energies] == [[[[6.0 * i] * n] * n] for n in (4, 2)]


def test_bad_batch_size() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        brightness().stream([picture(1)], batch_size=0)
    for batch_size, message in ((0, "at least 1, got 0"), (-3, "at least 1, got -3"), (2**70, "at most ")):
        with pytest.raises(ValueError, match=f"batch_size must be {message}"):
            brightness().predict(picture(1), batch_size=batch_size)
    with pytest.raises(ValueError, match=r"batch_size must be a whole number, got 1\.5"):
        brightness().stream([picture(1)], batch_size=1.5)


@pytest.mark.parametrize("source", [None, 3])
def test_what_is_no_image_is_refused_at_the_call(source: Any) -> None:
    with pytest.raises(
        TypeError, match=f"images must be paths, PIL images or arrays, or several of these; got {source}"
    ):
        brightness().predict(source)


# Tiles ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", [(32, 32), (33, 40), (64, 32), (90, 130), (20, 500), (257, 31)])
@pytest.mark.parametrize("tile", [(32, 32), (64, 96), (128, 64)])
def test_every_cell_comes_from_a_tile_that_holds_it_away_from_its_border(
    image: tuple[int, int], tile: tuple[int, int]
) -> None:
    t = tiling.tiled(image, tile, 16)
    assert t.size[0] % 16 == t.size[1] % 16 == 0
    assert all(abs(a - b) <= 8 or a == c > b for a, b, c in zip(t.size, image, tile, strict=True))
    numbers = np.arange(t.size[0] * t.size[1] * 3, dtype=np.int64) % 251
    picture = numbers.astype(np.uint8).reshape(*t.size, 3)
    tiles = list(t.cut(picture))
    assert len(tiles) == len(t)
    assert {part.shape for part in tiles} == {(*tile, 3)}
    for stride in (8, 16):
        cells = [part[::stride, ::stride, 0].astype(np.float32) for part in tiles]
        np.testing.assert_array_equal(t.stitch(cells), picture[::stride, ::stride, 0])
    # Where the tile ends inside the image, no cell within the margin of its border is used.
    border = np.zeros(tile, np.float32)
    border[:16], border[-16:], border[:, :16], border[:, -16:] = 1, 1, 1, 1
    joined = t.stitch([border[::16, ::16]] * len(t))
    if min(tile) >= 64:
        assert joined[1:-1, 1:-1].sum() == 0


@pytest.mark.parametrize("threshold", [PaperThreshold(), PaperThreshold("exact", "by-area")])
def test_a_tiled_image_is_judged_as_one(threshold: PaperThreshold) -> None:
    """Equal to a network as large as the image where the network is local; a defect across borders is one region."""
    image = picture(40, (96, 224))
    image[40:56, 20:200] = 250
    tiled, whole = brightness(threshold=threshold, tile=True), Predictor(LargeBrightness(), threshold)
    seen: list[tuple[int, int]] = []
    (a,) = tiled.stream([image], 4, on_tiles=lambda done, total: seen.append((done, total)))
    b = whole.predict(image)
    assert seen[-1] == (65, 65) == (len(tiling.tiled((96, 224), (32, 32), 16)),) * 2
    np.testing.assert_array_equal(a.log_nfa, b.log_nfa)
    np.testing.assert_array_equal(a.anomaly_map, b.anomaly_map)
    assert len(a.regions) == len(b.regions) == 1
    assert a.regions[0].area > 2000


def test_a_tiled_stream_holds_three_images() -> None:
    taken = 0

    def camera() -> Iterator[np.ndarray]:
        nonlocal taken
        while True:
            taken += 1
            yield picture(taken % 200, (40, 40))

    results = brightness(tile=True).stream(camera(), batch_size=8)
    for i in range(1, 6):
        next(results)
        assert taken <= i + 3
    results.close()


def test_tiles_of_several_images_in_batches_of_any_size_find_their_image() -> None:
    images = [picture(i, size) for i, size in enumerate([(32, 32), (80, 40), (32, 96)])]
    predictor = brightness(tile=True)
    tilings = [predictor.tiling(image) for image in images]
    for batch_size in (1, 2, 100):
        found = predictor.evidence(images, batch_size)
        for i, (own, tiled) in enumerate(zip(found, tilings, strict=True)):
            height, width = tiled.size
            assert [e.shape for e in own.energies] == [(1, height // s, width // s) for s in (8, 16)]
            assert all((e == 6 * i).all() for e in own.energies)
    tile_evidence = [Evidence([np.full((1, 4, 4), i, np.float32)], [np.full((1, 2, 2), -i)]) for i in range(2)]
    first, second = tiling.evidence_of_tiles([tiling.whole((32, 32), 16)] * 2, tile_evidence)
    assert (first.energies[0].max(), second.energies[0].max(), second.distances[0].max()) == (0, 1, -1)


def test_an_image_of_the_networks_size_is_one_tile(detector: Detector, dataset: Path) -> None:
    image = resize_image(read_image(dataset / "test/square/00.png"), detector.network.image_size)
    own = detector.predictor
    tiled = Predictor(own.network, own.threshold, own.blend, tile=True).predict(image)
    before = detector.predict(image)
    np.testing.assert_array_equal(tiled.log_nfa, before.log_nfa)
    np.testing.assert_array_equal(tiled.anomaly_map, before.anomaly_map)


# Calibrating ----------------------------------------------------------------------------------------------------------


def test_calibrates_on_images_as_they_are_predicted() -> None:
    predictor, images = brightness(), noise_pictures(9)
    predictor.calibrate(images, alpha=0.2, batch_size=1)
    evidence = [Brightness().evidence(image[None]) for image in images]
    largest = [float(predictor.anomaly_map(each, each.energies[0].shape[1:]).max()) for each in evidence]
    assert predictor.threshold == CalibratedThreshold.from_good_images(evidence, 0.2, map_maxima=largest)
    assert sum(prediction.is_anomalous for prediction in predictor.predict(images)) <= 1
    strange = predictor.predict(noise_pictures(1, seed=1, most=250)[0])
    assert strange.is_anomalous
    assert strange.p_value == pytest.approx(1 / 10)


def test_the_p_value_is_the_decision() -> None:
    predictor = brightness()
    predictor.calibrate(noise_pictures(19), alpha=0.1)
    for image in noise_pictures(20, seed=2, most=64):
        result = predictor.predict(image)
        assert result.is_anomalous == (result.p_value <= 0.1)


@pytest.mark.parametrize("tile", [False, True])
def test_another_alpha_needs_no_images_and_equals_a_new_calibration(tile: bool) -> None:
    size = (48, 80) if tile else (32, 32)
    rng = np.random.default_rng(5)
    good, new = (list(rng.integers(0, most, (count, *size, 3), np.uint8)) for count, most in ((19, 60), (30, 60)))
    predictor = brightness(tile=tile)
    predictor.calibrate(good, alpha=0.05, look_alpha=0.1)
    before = predictor.threshold
    other, again = predictor.at(0.2, 0.4), brightness(tile=tile)
    again.calibrate(good, alpha=0.2, look_alpha=0.4)
    assert (other.threshold, other.tile) == (again.threshold, tile)
    assert (predictor.threshold, other.network) == (before, predictor.network)
    results = other.predict(new)
    assert {result.verdict for result in results} == {"good", "look", "reject"}
    for result, first in zip(results, predictor.predict(new), strict=True):
        assert result.p_value == first.p_value  # the p-value does not hang on alpha
        expected = "reject" if result.p_value <= 0.2 else "look" if result.p_value <= 0.4 else "good"
        assert result.verdict == result.to_dict()["verdict"] == expected


def test_without_calibration_the_verdict_says_what_is_anomalous() -> None:
    image = picture(40)
    image[8:24, 8:24] = 250
    assert [brightness().predict(each).verdict for each in (picture(9), image)] == ["good", "reject"]
    with pytest.raises(ValueError, match="the paper's test has no alpha"):
        brightness().at(0.1)


def test_an_alpha_that_the_images_do_not_support_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    predictor = brightness()
    predictor.calibrate(noise_pictures(9), alpha=0.2)
    assert "support alpha" not in caplog.text
    predictor.at(0.05)
    assert "9 calibration images support alpha >= 0.1, not 0.05" in caplog.text


def test_flagged_images_join_the_calibration_alone(caplog: pytest.LogCaptureFixture) -> None:
    predictor, good = brightness(), noise_pictures(19)
    predictor.calibrate(good, alpha=0.1)
    strange = noise_pictures(2, seed=1, most=250)
    before = predictor.threshold
    first = predictor.predict(strange)
    assert [result.is_anomalous for result in first] == [True, True]
    with caplog.at_level("INFO", logger="uflow"):
        predictor.add_good(strange)
    assert "good images added: now 2, in all 2 different ones; still flagged: 'number 2'" in caplog.text
    assert "the limit is where 2 added images put it" in caplog.text  # of 2 ranks that alpha leaves
    assert [image.name for image in predictor.threshold.added] == ["number 1", "number 2"]
    assert predictor.threshold.minima == before.minima
    again = predictor.predict(strange)
    assert [result.is_anomalous for result in again] == [False, True]
    assert [result.to_dict()["calibration_images"] for result in again] == [None, None]
    assert [result.p_value for result in again] == [3 / 20, 2 / 20]  # the images themselves count too
    assert [result.p_value for result in first] == [1 / 20, 1 / 20]
    assert predictor.at(0.3).threshold.added == predictor.threshold.added
    with pytest.raises(ValueError, match="there are no p-values that are uniform"):
        predictor.monitor()
    for nothing, rule, message in (([], predictor, "got none"), (strange, brightness(), "calibrate on good images")):
        with pytest.raises(ValueError, match=message):
            rule.add_good(nothing)


def test_a_monitor_of_the_calibration() -> None:
    predictor = brightness()
    predictor.calibrate(noise_pictures(19), alpha=0.1)
    watch = predictor.monitor(false_alarm=0.05)
    for result in predictor.predict(noise_pictures(30, seed=3, most=75)):
        watch.add(result.p_value)
    assert watch.alarm is not None
    assert (watch.calibration_images, watch.alpha) == (19, 0.1)
    with pytest.raises(ValueError, match="there are no p-values that are uniform"):
        brightness().monitor()


def test_a_calibration_that_fails_changes_nothing() -> None:
    predictor = brightness()
    predictor.calibrate(noise_pictures(9), alpha=0.2)
    before = predictor.threshold
    for images, alpha, message in (
        ([picture(9)] * 5, 0.2, "does not vary"),
        (noise_pictures(5), 1.5, "alpha is a probability"),
        ([np.full((4, 4, 3), np.nan)], 0.2, "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            predictor.calibrate(images, alpha)
        assert predictor.threshold is before


def test_no_images_to_calibrate_on_is_the_papers_test(caplog: pytest.LogCaptureFixture) -> None:
    predictor = brightness()
    predictor.calibrate(noise_pictures(9), alpha=0.2)
    predictor.calibrate([])
    assert predictor.threshold == PaperThreshold()
    assert "no calibration images: the paper's test" in caplog.text


# Settings -------------------------------------------------------------------------------------------------------------


def test_settings_survive_json() -> None:
    calibrated = CalibratedThreshold(WEIGHTS, Background(2, 3, 1), 0.5, DRAWING, (0.5, -1.0), 0.3)
    for options in (
        {},
        {"threshold": PaperThreshold("exact", "by-area"), "tile": True},
        {"threshold": calibrated, "blend": Blend(WEIGHTS, 7.5), "selected_on_test": True},
    ):
        content = json.loads(json.dumps(brightness(**options).to_dict()))
        again = Predictor.from_dict(Brightness(), content)
        assert (again.threshold, again.blend) == (options.get("threshold", PaperThreshold()), options.get("blend"))
        assert (again.tile, again.selected_on_test) == (
            options.get("tile", False),
            options.get("selected_on_test", False),
        )
        assert again.to_dict() == brightness(**options).to_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": None}, "the predictor is damaged: it: threshold should be an object"),
        ({"blend": {"share": 0.5}}, "the blend is damaged"),
        ({"tile": True, "blend": 3}, "the predictor is damaged: it: blend should be an object"),
        ({"blend": {"weights": asdict(WEIGHTS), "reference": 0}}, "reference must be positive and finite"),
    ],
)
def test_damaged_settings_are_one_line(changes: dict[str, Any], message: str) -> None:
    whole = brightness().to_dict()
    with pytest.raises(ValueError, match=message) as error:
        Predictor.from_dict(Brightness(), whole | changes)
    assert "\n" not in str(error.value)
    for name in whole:
        with pytest.raises(ValueError, match=f"the predictor is damaged: it has no '{name}'"):
            Predictor.from_dict(Brightness(), {key: value for key, value in whole.items() if key != name})
