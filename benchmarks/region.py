"""Does the promise of alpha hold inside a region of interest? Unseen good images flagged, with a region and without.

python benchmarks/region.py data/magnetic_tile --seeds 0 1 2

Images come in many shapes there, and a region is of one: all are squeezed to 128 x 128. The region is what lies left of
a slanting border, half of the picture. Each seed trains one model with it and one without, both small and short: the
promise does not depend on how well a network has learnt, and that is what is measured here, not how much is found.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tables
import threshold
import trained
from numpy.typing import NDArray
from PIL import Image

from uflow.evaluate.samples import Dataset, Sample
from uflow.images import image_size, read_image, resize_image
from uflow.roi import RegionOfInterest

SIZE = (128, 128)
EPOCHS = 2
FLOW_STEPS = 2
ALPHAS = (0.02, 0.05, 0.1, 0.2)
REGION = RegionOfInterest(SIZE, polygons=(((0, 0), (75, 0), (53, 128), (0, 128)),))


def squeezed(dataset: Dataset, folder: Path) -> Dataset:
    """The same images, all of one size, in a folder."""

    def squeeze(path: Path) -> Path:
        made = folder / f"{len(list(folder.iterdir()))}.png"
        Image.fromarray(resize_image(read_image(path), SIZE)).save(made)
        return made

    samples = [replace(sample, path=squeeze(sample.path)) for sample in dataset.test]
    return replace(dataset, train=list(map(squeeze, dataset.train)), test=samples)


def is_inside(sample: Sample) -> bool:
    """Whether any part of its defect, which is marked on the image as it was, lies in the region."""
    truth = sample.truth(image_size(sample.path))
    return truth is None or bool((truth & REGION.pixels((truth.shape[0], truth.shape[1]))).any())


def run(
    dataset: Dataset, inside: NDArray[np.bool_], arguments: argparse.Namespace, seed: int
) -> dict[str, threshold.Run]:
    """On all test images a model of the whole picture; one of the region on those of defects inside, and outside."""
    judged = {}
    for name, roi in (("whole", None), ("region", REGION)):
        detector = trained.fit(dataset, arguments, seed, EPOCHS, image_size=SIZE, flow_steps=FLOW_STEPS, roi=roi)
        judged[name] = threshold.run(detector, dataset)
    every = judged["region"]
    for name, shown in (("region", inside), ("outside", ~inside)):
        kept = shown | every.good
        if not every.good[kept].all():
            judged[name] = replace(every, lowest=every.lowest[kept], good=every.good[kept])
    return judged


def main() -> None:
    """Train, predict, print, write."""
    parser = trained.options(__doc__, "region.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    kept = {}
    for root in arguments.roots:
        dataset = trained.category(root)
        inside = np.array([is_inside(sample) for sample in dataset.test])
        with TemporaryDirectory() as folder:
            same_size = squeezed(dataset, Path(folder))
            runs = [run(same_size, inside, arguments, seed) for seed in arguments.seeds]
        print(f"\n{dataset.name}: {REGION.pixels(SIZE).mean():.0%} of the picture is inside")
        kept[dataset.name] = {
            name: [threshold.promise([each[name] for each in runs], alpha) for alpha in ALPHAS] for name in runs[0]
        }
        print(table(dataset.name, kept[dataset.name]))
    trained.write(arguments, [], ("torch", "timm"), seeds=arguments.seeds, promises=kept)


def table(name: str, promises: dict[str, list[dict[str, float]]]) -> str:
    """A row for each alpha."""
    shares = ["good flagged ± standard error", "defective"]
    rows = [[f"{name}, alpha", *shares, "in the region: good", "inside", "outside alone"]]
    for whole, region, outside in zip_longest(*(promises.get(name, ()) for name in ("whole", "region", "outside"))):
        error = f" ± {tables.share(whole['error'])}"
        good, bad = ([tables.share(each[kind]) for each in (whole, region)] for kind in ("good", "defective"))
        other = tables.share(None if outside is None else outside["defective"])
        rows.append([f"{whole['alpha']:.0%}", good[0] + error, bad[0], good[1] + error, bad[1], other])
    return tables.markdown(rows)


if __name__ == "__main__":
    main()
