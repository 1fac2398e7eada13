"""Draws docs/guide/products.png: a region of interest, a defect in it that is found, and one outside that is not seen.

    python docs/make_products.py [--output docs/guide/products.png]

Plates are made by benchmarks/pages.py, each with a label of its own beside them. A minute or two on one core.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import uflow
from uflow.roi import RegionOfInterest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from pages import make_image

SIZE = (256, 320)  # (height, width)
ROI = RegionOfInterest(
    SIZE,
    polygons=(((12, 14), (226, 14), (244, 40), (244, 244), (12, 244)),),
    ignore=(((40, 40), (84, 40), (84, 84), (40, 84)),),
)
GAP, PANEL = 12, 360  # pixels


def plate(seed: int, defect: str = "good") -> NDArray[np.uint8]:
    """A plate with a hole, and beside it a label that is never the same."""
    image, rng = make_image(defect, seed, SIZE)[0].copy(), np.random.default_rng(seed)
    image[46:78, 46:78] = rng.integers(10, 60)
    image[rng.integers(20, 90) : rng.integers(150, 240), 258:310] = rng.integers(90, 255, 3)
    return image


def main() -> None:
    """Learn, predict, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("guide") / "products.png")
    asked = parser.parse_args()
    detector = uflow.Detector.fit([plate(seed) for seed in range(60)], quality="fast", roi=ROI)
    scratched, stained = plate(101, "scratch"), plate(103)
    stained[60:200, 262:300] = (60, 30, 20)
    panels = [detector.predict(image).panels(PANEL)["outline"] for image in (scratched, stained)]
    page = Image.new("RGB", (sum(p.width for p in panels) + GAP * (len(panels) - 1), panels[0].height), "white")
    left = 0
    for panel in panels:
        page.paste(panel, (left, 0))
        left += panel.width + GAP
    page.save(asked.output)
    print(f"Wrote {asked.output}")


if __name__ == "__main__":
    main()
