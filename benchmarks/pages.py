"""How large is a report, how long is it in the making, and how long does a browser take to open it?

python benchmarks/pages.py            3, 30, 300 and 2,000 made images; results/pages.json
python benchmarks/pages.py --keep F   also keeps the pages, in the folder F

The browser is a Chromium of this machine, driven by playwright (pip install playwright). Images are made: plates of
brushed metal, half of them with a scratch, a hole or a stain.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from uflow.pages import Card, CardMaker, PictureLimits, Promise, Report, mask_path, write_report
from uflow.predictor import Predictor
from uflow.scoring import Blend, Evidence

Pixels = NDArray[np.uint8]
KINDS = ("good", "scratch", "good", "hole", "good", "stain")
SIZE = (512, 640)  # (H, W)
CELL = 8  # pixels
COUNTS = (3, 30, 300, 2000)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


class PatternNetwork:
    """A network that needs no training: a cell's energy is how far its brightness and contrast are from usual."""

    image_size = (256, 320)
    strides = (CELL,)
    latent_channels = (2,)

    def evidence(self, images: Pixels) -> Evidence:
        """Evidence of (B, H, W, 3) images of `image_size`."""
        grey = images.astype(np.float32).mean(axis=3)
        batch, height, width = grey.shape
        blocks = grey.reshape(batch, height // CELL, CELL, width // CELL, CELL)
        mean, spread = blocks.mean(axis=(2, 4)), blocks.std(axis=(2, 4))
        usual = [np.median(each, axis=(1, 2), keepdims=True) for each in (mean, spread)]
        return Evidence([(((mean - usual[0]) / 6) ** 2 + ((spread - usual[1]) / 4) ** 2 + 0.1).astype(np.float32)])

    def phases(self) -> list[tuple[str, Callable[[Any], Any]]]:
        """One."""
        return [("network", self.evidence)]


def make_image(kind: str, seed: int, size: tuple[int, int] = SIZE) -> tuple[Pixels, NDArray[np.bool_]]:
    """A plate of brushed metal (H, W, 3), and the pixels of its defect (H, W)."""
    rng = np.random.default_rng(seed)
    height, width = size
    sums = np.cumsum(rng.normal(0, 1, (height, width + 40)), axis=1)
    brushed = (sums[:, 40:] - sums[:, :-40]) / 6  # a mean along the rows
    light = 150 + 14 * np.sin(np.linspace(0, 3, width) + rng.uniform(0, 3))[None] + rng.normal(0, 2)
    grey = light + 2.2 * brushed + rng.normal(0, 3, size)
    plate = Image.fromarray(np.stack([grey, grey * 0.995, grey * 0.97], axis=2).clip(0, 255).astype(np.uint8))
    mask = Image.new("L", (width, height))
    if kind != "good":
        _draw_defect(ImageDraw.Draw(mask), kind, rng, size)
        shade = {"scratch": (235, 232, 226), "hole": (38, 34, 32), "stain": (120, 92, 60)}[kind]
        soft = mask.filter(ImageFilter.GaussianBlur(6 if kind == "stain" else 1))
        strength = rng.uniform(0.05, 0.95)
        plate.paste(Image.new("RGB", plate.size, shade), mask=soft.point(lambda value: int(value * strength)))
    return np.asarray(plate), np.asarray(mask) > 127


def _draw_defect(draw: ImageDraw.ImageDraw, kind: str, rng: np.random.Generator, size: tuple[int, int]) -> None:
    x, y = rng.uniform(0.2, 0.8) * size[1], rng.uniform(0.2, 0.8) * size[0]
    if kind == "scratch":
        angle, length = rng.uniform(0, np.pi), rng.uniform(80, 220)
        ends = [(x + s * length * np.cos(angle) / 2, y + s * length * np.sin(angle) / 2) for s in (-1, 1)]
        draw.line(ends, fill=255, width=int(rng.integers(3, 8)))
    else:
        radius = rng.uniform(10, 26) if kind == "hole" else rng.uniform(24, 60)
        draw.ellipse((x - radius, y - 0.8 * radius, x + radius, y + 0.8 * radius), fill=255)


def make_predictor(good_images: int = 60, alpha: float = 0.05, size: tuple[int, int] = SIZE) -> Predictor:
    """A predictor calibrated on made good images."""
    predictor = Predictor(PatternNetwork())
    images = [make_image("good", 10_000 + i, size)[0] for i in range(good_images)]
    evidence = list(predictor.run(images, lambda _, image, evidence: evidence))
    predictor.blend = Blend.from_good_images(evidence)  # before calibrating, which learns what its maps reach
    predictor.calibrate(images, alpha)
    return predictor


def make_cards(predictor: Predictor, count: int, size: tuple[int, int] = SIZE) -> list[Card]:
    """Cards of `count` made images, as `uflow evaluate` makes them."""
    maker = CardMaker(predictor, PictureLimits(count))
    kinds = [KINDS[i % len(KINDS)] for i in range(count)]
    truths: list[NDArray[np.bool_]] = []

    def images() -> Iterator[Pixels]:
        for i, kind in enumerate(kinds):
            image, truth = make_image(kind, i, size)
            truths.append(truth)
            yield image

    for i, _ in enumerate(maker.stream(images())):
        card = maker.cards[i]
        card.name, card.kind, card.truth = f"line 2/{kinds[i]}/part_{i:04}.png", kinds[i], mask_path(truths[i])
    return maker.cards


def make_report(cards: Sequence[Card], predictor: Predictor) -> Report:
    """A report of made images."""
    promise = Promise.from_threshold(predictor.threshold)
    return Report("Brushed plates", f"{len(cards)} made images.", cards, {"": promise})


def find_browser() -> str | None:
    """The path of a Chromium on this machine; None where there is none."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def time_to_open(page: Path) -> dict[str, float]:
    """Seconds from the start of loading a page until it can be used, and to sort it anew."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        started = time.perf_counter()
        tab.goto(page.as_uri(), wait_until="commit")
        tab.wait_for_selector("html[data-ready]", state="attached")
        opened = time.perf_counter() - started
        sort = """() => { const start = performance.now(); const select = document.getElementById("sort");
            select.value = "name"; select.dispatchEvent(new Event("change")); document.body.offsetHeight;
            return performance.now() - start; }"""
        slide = """() => { const start = performance.now(); const slider = document.getElementById("alpha");
            slider.value = slider.max; slider.dispatchEvent(new Event("input")); document.body.offsetHeight;
            return performance.now() - start; }"""
        result = {"open_s": opened, "sort_ms": tab.evaluate(sort), "slide_ms": tab.evaluate(slide)}
        browser.close()
    return result


def measure(count: int, predictor: Predictor, folder: Path) -> dict[str, float]:
    """Make a report of `count` images and open it."""
    cards = make_cards(predictor, count)
    started = time.perf_counter()
    page = write_report(make_report(cards, predictor), folder / f"{count}.html")
    result = {"images": count, "megabytes": page.stat().st_size / 1e6, "write_s": time.perf_counter() - started}
    return {**result, **time_to_open(page)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results/pages.json")
    options = parser.parse_args()
    predictor = make_predictor()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [measure(count, predictor, folder) for count in options.counts]
    print("| images | MB | written in, s | opened in, s | sorted in, ms | slider moved in, ms |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        print(
            "| {images} | {megabytes:.1f} | {write_s:.1f} | {open_s:.1f} | {sort_ms:.0f} | {slide_ms:.0f} |".format(
                **row
            )
        )
    options.output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
