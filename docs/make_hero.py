"""Draws docs/hero.png, the picture at the top of README: a part, its anomaly map, what is outlined.

    python docs/make_hero.py [--texture brick] [--defects cut_paste/000 scratch/002] [--output docs/hero.png]

and docs/guide/results.png, what `Prediction.save` writes of the first of the defects. With the defects hole/000
scratch/000 stain/000 it draws docs/guide/mask.png.

Learns a texture of `uflow demo` (photographs from scikit-image's wheel, no download), some minutes on one core.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import uflow
from uflow.demo import make_demo
from uflow.prediction import Prediction

CROP = 150  # pixels: about the largest square that the photographs' test area holds
PANEL = 390  # pixels a side on the page
PLOT = 300  # and in the guide
GAP, CAPTION = 15, 34
TITLES = ("a part", "its anomaly map", "what is outlined")


def draw(predictions: Sequence[Prediction]) -> Image.Image:
    """A row of three panels an image, titles below the last."""
    width, row = 3 * PANEL + 2 * GAP, PANEL + GAP
    page = Image.new("RGB", (width, len(predictions) * row + CAPTION), "white")
    for number, prediction in enumerate(predictions):
        shown = prediction.panels(PANEL)
        for column, name in enumerate(("image", "map", "outline")):
            page.paste(shown[name], (column * (PANEL + GAP), number * row))
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
    parser.add_argument("--plot", type=Path, default=Path(__file__).with_name("guide") / "results.png")
    parser.add_argument("--work", type=Path, help="folder that keeps the images and the model")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = make_demo((asked.work or Path(scratch)) / "data", size=CROP) / asked.texture
        model = root.with_suffix(".uflow")
        if not model.exists():
            uflow.Detector.fit(root / "train/good").save(model)
        detector = uflow.load(model).calibrate(root / "calibration")
        predictions = detector.predict([root / f"test/{name}.png" for name in asked.defects])
        draw(predictions).save(asked.output)
        predictions[0].save(asked.plot, side=PLOT)
    print(f"Wrote {asked.output} and {asked.plot}")


if __name__ == "__main__":
    main()
