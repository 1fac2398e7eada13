"""Reprints the figures of docs/inference.md on large images: whole against tiled, borders of tiles, memory.

python benchmarks/tiles.py data/hazelnut_toy
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

import uflow
from uflow.detector import Detector
from uflow.evaluate import datasets
from uflow.evaluate import tables as report
from uflow.images import image_size, list_images, read_image

LARGE = """
import resource, sys, time, uflow
from uflow.images import image_size, list_images, read_image
folder, peak = sys.argv[1], lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
detector = uflow.load(folder + "/model.uflow", device="cpu")
detector.predict(uflow.data.read_image(folder + "/large.bmp")[:512, :512])
before, started = peak(), time.perf_counter()
result = detector.predict(folder + "/large.bmp")
maps = sum(m.nbytes for m in (result.image, result.anomaly_map, result.log_nfa, result.mask)) / 2**20
tiles = len(detector._tiling(result.image))
seconds = time.perf_counter() - started
print(f"8000x2000: {tiles} tiles, {seconds:.0f} s; peak memory {before:.0f} MB with a 512x512 image, {peak():.0f} MB",
      f"with this one, of which the result is {maps:.0f}")
"""


def borders(detector: Detector, images: list[np.ndarray]) -> list[tuple[int, float]]:
    """How a cell's energy depends on its distance to the tile's border, in pixels.

    Each image is cut at two places 64 pixels apart (twice the coarsest stride); the relative difference of the two
    energies of a cell of the finest scale, median over all cells and images, by the smaller of the two distances.
    """
    height, width = detector.image_size
    stride = detector.strides[0]
    differences: dict[int, list[float]] = {}
    for image in images:
        tiles = np.stack([image[:height, left : left + width] for left in (0, 64)])
        first, second = detector._network(tiles)[0][:, :, :]
        first, second = first[:, 64 // stride :], second[:, : (width - 64) // stride]
        columns = np.arange(first.shape[1])
        distance = np.minimum(columns, columns[::-1]) * stride  # to the border that only one of the tiles has
        for column, pixels in enumerate(distance.tolist()):
            relative = np.abs(first[:, column] - second[:, column]) / second[:, column]
            differences.setdefault(pixels, []).extend(relative.tolist())
    return [(pixels, float(np.median(d))) for pixels, d in sorted(differences.items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder in the MVTec layout, its images larger than 320 x 320")
    arguments = parser.parse_args()
    train = arguments.root / "train/good"
    own = image_size(list_images(train)[0])

    evaluations, seconds = {}, {}
    for name, options in (
        ("shrunk to 256x256", {}),
        (f"whole, {own[0]}x{own[1]}", {"image_size": own}),
        ("tiles of 256x256", {"tile": True}),
    ):
        detector = Detector.fit(train, **options)
        images = [read_image(sample.path) for sample in datasets.read_mvtec(arguments.root).test]
        started = time.perf_counter()
        for image in images:
            detector.predict(image)
        seconds[name] = (time.perf_counter() - started) / len(images)
        evaluations[name] = detector.evaluate(arguments.root)
    header, *rows = report.table(evaluations)
    print("|", " | ".join([*header, "s/image"]), "|")
    print("|", " | ".join(["---"] * (len(header) + 1)), "|")
    for row in rows:
        if row[0] in seconds:
            print("|", " | ".join([*row, f"{seconds[row[0]]:.3f}"]), "|")

    print("distance to the tile's border and relative difference of a cell's energy (median):")
    print(", ".join(f"{pixels} px {difference:.1%}" for pixels, difference in borders(detector, images)))

    with tempfile.TemporaryDirectory() as folder:  # a process of its own, whose memory is that of predicting alone
        detector.save(Path(folder) / "model.uflow")
        large = np.tile(images[0], (2000 // own[0] + 1, 8000 // own[1] + 1, 1))[:2000, :8000]
        Image.fromarray(large).save(Path(folder) / "large.bmp")
        print(subprocess.run([sys.executable, "-c", LARGE, folder], check=True, capture_output=True, text=True).stdout)
    print(f"uflow {uflow.__version__}, {arguments.root.name}, {sys.platform}")


if __name__ == "__main__":
    main()
