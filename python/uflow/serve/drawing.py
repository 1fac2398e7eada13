"""PNG files of what is said of a part, drawn by the thread that has judged it."""

from __future__ import annotations

import io

from PIL import Image

from ..pages.pictures import coloured_map
from ..prediction import Prediction

__all__ = ["draw_map", "draw_overlay"]


def draw_overlay(prediction: Prediction) -> bytes:
    """The image under its map, regions outlined; as large as the image."""
    return _as_png(prediction.overlay())


def draw_map(prediction: Prediction) -> bytes:
    """The map in its colours, no larger than a page shows it."""
    return _as_png(Image.fromarray(coloured_map(prediction)))


def _as_png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "png", compress_level=1)
    return file.getvalue()
