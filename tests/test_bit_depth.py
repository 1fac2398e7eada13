"""Cameras of 10, 12 or 14 bits, and of another gain: scaled alike when learning and when predicting."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import uflow
from conftest import one_line
from uflow.bit_depth import find_bit_depth
from uflow.images import highest_value, read_image
from uflow.recipe import Recipe
from uflow.training import TrainingSettings

pytestmark = pytest.mark.usefixtures("one_thread")


def save_16_bit(values: np.ndarray, path: Path) -> Path:
    Image.fromarray(values.astype(np.uint16)).save(path)
    return path


def spread(grey: np.ndarray, bits: int) -> np.ndarray:
    """An 8-bit image in so many bits, which become the same 8 again."""
    return np.rint(grey.astype(np.float64) * (2**bits - 1) / 255).astype(np.uint16)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_every_level_of_8_bits_survives(bits: int, tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    values = spread(levels, bits)
    for image in (save_16_bit(values, tmp_path / "a.png"), values, save_16_bit(values, tmp_path / "a.tif")):
        np.testing.assert_array_equal(read_image(image, bits)[..., 0], levels)
        assert highest_value(image) == 2**bits - 1
        assert find_bit_depth([image, np.zeros((2, 2), np.uint16), levels]) == bits


def test_all_16_bits_are_divided_by_257() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(read_image(values)[..., 0], np.rint(values / 257))


def test_8_bits_are_as_they_are(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    assert highest_value(tmp_path / "a.png") is None
    assert find_bit_depth([tmp_path / "a.png", levels, Image.fromarray(levels)]) == 16
    for bits in (8, 12, 16):
        np.testing.assert_array_equal(read_image(tmp_path / "a.png", bits)[..., 1], levels)


def test_what_uses_more_bits_is_an_error(tmp_path: Path) -> None:
    path = save_16_bit(np.full((4, 4), 4096), tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: its values reach 4096, and white is 4095 \(12 bits\)") as error:
        read_image(path, 12)
    assert "--bit-depth" in one_line(error)


@pytest.mark.parametrize("bit_depth", [7, 17, 12.0, "12", True])
def test_no_other_bit_depths(bit_depth: object) -> None:
    with pytest.raises(ValueError, match="bit_depth is a number of bits from 8 to 16, got"):
        Recipe(bit_depth=bit_depth)  # type: ignore[arg-type]


def test_values_are_divided_by_the_gain_and_end_at_white(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    for gain in (0.25, 0.8, 1.3, 2, 4.0):
        wanted = np.minimum(np.rint(levels / gain), 255)
        for source in (tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), levels, Image.fromarray(levels)):
            np.testing.assert_array_equal(read_image(source, gain=gain)[..., 2], wanted)
    np.testing.assert_array_equal(levels.ravel(), np.arange(256))  # what was given stays as it was
    colours = np.stack([levels, levels[::-1], levels.T], axis=2)
    np.testing.assert_array_equal(read_image(colours, gain=2), np.rint(colours / 2))


def test_sixteen_bits_are_divided_before_they_are_rounded(tmp_path: Path) -> None:
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    for source in (values, save_16_bit(values, tmp_path / "a.png"), save_16_bit(values, tmp_path / "a.tif")):
        darker = read_image(source, 12, 0.25)[..., 0]
        np.testing.assert_array_equal(darker, np.minimum(np.rint(values * (4 * 255 / 4095)), 255))
        assert len(np.unique(darker)) == 256, "of 8 bits only every fourth level would be there"
        np.testing.assert_array_equal(read_image(source, 12, 1), read_image(source, 12))
    with pytest.raises(ValueError, match="white is 4095"):
        read_image(values + 1, 12, 4)


def test_a_gain_of_1_shares_the_memory_of_an_array() -> None:
    colours = np.zeros((4, 4, 3), np.uint8)
    assert np.shares_memory(read_image(colours, gain=1.0), colours)


@pytest.mark.parametrize("gain", [0, -1, 0.2, 4.01, float("nan"), float("inf"), "2", True, None])
def test_no_other_gains(gain: object) -> None:
    said = "gain is how many times brighter pictures are than a model expects, from 0.25 to 4, got "
    for make in (lambda: Recipe(gain=gain), lambda: read_image(np.zeros((4, 4), np.uint8), gain=gain)):
        with pytest.raises(ValueError, match=said) as error:
            make()
        one_line(error)


def test_a_model_that_learnt_by_a_gain_keeps_it(dataset: Path, tmp_path: Path) -> None:
    good = [read_image(path)[..., 0] // 2 for path in sorted((dataset / "test/good").iterdir())]
    settings = TrainingSettings(epochs=1, augment=False, memory_size=20)
    options = {"image_size": 64, "flow_steps": 1, "settings": settings, "alpha": 0.3, "device": "cpu"}
    plain = uflow.Detector.fit(good, **options, progress=False)
    brighter = uflow.Detector.fit([2 * image for image in good], gain=2.0, **options, progress=False)
    assert "gain" not in plain.record
    assert "gain" not in plain.predictor.to_dict()
    assert brighter.record["gain"] == 2
    brighter.save(tmp_path / "m.uflow")
    loaded = uflow.load(tmp_path / "m.uflow", device="cpu")
    wanted = plain.predict(good[0])
    for found in (brighter.predict(2 * good[0]), loaded.predict(2 * good[0]), next(loaded.stream([2 * good[0]]))):
        np.testing.assert_array_equal(found.log_nfa, wanted.log_nfa)
        np.testing.assert_array_equal(found.image, wanted.image)


def test_a_model_scales_new_images_as_those_learnt_from(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = [read_image(path)[..., 0] for path in sorted((dataset / "test/good").iterdir())]
    good[0][0, 0] = 255
    paths = [save_16_bit(spread(image, 12), tmp_path / f"{i}.png") for i, image in enumerate(good)]
    settings = TrainingSettings(epochs=1, augment=False, memory_size=20)
    with caplog.at_level(logging.INFO, logger="uflow"):
        detector = uflow.Detector.fit(
            paths, image_size=64, flow_steps=1, settings=settings, alpha=0.3, device="cpu", progress=False
        )
    assert "16-bit images that use 12 bits (values up to 4095): 4095 is white" in caplog.text
    detector.save(tmp_path / "m.uflow")
    loaded = uflow.load(tmp_path / "m.uflow", device="cpu")
    assert loaded.predictor.bit_depth == detector.predictor.bit_depth == 12
    wanted = loaded.predict(good[1])
    for found in (loaded.predict(paths[1]), next(loaded.stream([paths[1]])), detector.predict(spread(good[1], 12))):
        np.testing.assert_array_equal(found.anomaly_map, wanted.anomaly_map)
        np.testing.assert_array_equal(found.image, wanted.image)
    with pytest.raises(ValueError, match="white is 4095"):
        loaded.predict(np.full((80, 96), 60000, np.uint16))
