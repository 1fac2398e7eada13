"""Pictures: calm where good parts are, order kept beyond, lines thin and smooth at any size, little memory."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image

from uflow import arrays
from uflow.pictures import ALPHA_LEVEL, OUTLINE_RGB, STEPS, ColourScale, draw_outlines, map_picture, overlay, panels

CALIBRATED = ColourScale(calm=0.5, alarm=0.6)


def square(left: float, top: float, side: float) -> np.ndarray:
    return np.array([(left, top), (left + side, top), (left + side, top + side), (left, top + side)], np.float32)


def lightness(colours: np.ndarray) -> np.ndarray:
    """L* of CIELAB, from 0 to 100."""
    share = colours / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    y = linear @ np.array([0.2126, 0.7152, 0.0722])
    return np.where(y > 0.008856, 116 * np.cbrt(y) - 16, 903.3 * y)


# Colours --------------------------------------------------------------------------------------------------------------


def test_level_of_alpha_is_marked_and_what_good_parts_reach_is_calm() -> None:
    values = np.array([0, 0.5, 0.5999, 0.6001, 0.9], np.float32)
    positions = CALIBRATED.positions(values)
    assert positions[2] < ALPHA_LEVEL < positions[3]
    below, above = CALIBRATED.colours()[CALIBRATED.indices(values[2:4])]
    assert lightness(above) - lightness(below) > 15  # a step that is seen, where neighbours differ by less than 1
    opacities = CALIBRATED.opacities()[CALIBRATED.indices(values)]
    assert opacities[:2].tolist() == [0, 0]
    assert 0 < opacities[2] < opacities[4]


@pytest.mark.parametrize("scale", [CALIBRATED, ColourScale(0.5, 0.999), ColourScale()])
def test_order_is_kept(scale: ColourScale) -> None:
    values = np.linspace(0, 1, 10001, dtype=np.float32)
    assert (np.diff(scale.positions(values)) >= 0).all()
    assert 0 <= scale.positions(values).min() <= scale.positions(values).max() <= 1
    light = lightness(scale.colours())
    assert (np.diff(light) > -0.5).all()  # rounding to 8 bits
    assert light[-1] > 95
    assert (np.diff(scale.opacities()) >= 0).all()


def test_colours_do_not_saturate_where_the_map_does() -> None:
    strange = 1 - 10.0 ** -np.arange(1, 7)  # 0.9, 0.99, ... which a grey picture shows alike
    assert len(set((255 * strange).round())) <= 4
    indices = CALIBRATED.indices(strange.astype(np.float32)).astype(int)
    assert (np.diff(indices) >= 2).all()
    assert np.ptp(indices) > STEPS / 8


def test_paper_map_that_is_high_everywhere_is_calm() -> None:
    """Good hazelnuts have maps of up to 0.97: black and transparent, while a defect of 0.999 is beyond alpha."""
    scale = ColourScale(calm=0.95, alarm=0.97)
    values = np.array([[0.4, 0.9, 0.94, 0.999]], np.float32)
    image = np.full((1, 4, 3), 90, np.uint8)
    shown = np.asarray(overlay(image, values, [], scale)).astype(int)
    assert (shown[0, :3] == 90).all()
    assert shown[0, 3, 0] > 130
    assert np.asarray(map_picture(values, scale))[0, 3, 0] > 200


# Lines ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [64, 700, 3000])
def test_line_is_thin_antialiased_and_in_its_place(side: int) -> None:
    picture = np.full((side, side, 3), 128, np.uint8)
    draw_outlines(picture, [square(side / 4, side / 4, side / 2)])
    across = picture[side // 2, : side // 2].astype(int)  # through the left edge, at side / 4
    cyan = np.flatnonzero(across[:, 2] > 200)
    assert abs(cyan.mean() + 0.5 - side / 4) <= 1
    assert 1 <= len(cyan) <= max(3, side / 200)
    assert across[:, 2].min() < 100  # its rim is dark: it shows on bright parts too
    assert (across[: side // 4 - max(6, side // 100)] == 128).all()
    slanted = np.full((side, side, 3), 128, np.uint8)
    draw_outlines(slanted, [np.array([(5, 5), (side - 5, side / 3), (side / 3, side - 5)], np.float32)])
    assert len(np.unique(slanted[..., 0])) > 20  # in between: antialiased


def test_a_line_goes_on_across_strips_and_over_the_border() -> None:
    rings = [square(-5, 200, 3000)]
    tall = np.zeros((5000, 60, 3), np.uint8)
    draw_outlines(tall, [square(20, 100, 20), square(10, 30, 40) * np.float32((1, 100))], width=2)
    column = tall[3000:4900, 8:12].astype(int).max(axis=(1, 2))
    assert column.min() > 150
    draw_outlines(tall, rings)


def test_outline_colour_is_there_for_the_smallest_region() -> None:
    picture = np.full((50, 50, 3), 255, np.uint8)
    draw_outlines(picture, [np.array([(20, 20.5), (20.5, 20), (21, 20.5), (20.5, 21)], np.float32)])
    nearest = np.abs(picture.astype(int) - OUTLINE_RGB).sum(axis=2).min()
    assert nearest < 120


def test_overlay_is_the_same_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    image, values = rng.integers(0, 256, (90, 70, 3), np.uint8), rng.random((90, 70), np.float32)
    rings = [square(10.5, 20.5, 40)]
    whole = np.asarray(overlay(image, values, rings, CALIBRATED))
    monkeypatch.setattr(arrays, "STRIP_PIXELS", 500)
    np.testing.assert_array_equal(np.asarray(overlay(image, values, rings, CALIBRATED)), whole)


def test_memory_of_an_overlay() -> None:
    height, width = 2400, 3200
    image, values = np.full((height, width, 3), 99, np.uint8), np.full((height, width), 0.7, np.float32)
    rings = [square(100, 100, 2000), square(300, 300, 5)]
    tracemalloc.start()
    overlay(image, values, rings, CALIBRATED)
    peak = tracemalloc.get_traced_memory()[1] / (height * width)
    tracemalloc.stop()
    assert peak + 3 < 12  # bytes a pixel; 3 are Pillow's own copy, which is not traced


# Several as one -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1500, 2000), (40, 30), (17, 900)])
def test_panels_have_one_size_and_show_the_smallest_spot(size: tuple[int, int]) -> None:
    image, mask = np.full((*size, 3), 100, np.uint8), np.zeros(size, bool)
    mask[size[0] // 2, size[1] // 3] = True
    values = np.where(mask, 0.99, 0.1).astype(np.float32)
    at = np.array([size[1] // 3, size[0] // 2], np.float32)
    ring = at + np.array([(0, 0.5), (0.5, 0), (1, 0.5), (0.5, 1)], np.float32)
    shown = panels(image, values, mask, [ring], CALIBRATED, side=300)
    assert {max(picture.size) for picture in shown.values()} == {300}
    assert len({picture.size for picture in shown.values()}) == 1
    assert np.asarray(shown["mask"]).max() == 255
    assert np.asarray(shown["map"]).max() > 150
    assert (np.asarray(shown["image"]) == 100).all()
    assert np.asarray(shown["outline"])[..., 2].max() > 150
    assert isinstance(shown["map"], Image.Image)
