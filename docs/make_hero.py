"""Draws docs/hero.png, the picture at the top of README: a part, its anomaly map, what is outlined.

    python docs/make_hero.py [--texture brick] [--defects cut_paste/000 scratch/002] [--output docs/hero.png]

Learns a texture of `uflow demo` (photographs from scikit-image's wheel, no download), some minutes on one core.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import uflow
from uflow.demo import make_demo
from uflow.prediction import OUTLINE_RGB, Prediction, heat_colours, mask_outline

CROP = 150  # pixels: about the largest square that the photographs' test area holds
PANEL = 390  # pixels a side on the page
GAP, CAPTION = 15, 34
TITLES = ("a part", "its anomaly map", "what is outlined")


def panels(prediction: Prediction) -> list[Image.Image]:
    """The image; its map; the image with the regions outlined, drawn at the page's size."""
    side = (PANEL, PANEL)
    image = Image.fromarray(prediction.image).resize(side, Image.Resampling.LANCZOS)
    smooth = Image.fromarray(prediction.anomaly_map).resize(side, Image.Resampling.BICUBIC)
    heat = Image.fromarray(heat_colours(np.clip(np.asarray(smooth), 0, 1)).round().astype(np.uint8))
    log_nfa = Image.fromarray(prediction.log_nfa).resize(side, Image.Resampling.BILINEAR)
    outlined = np.array(image)
    outlined[mask_outline(np.asarray(log_nfa) < 0)] = OUTLINE_RGB
    return [image, heat, Image.fromarray(outlined)]


def draw(predictions: Sequence[Prediction]) -> Image.Image:
    """A row of three panels an image, titles below the last."""
    width, row = 3 * PANEL + 2 * GAP, PANEL + GAP
    page = Image.new("RGB", (width, len(predictions) * row + CAPTION), "white")
    for number, prediction in enumerate(predictions):
        for column, panel in enumerate(panels(prediction)):
            page.paste(panel, (column * (PANEL + GAP), number * row))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(22)
    for column, title in enumerate(TITLES):
        middle = column * (PANEL + GAP) + PANEL / 2
        pen.text((middle, len(predictions) * row + CAPTION / 2 - 8), title, fill="#444444", font=font, anchor="mm")
    return page


def main() -> None:
    """Make the texture's images, learn, predict, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texture", default="brick")
    parser.add_argument("--defects", nargs="+", default=["cut_paste/000"], help="test images, such as scratch/002")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("hero.png"))
    parser.add_argument("--work", type=Path, help="folder that keeps the images and the model")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = make_demo((asked.work or Path(scratch)) / "data", size=CROP) / asked.texture
        model = root.with_suffix(".uflow")
        if model.exists():
            detector = uflow.load(model)
        else:
            detector = uflow.Detector.fit(root / "train/good").calibrate(root / "calibration")
            detector.save(model)
        draw(detector.predict([root / f"test/{name}.png" for name in asked.defects])).save(asked.output)
    print(f"Wrote {asked.output}")


if __name__ == "__main__":
    main()
