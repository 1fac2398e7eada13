"""Streams of images, and images larger than the network: a formula as network, and a trained detector."""

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from uflow import tiling
from uflow.images import list_images, read_image, read_mask, resize_image
from uflow.predictor import Predictor
from uflow.segmentation import Background


class Brightness(Predictor):
    """Energies that are the mean brightness of each cell: of 32 x 32 pixels, strides 8 and 16, 400 channels a scale."""

    image_size, strides, latent_channels = (32, 32), (8, 16), (400, 400)

    def __init__(self, seconds: float = 0.0, **test) -> None:
        super().__init__(**test)
        self.seconds = seconds
        self.batches: list[int] = []

    def _network(self, images: np.ndarray) -> list[np.ndarray]:
        time.sleep(self.seconds)
        self.batches.append(len(images))
        grey = images.mean(axis=3, dtype=np.float32)
        return [grey.reshape(len(grey), 32 // s, s, 32 // s, s).mean(axis=(2, 4)) * 6 for s in self.strides]


def picture(value: int, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    return np.full((*size, 3), value, np.uint8)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("uflow")]


def wait_for(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


# Streams --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_stream_keeps_the_order_and_equals_one_by_one(detector, dataset: Path, batch_size: int) -> None:
    paths = list_images(dataset / "test")
    for path, streamed in zip(paths, detector.stream(dataset / "test", batch_size), strict=True):
        alone = detector.predict(path)
        assert streamed.path == path
        np.testing.assert_array_equal(streamed.image, alone.image)
        np.testing.assert_allclose(streamed.anomaly_map, alone.anomaly_map, atol=1e-5)
        np.testing.assert_allclose(streamed.log_nfa, alone.log_nfa, rtol=1e-4, atol=1e-2)
        assert [region.bbox for region in streamed.regions] == [region.bbox for region in alone.regions]


def test_an_endless_source_waits_for_the_caller() -> None:
    taken = 0

    def camera() -> Iterator[np.ndarray]:
        nonlocal taken
        while True:
            taken += 1
            yield picture(taken % 200)

    results = Brightness().predict(camera(), batch_size=4)
    for i in range(1, 30):
        assert next(results).image[0, 0, 0] == i
        assert taken <= i + 2 * 4 + 1
    time.sleep(0.2)
    assert taken <= 29 + 2 * 4 + 1
    results.close()
    wait_for(lambda: not threads())


def test_reading_network_and_finishing_overlap() -> None:
    """Three steps of 20 ms an image take 20 ms an image together."""
    predictor = Brightness(seconds=0.02)

    def camera() -> Iterator[np.ndarray]:
        for i in range(40):
            time.sleep(0.02)
            yield picture(i)

    started = time.perf_counter()
    for _ in predictor.stream(camera(), batch_size=1):
        time.sleep(0.02)
    assert time.perf_counter() - started < 0.8 * 40 * 0.06


def test_a_slow_camera_does_not_wait_for_a_full_batch() -> None:
    go_on = threading.Event()

    def camera() -> Iterator[np.ndarray]:
        yield picture(1)
        assert go_on.wait(10)
        yield picture(2)

    results = Brightness().stream(camera(), batch_size=8)
    assert next(results).image[0, 0, 0] == 1  # while the camera has not given the second
    go_on.set()
    assert next(results).image[0, 0, 0] == 2
    with pytest.raises(StopIteration):
        next(results)


def test_what_is_ready_passes_together() -> None:
    predictor = Brightness(seconds=0.05)
    assert len(list(predictor.stream([picture(i) for i in range(20)], batch_size=4))) == 20
    assert max(predictor.batches) == 4
    assert len(predictor.batches) < 20


def test_errors_come_to_the_caller_after_the_predictions_before(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")

    def camera() -> Iterator[np.ndarray]:
        yield picture(1)
        yield picture(2)
        raise RuntimeError("the camera was unplugged")

    class Broken(Brightness):
        def _network(self, images: np.ndarray) -> list[np.ndarray]:
            if images.max() == 3:
                raise RuntimeError("out of memory")
            return super()._network(images)

    for predictor, source, message in (
        (Brightness(), camera(), "unplugged"),
        (Brightness(), [picture(1), picture(2), tmp_path / "broken.png", picture(4)], "cannot read .*broken"),
        (Broken(), itertools.chain([picture(1)], map(picture, (2, 3, 4))), "out of memory"),
        (Brightness(background=[Background(1, 1, 1)]), iter([]), None),
        (Brightness(background=[Background(1, 1, 1)]), [picture(0)], "one Background per scale"),
    ):
        results = predictor.stream(source, batch_size=1)
        seen = []
        if message is None:
            assert list(results) == []
        else:
            with pytest.raises((RuntimeError, ValueError), match=message):
                seen += (result.image[0, 0, 0] for result in results)
            expected = [] if "Background" in message else [1, 2]
            assert seen == expected or expected[: len(seen)] == seen
        wait_for(lambda: not threads())


def test_an_abandoned_stream_ends_its_threads() -> None:
    results = Brightness().stream(picture(i % 9) for i in itertools.count())
    next(results)
    assert threads()
    del results
    wait_for(lambda: not threads())


def test_bad_batch_size() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        next(Brightness().stream([picture(1)], batch_size=0))


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
    assert {one.shape for one in tiles} == {(*tile, 3)}
    for stride in (8, 16):
        cells = [one[::stride, ::stride, 0].astype(np.float32) for one in tiles]
        np.testing.assert_array_equal(t.stitch(cells), picture[::stride, ::stride, 0])
    # Where the tile ends inside the image, no cell within the margin of its border is used.
    border = np.zeros(tile, np.float32)
    border[:16], border[-16:], border[:, :16], border[:, -16:] = 1, 1, 1, 1
    joined = t.stitch([border[::16, ::16]] * len(t))
    if min(tile) >= 64:
        assert joined[1:-1, 1:-1].sum() == 0


def test_a_tiled_image_is_judged_as_one() -> None:
    """Equal to a network as large as the image where the network is local; a defect across borders is one region."""
    image = picture(40, (96, 224))
    image[40:56, 20:200] = 250

    class Large(Brightness):
        image_size = (96, 224)

        def _network(self, images: np.ndarray) -> list[np.ndarray]:
            grey = images.mean(axis=3, dtype=np.float32)
            return [grey.reshape(len(grey), 96 // s, s, 224 // s, s).mean(axis=(2, 4)) * 6 for s in self.strides]

    for test in ({}, {"tail": "exact", "n_tests": "by-area"}):
        tiled, whole = Brightness(tile=True, **test), Large(**test)
        seen: list[tuple[int, int]] = []
        (a,) = tiled.stream([image], 4, on_tiles=lambda done, total, seen=seen: seen.append((done, total)))
        b = whole.predict(image)
        assert seen[-1] == (65, 65) == (len(tiling.tiled((96, 224), (32, 32), 16)),) * 2
        np.testing.assert_array_equal(a.log_nfa, b.log_nfa)
        np.testing.assert_array_equal(a.anomaly_map, b.anomaly_map)
        assert len(a.regions) == len(b.regions) == 1
        assert a.regions[0].area > 2000


def test_an_image_of_the_networks_size_is_one_tile(detector, dataset: Path) -> None:
    image = resize_image(read_image(dataset / "test/square/00.png"), detector.image_size)
    before = detector.predict(image)
    detector.tile = True
    try:
        tiled = detector.predict(image)
    finally:
        detector.tile = False
    np.testing.assert_array_equal(tiled.log_nfa, before.log_nfa)
    np.testing.assert_array_equal(tiled.anomaly_map, before.anomaly_map)


def test_a_detector_learns_and_predicts_in_tiles(dataset: Path, tmp_path: Path) -> None:
    import uflow
    from uflow.training import TrainingSettings

    wide = [np.concatenate([read_image(path)] * 2, axis=1) for path in list_images(dataset / "train/good")]
    fitted = uflow.Detector.fit(
        wide, image_size=64, tile=True, settings=TrainingSettings(3, 4), alpha=0.2, device="cpu", progress=False
    )
    fitted.save(tmp_path / "tiled.uflow")
    loaded = uflow.load(tmp_path / "tiled.uflow", device="cpu")
    assert loaded.tile
    square = np.concatenate([read_image(dataset / f"test/square/0{i}.png") for i in range(2)], axis=1)
    result = loaded.predict(square)
    assert result.log_nfa.shape == (80, 192)
    assert result.is_anomalous
    truth = np.concatenate([read_mask(dataset / f"ground_truth/square/0{i}_mask.png") for i in range(2)], axis=1)
    assert result.anomaly_map[truth].mean() > result.anomaly_map[~truth].mean()
    wide[0] = wide[0][:, :150]  # sizes may differ
    loaded.calibrate(wide, alpha=0.1)
    assert sum(p.is_anomalous for p in loaded.predict(wide)) <= 3
