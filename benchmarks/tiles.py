"""Large images: shrunk, whole or in tiles; what a tile's border does; memory.

python benchmarks/tiles.py data/hazelnut_toy
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import race
import tables
import trained
from numpy.typing import NDArray
from PIL import Image
from race import Contest, Pace

from uflow.detector import Detector
from uflow.evaluate.evaluation import evaluate_predictor
from uflow.evaluate.tables import evaluations_table
from uflow.images import image_size, read_image

Pixels = NDArray[np.uint8]
OF_EACH_IMAGE = ("images", "roc", "pro")  # and of each threshold: thousands of lines, and paths of one machine
# A process of its own, whose memory is that of predicting alone.
LARGE = """
import sys, time, uflow
from uflow.images import read_image
from uflow.processes import peak_memory
detector, path = uflow.load(sys.argv[1], device="cpu"), sys.argv[2]
image = read_image(path)
detector.predict(image[: image.shape[0] // 4, : image.shape[1] // 16])
before, started = peak_memory(), time.perf_counter()
result = detector.predict(path)
seconds = time.perf_counter() - started
maps = sum(m.nbytes for m in (result.image, result.anomaly_map, result.log_nfa, result.mask)) / 1e6
print(f"{image.shape[1]}x{image.shape[0]}: {len(detector.predictor.tiling(image))} tiles, {seconds:.0f} s;",
      f"peak memory {before:.0f} MB with a small image, {peak_memory():.0f} MB with this one,",
      f"{maps:.0f} MB of it the result")
"""


def border_effect(detector: Detector, images: Sequence[Pixels]) -> list[tuple[int, float]]:
    """How a cell's energy depends on its distance to the tile's border, in pixels.

    Each image is cut at two places, twice the coarsest stride apart or half a tile; the relative difference of the two
    energies of a cell of the finest scale, median over all cells and images, by the smaller of the two distances.
    """
    network = detector.network
    (height, width), stride = network.image_size, network.strides[0]
    step = min(2 * network.strides[-1], width // 2)
    found: dict[int, list[float]] = {}
    for image in images:
        pair = np.stack([image[:height, left : left + width] for left in (0, step)])
        first, second = network.evidence(pair).energies[0]
        first, second = first[:, step // stride :], second[:, : (width - step) // stride]
        columns = np.arange(first.shape[1])
        distance = np.minimum(columns, columns[::-1]) * stride  # to the border that only one of the tiles has
        for column, pixels in enumerate(distance.tolist()):
            found.setdefault(pixels, []).extend((np.abs(first - second) / second)[:, column].tolist())
    return [(pixels, float(np.median(values))) for pixels, values in sorted(found.items())]


def large_image(detector: Detector, image: Pixels, size: tuple[int, int]) -> str:
    """Time and memory of one that is put together from copies of `image`."""
    with tempfile.TemporaryDirectory() as folder:
        model, path = Path(folder) / "model.uflow", Path(folder) / "large.bmp"
        detector.save(model)
        copies = (size[0] // image.shape[0] + 1, size[1] // image.shape[1] + 1, 1)
        Image.fromarray(np.tile(image, copies)[: size[0], : size[1]]).save(path)
        command = [sys.executable, "-c", LARGE, str(model), str(path)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Train three ways, evaluate, print, write."""
    arguments = trained.options(__doc__, "tiles.json").parse_args()
    (root,) = arguments.roots
    dataset = trained.category(root)
    images = [read_image(sample.path) for sample in dataset.test[:8]]
    side = 64 if arguments.quick else 256
    ways: dict[str, dict[str, Any]] = {
        "shrunk": {"image_size": side},
        "whole": {"image_size": image_size(dataset.train[0])},
        "tiles": {"image_size": side, "tile": True},
    }
    detectors = {way: trained.fit(dataset, arguments, **recipe) for way, recipe in ways.items()}
    names = {way: "{}, {}x{}".format(way, *d.network.image_size) for way, d in detectors.items()}
    evaluations = {names[way]: evaluate_predictor(detector, dataset) for way, detector in detectors.items()}
    print(evaluations_table(evaluations).to_markdown())

    contestants = {names[way]: lambda d=detector: d.predict(images) for way, detector in detectors.items()}
    contest = Contest(f"{len(images)} images", dataset.name, contestants, None)
    races = [race.run(contest, race.pace_of(arguments, Pace(budget=60, most=9)))]
    print("\n" + tables.time_table(races, ("shrunk", "way")))

    tiled = detectors["tiles"]
    borders = border_effect(tiled, images)
    print("\nA cell's energy in two tiles differs by, at so many pixels from the border of one of them (median):")
    print(", ".join(f"{pixels} px {difference:.1%}" for pixels, difference in borders))
    large = large_image(tiled, images[0], (200, 400) if arguments.quick else (2000, 8000))
    print(large)
    figures = {
        name: {key: value for key, value in evaluation.to_dict().items() if key not in OF_EACH_IMAGE}
        for name, evaluation in evaluations.items()
    }
    trained.write(arguments, races, ("torch", "timm"), ways=figures, borders=borders, large=large)


if __name__ == "__main__":
    main()
