"""Draws docs/guide/any-detector.png: three maps that are not ours, and the mask that `uflow.Threshold` makes of each.

    python docs/make_detectors.py [--output docs/guide/any-detector.png]

The maps are those of the page: scikit-learn's PCA, distances to good patches, a difference to a good part. Plates are
made by benchmarks/pages.py. A minute on one core.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

import uflow
from uflow.pictures import ColourScale, panels

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from pages import make_image

Pixels = NDArray[np.uint8]
Grey = NDArray[np.float64]
MapOf = Callable[[Grey], Grey]

SIZE = (160, 200)  # (height, width)
PATCH, STEP = 8, 4  # pixels
LEARN, HELD_OUT = 60, 60  # plates
ALPHA = 0.05
DEFECTS = (("hole", 201), ("scratch", 205), ("good", 300))
GAP, PANEL = 10, 240  # pixels


def grey(image: Pixels) -> Grey:
    """(H, W) of an image (H, W, 3)."""
    return image.mean(axis=2)


def by_pca(learn: NDArray[np.float64]) -> MapOf:
    """What a few principal components cannot draw."""
    pca = PCA(n_components=5).fit(learn.reshape(len(learn), -1))

    def error(image: Grey) -> Grey:
        row = image.reshape(1, -1)
        return np.asarray((row - pca.inverse_transform(pca.transform(row))) ** 2).reshape(image.shape)

    return error


def patches(image: Grey) -> Grey:
    """(rows, columns, pixels) of the patches, less how bright the plate is: light comes and goes."""
    found = np.lib.stride_tricks.sliding_window_view(image, (PATCH, PATCH))[::STEP, ::STEP]
    return found.reshape(*found.shape[:2], -1) - np.median(image)


def by_patches(learn: NDArray[np.float64]) -> MapOf:
    """The distance of each patch to the nearest good one."""
    memory = NearestNeighbors(n_neighbors=1).fit(np.concatenate([patches(i).reshape(-1, PATCH**2) for i in learn[::4]]))
    return lambda image: np.asarray(memory.kneighbors(patches(image).reshape(-1, PATCH**2))[0]).reshape(
        patches(image).shape[:2]
    )


def by_difference(learn: NDArray[np.float64]) -> MapOf:
    """How far each pixel is from what good plates have there, in their deviations."""
    usual, spread = learn.mean(axis=0), learn.std(axis=0) + 1
    return lambda image: abs(image - usual) / spread


def draw_row(threshold: uflow.Threshold, images: list[Pixels], maps: list[Grey]) -> Image.Image:
    """Of each image the map, all on one scale, and the outline of what the threshold finds."""
    shown, largest = [], max(each.max() for each in maps)
    for image, own in zip(images, maps, strict=True):
        found = threshold.apply(own, size=SIZE)
        rings = [ring for region in found.regions for ring in region.contours]
        pictures = panels(image, (own / largest).astype(np.float32), found.mask, rings, ColourScale(), PANEL)
        shown += [pictures["map"], pictures["outline"]]
    return beside(shown)


def beside(pictures: list[Image.Image], across: bool = True) -> Image.Image:
    """Pictures in a row, or one below another."""
    sizes = [picture.size if across else picture.size[::-1] for picture in pictures]
    length, breadth = sum(size[0] for size in sizes) + GAP * (len(sizes) - 1), max(size[1] for size in sizes)
    page = Image.new("RGB", (length, breadth) if across else (breadth, length), "white")
    at = 0
    for picture, size in zip(pictures, sizes, strict=True):
        page.paste(picture, (at, 0) if across else (0, at))
        at += size[0] + GAP
    return page


def main() -> None:
    """Learn, judge, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("guide") / "any-detector.png")
    asked = parser.parse_args()
    good = np.stack([grey(make_image("good", seed, SIZE)[0]) for seed in range(LEARN + HELD_OUT)])
    images = [make_image(kind, seed, SIZE)[0] for kind, seed in DEFECTS]
    rows = []
    for make in (by_pca, by_patches, by_difference):
        map_of = make(good[:LEARN])
        threshold = uflow.Threshold.from_good_maps([map_of(image) for image in good[LEARN:]], alpha=ALPHA)
        rows.append(draw_row(threshold, images, [map_of(grey(image)) for image in images]))
    page = beside(rows, across=False)
    page.quantize(256).save(asked.output, optimize=True)
    print(f"Wrote {asked.output}")


if __name__ == "__main__":
    main()
