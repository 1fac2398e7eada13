"""Pictures of an image, its anomaly map and its outlines: colours on the scale of good parts, thin smooth lines.

Needs numpy and Pillow alone. Large images are drawn strip by strip: memory stays small beside the picture's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .arrays import strips

__all__ = ["ColourScale", "draw_outlines", "map_picture", "overlay", "panels", "shrink", "side_by_side"]

OUTLINE_RGB = (0, 255, 255)  # cyan: rare on parts, and far from every colour of the map
RIM_SHARE = 0.6  # of the light that the line's dark rim takes away
LINE_SHARE = 1 / 450  # of the picture's longer side, that the line is wide
MIN_LINE = 1.6  # pixels
SUPERSAMPLING = 4  # times, that lines are drawn larger before they are shrunk

# Black over violet below the level of alpha; from there on red over orange to pale yellow. Lightness rises all along,
# also for the colour-blind, and steps up at the level.
COLD_RGB = ((0, 0, 4), (24, 14, 58), (60, 22, 98), (98, 34, 128))
HOT_RGB = ((216, 52, 60), (238, 96, 40), (250, 148, 16), (250, 204, 60), (252, 255, 176))
# The same without a step, for a model that has seen no good images.
PLAIN_RGB = ((0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85), (227, 89, 51), (249, 140, 10),
             (249, 201, 50), (252, 255, 164))  # fmt: skip
STEPS = 256  # colours of a scale
MAP_OF_NORMAL = 0.5  # of a map that was not calibrated: normal pixels have about 1 - exp(-1/2) = 0.39
ALPHA_LEVEL = 0.5  # where on a scale of colours the level of alpha lies
MAX_OPACITY = 0.55  # of a colour over an image: what is strange must still be seen
LARGEST_MAP = 1 - 2.0**-24  # the largest float32 below 1


@dataclass(frozen=True)
class ColourScale:
    """The colours of an anomaly map.

    The map saturates: 0.99 and 0.9999 look alike. Colours go by ``-log(1 - map)``, which has the same order and no
    upper end: the level of alpha is in the middle of the scale, and twice as far is half-way from there to its end.

    Attributes:
        calm: what the map of a typical good image reaches: up to there an overlay shows the image as it is.
        alarm: what the maps of a share alpha of good images exceed; None for a model that has seen no good images,
            whose colours go by the map itself.
    """

    calm: float = MAP_OF_NORMAL
    alarm: float | None = None

    def positions(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Where values of the map lie on the scale: float32 from 0 to 1; the level of alpha is `ALPHA_LEVEL`."""
        if self.alarm is None:
            return np.clip(values, 0, 1).astype(np.float32)
        ratio = _unbounded(values) / max(float(_unbounded(np.float32(self.alarm))), 1e-6)
        return np.where(ratio < 1, ALPHA_LEVEL * ratio, 1 - (1 - ALPHA_LEVEL) / np.maximum(ratio, 1)).astype(np.float32)

    def colours(self) -> NDArray[np.uint8]:
        """The colours from one end to the other: (`STEPS`, 3)."""
        if self.alarm is None:
            return _gradient(PLAIN_RGB, STEPS)
        cold = round(ALPHA_LEVEL * STEPS)
        return np.concatenate([_gradient(COLD_RGB, cold), _gradient(HOT_RGB, STEPS - cold)])

    def opacities(self) -> NDArray[np.float32]:
        """How much of the colour shows over an image: (`STEPS`,), 0 up to `calm`."""
        (calm,) = self.positions(np.array([self.calm], np.float32))
        full = 1.0 if self.alarm is None else (1 + ALPHA_LEVEL) / 2
        along = (np.arange(STEPS, dtype=np.float32) / STEPS - calm) / max(full - float(calm), 1e-6)
        return np.asarray(MAX_OPACITY * np.clip(along, 0, 1), np.float32)

    def indices(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Which of the colours each value of the map has."""
        return np.minimum(self.positions(values) * STEPS, STEPS - 1).astype(np.uint8)

    def rgba(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """A map as a layer over its image: (H, W) float32 to (H, W, 4) uint8, clear up to `calm`."""
        colours = np.column_stack([self.colours(), (255 * self.opacities()).round().astype(np.uint8)])
        return colours[self.indices(values)]


def _unbounded(values: NDArray[np.float32] | np.float32) -> NDArray[np.float32]:
    return np.asarray(-np.log1p(-np.clip(values, 0, np.float32(LARGEST_MAP))), np.float32)


def _gradient(stops: Sequence[tuple[int, int, int]], steps: int) -> NDArray[np.uint8]:
    at, knots = np.linspace(0, 1, steps), np.linspace(0, 1, len(stops))
    channels = [np.interp(at, knots, channel) for channel in np.transpose(stops)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def map_picture(anomaly_map: NDArray[np.float32], scale: ColourScale) -> Image.Image:
    """The map in the colours of a scale: (H, W) float32 to an RGB picture as large."""
    picture = np.empty((*anomaly_map.shape, 3), np.uint8)
    colours = scale.colours()
    for rows in strips(anomaly_map.shape):
        picture[rows] = colours[scale.indices(anomaly_map[rows])]
    return Image.fromarray(picture)


def overlay(
    image: NDArray[np.uint8],
    anomaly_map: NDArray[np.float32],
    rings: Sequence[NDArray[np.float32]],
    scale: ColourScale,
) -> Image.Image:
    """The image under its map, outlines on top; as large as the image.

    Args:
        image: (H, W, 3) uint8.
        anomaly_map: (H, W) float32.
        rings: of the outlines, see `draw_outlines`.
        scale: colours of the map.
    """
    picture = np.empty(image.shape, np.uint8)
    colours, opacities = scale.colours().astype(np.float32), scale.opacities()
    for rows in strips(anomaly_map.shape):
        found = scale.indices(anomaly_map[rows])
        weight = opacities[found][..., None]
        picture[rows] = image[rows] + weight * (colours[found] - image[rows]) + np.float32(0.5)
    draw_outlines(picture, rings)
    return Image.fromarray(picture)


def draw_outlines(picture: NDArray[np.uint8], rings: Sequence[NDArray[np.float32]], width: float | None = None) -> None:
    """Draw closed lines into a picture: cyan with a dark rim, antialiased.

    Args:
        picture: (H, W, 3) uint8; changed.
        rings: (n, 2) each, x and y in pixels from the upper left corner.
        width: of the lines, in pixels; None is what suits the picture's size.
    """
    if not rings:
        return
    if width is None:
        width = max(MIN_LINE, LINE_SHARE * max(picture.shape[:2]))
    reach = 1.5 * width + 2
    closed = [np.concatenate([ring, ring[:2]]) for ring in rings]  # the second point again: a joint at the first too
    for rows in strips(picture.shape[:2]):
        near = [part for ring in closed for part in _parts_between(ring, rows.start - reach, rows.stop + reach)]
        if not near:
            continue
        strip = picture[rows]
        rim, line = (_coverage(strip.shape, near, rows.start, w) for w in (2.2 * width, width))
        shaded = strip * (1 - np.float32(RIM_SHARE) * rim)
        strip[:] = shaded + line * (np.array(OUTLINE_RGB, np.float32) - shaded) + np.float32(0.5)


def _parts_between(line: NDArray[np.float32], top: float, bottom: float) -> list[NDArray[np.float32]]:
    """The parts of a line (n, 2) whose segments reach between two heights: all others would be drawn for nothing."""
    y = line[:, 1]
    near = (np.maximum(y[:-1], y[1:]) >= top) & (np.minimum(y[:-1], y[1:]) <= bottom)
    changes = np.flatnonzero(np.diff(near, prepend=False, append=False))
    return [line[first : last + 1] for first, last in zip(changes[::2], changes[1::2], strict=True)]


def _coverage(
    shape: tuple[int, ...], lines: Sequence[NDArray[np.float32]], top: int, width: float
) -> NDArray[np.float32]:
    """How much of each pixel of a strip lines cover: (rows, W, 1) from 0 to 1."""
    height, length = shape[:2]
    large = Image.new("L", (SUPERSAMPLING * length, SUPERSAMPLING * height))
    pen = ImageDraw.Draw(large)
    for line in lines:
        points = np.floor((line - (0, top)) * SUPERSAMPLING)  # Pillow's own rounding is another below 0
        pen.line(points.ravel().tolist(), fill=255, width=max(1, round(SUPERSAMPLING * width)), joint="curve")
    covered = np.asarray(large.reduce(SUPERSAMPLING), np.float32)[..., None]
    return covered / np.float32(255)


# Several pictures as one ----------------------------------------------------------------------------------------------


def shrink(worst: np.ufunc, values: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """A map (H, W) made smaller, to (h, w): a pixel has the worst of those it stands for, so that spots still show."""
    rows, columns = (np.arange(n) * length // n for n, length in zip(size, values.shape, strict=True))
    small: NDArray[Any] = worst.reduceat(worst.reduceat(values, rows, axis=0), columns, axis=1)
    return small


def panels(
    image: NDArray[np.uint8],
    anomaly_map: NDArray[np.float32],
    mask: NDArray[np.bool_],
    rings: Sequence[NDArray[np.float32]],
    scale: ColourScale,
    side: int,
) -> dict[str, Image.Image]:
    """Small pictures of a prediction, their longer side `side` pixels: "image", "outline", "map", "mask".

    Outlines and lines are drawn at that size, so that they are as thin on large images as on small ones.
    """
    height, width = mask.shape
    factor = side / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    step = max(1, int(1 / factor))
    small = Image.fromarray(image).reduce(step).resize(size, Image.Resampling.BICUBIC)
    outlined = np.array(small)
    scaled = [ring * np.array([size[0] / width, size[1] / height], np.float32) for ring in rings]
    draw_outlines(outlined, scaled)
    least = min(size[1], height), min(size[0], width)
    values = Image.fromarray(shrink(np.maximum, anomaly_map, least)).resize(size, Image.Resampling.BILINEAR)
    inside = Image.fromarray(shrink(np.logical_or, mask, least).astype(np.uint8) * 255)
    return {
        "image": small,
        "outline": Image.fromarray(outlined),
        "map": map_picture(np.asarray(values), scale),
        "mask": inside.resize(size, Image.Resampling.NEAREST),
    }


GAP, LINE_HEIGHT, FONT_SIZE, FOOT = 10, 24, 15, 36  # pixels
PAPER, INK = "white", "#222222"


def side_by_side(
    pictures: dict[str, Image.Image], heading: str, scale: ColourScale, alpha: float | None
) -> Image.Image:
    """Pictures in a row (wide ones in a column) below a heading, the name of each above it, and the map's colours."""
    width, height = next(iter(pictures.values())).size
    across = width <= 2 * height
    columns, rows = (len(pictures), 1) if across else (1, len(pictures))
    page_width = columns * (width + GAP) + GAP
    page = Image.new("RGB", (max(page_width, 420), LINE_HEIGHT + rows * (height + LINE_HEIGHT + GAP) + FOOT))
    page.paste(PAPER, (0, 0, *page.size))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(FONT_SIZE)
    pen.text((GAP, LINE_HEIGHT / 2 + 2), heading, fill=INK, font=font, anchor="lm")
    for number, (name, picture) in enumerate(pictures.items()):
        left = GAP + (number * (width + GAP) if across else 0)
        top = LINE_HEIGHT + (0 if across else number * (height + LINE_HEIGHT + GAP))
        pen.text((left, top + LINE_HEIGHT / 2), name, fill=INK, font=font, anchor="lm")
        page.paste(picture, (left, top + LINE_HEIGHT))
    _draw_scale(page, scale, alpha)
    return page


def _draw_scale(page: Image.Image, scale: ColourScale, alpha: float | None) -> None:
    """The bar at the foot of a page that says which colour means what."""
    left, length, top = GAP, min(page.width - 2 * GAP, 400), page.height - FOOT
    bar = Image.fromarray(scale.colours()[None]).resize((length, 10), Image.Resampling.NEAREST)
    page.paste(bar, (left, top))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(FONT_SIZE - 2)
    marks = {0.0: ("map 0", "l"), 1.0: ("1", "r")}
    if scale.alarm is not None:
        at = f"alpha {alpha:g}" if alpha is not None else "alpha"
        marks = {0.0: ("good parts", "l"), ALPHA_LEVEL: (at, "m"), 1.0: ("stranger", "r")}
    for share, (text, anchor) in marks.items():
        pen.text((left + share * length, top + 20), text, fill=INK, font=font, anchor=f"{anchor}m")
    if scale.alarm is not None:
        middle = left + ALPHA_LEVEL * length
        pen.line((middle, top - 3, middle, top + 12), fill=INK)
