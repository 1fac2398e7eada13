"""Exported networks beside torch: equal maps, speed, what INT8 and resizing in the network cost.

python benchmarks/export.py data/hazelnut_toy data/magnetic_tile

Trains on each category. Speed is measured on the last one: ms an image through the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import race
import tables
import trained
from numpy.typing import NDArray
from PIL import Image
from race import CORES, Contest, Function, Pace

from uflow.deploy import exported
from uflow.deploy.export import export
from uflow.detector import Detector
from uflow.evaluate.datasets import Dataset
from uflow.evaluate.evaluation import evaluate_predictor
from uflow.images import read_image, resize_image
from uflow.prediction import Prediction
from uflow.predictor import Predictor

KINDS = ("onnx", "torch", "int8", "any")
# name -> (kind, runtime) of each way to run the network
WAYS = {
    "torch.export": ("torch", "torch"),
    "ONNX Runtime": ("onnx", "onnxruntime"),
    "OpenVINO": ("onnx", "openvino"),
    "ONNX Runtime, INT8": ("int8", "onnxruntime"),
    "OpenVINO, INT8": ("int8", "openvino"),
}
SIZES = ((480, 640), (640, 480), (1080, 1920), (2000, 3000))
QUICK_SIZES = ((90, 120),)


def write_exports(detector: Detector, good: Sequence[Path], folder: Path, kinds: Sequence[str]) -> None:
    """One folder for each kind; "any" resizes by itself."""
    options: dict[str, dict[str, Any]] = {
        "onnx": {},
        "torch": {"format": "torch"},
        "int8": {"int8": list(good)},
        "any": {"dynamic_size": True},
    }
    for kind in kinds:
        export(detector, folder / kind, **options[kind])


def open_exports(folder: Path, threads: int | None = None) -> dict[str, Predictor]:
    """Each way to run the networks that were written."""
    ways = {name: way for name, way in WAYS.items() if (folder / way[0]).exists()}
    return {name: exported.load(folder / kind, runtime, threads) for name, (kind, runtime) in ways.items()}


def differences(predictor: Predictor, wanted: Sequence[Prediction], images: Sequence[Path]) -> dict[str, float]:
    """Largest and mean difference of the anomaly maps; how many images are judged otherwise."""
    pairs = list(zip(predictor.stream(images, batch_size=1), wanted, strict=True))
    apart = [np.abs(found.anomaly_map - expected.anomaly_map) for found, expected in pairs]
    otherwise = sum(found.is_anomalous != expected.is_anomalous for found, expected in pairs)
    largest, mean = max(float(d.max()) for d in apart), float(np.mean([d.mean() for d in apart]))
    return {"largest": largest, "mean": mean, "judged otherwise": otherwise}


def compare(detector: Detector, dataset: Dataset, folder: Path) -> dict[str, Any]:
    """A row for each way: its size, its maps beside torch's, its figures on the test set."""
    images = [sample.path for sample in dataset.test]
    wanted = list(detector.stream(images, batch_size=1))
    rows: dict[str, Any] = {"torch": {"evaluation": figures_of(detector, dataset)}}
    for name, predictor in open_exports(folder).items():
        megabytes = sum(part.stat().st_size for part in (folder / WAYS[name][0]).iterdir()) / 1e6
        rows[name] = {"MB": megabytes, **differences(predictor, wanted, images)}
        rows[name]["evaluation"] = figures_of(predictor, dataset)
    return rows


def figures_of(predictor: Predictor | Detector, dataset: Dataset) -> dict[str, Any]:
    """The figures of the whole test set, without its images and curves."""
    found = evaluate_predictor(predictor, dataset).to_dict()
    return {name: value for name, value in found.items() if not isinstance(value, (list, dict))}


def equality_table(rows: Mapping[str, Any], name: str) -> str:
    """What `compare` gave."""
    columns = {"MB": ".0f", "largest": ".1e", "mean": ".1e", "judged otherwise": "d"}
    lines = [[name, "MB", "map differs by at most", "on average", "judged otherwise", "pixel AUROC", "image AUROC"]]
    for way, row in rows.items():
        cells = [f"{row[key]:{form}}" if key in row else "" for key, form in columns.items()]
        figures = [tables.share(row["evaluation"][key]) for key in ("pixel_auroc", "image_auroc")]
        lines.append([way, *cells, *figures])
    return tables.markdown(lines)


def speeds(detector: Detector, folder: Path, batch: NDArray[np.uint8]) -> Iterator[Contest]:
    """All ways in turns, one image or several at a time, on one thread or two."""
    for threads in (1, 2)[: len(CORES)]:
        networks = {name: predictor.network for name, predictor in open_exports(folder, threads).items()}
        for size in (1, len(batch)):
            contestants = {"torch": evidence_of(detector.network, batch[:size])}
            contestants |= {name: evidence_of(network, batch[:size]) for name, network in networks.items()}
            case = f"{threads} thread{'s' * (threads > 1)}, batch of {size}"
            yield Contest("the network", case, contestants, None, threads=threads)


def evidence_of(network: Any, images: NDArray[np.uint8]) -> Function:
    """One run of the network."""
    return lambda: network.evidence(images)


def any_size(folder: Path, image: NDArray[np.uint8], sizes: Sequence[tuple[int, int]]) -> Iterator[Contest]:
    """A network that resizes by itself beside Pillow and the network of fixed size, for an image of several sizes."""
    threads = min(2, len(CORES) or 1)
    fixed = exported.load(folder / "onnx", "onnxruntime", threads)
    rivals = {name: exported.load(folder / "any", name, threads).network for name in ("onnxruntime", "openvino")}
    for size in sizes:
        large = np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))
        wanted = fixed.anomaly_map(fixed.evidence([large], 1)[0], size)
        contestants = {"Pillow, fixed size": lambda x=large: fixed.evidence([x], 1)}
        contestants |= {f"{name}, resizing": map_of(network, large[None]) for name, network in rivals.items()}
        agree = partial(assert_similar_maps, wanted)
        yield Contest("image to map", f"{size[0]}x{size[1]}", contestants, agree, threads=threads)


def map_of(network: Any, images: NDArray[np.uint8]) -> Function:
    """The map that the network gives, at its images' size."""
    return lambda: network.run(images)[-1][0]


def assert_similar_maps(wanted: NDArray[np.float32], _: object, *others: NDArray[np.float32]) -> None:
    """Some pixels are resized to a level beside Pillow's."""
    for other in others:
        np.testing.assert_allclose(other, wanted, rtol=0, atol=0.02)


def main() -> None:
    """Train, export, compare, print, write."""
    parser = trained.options(__doc__, "export.json")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of exports to write")
    arguments = parser.parse_args()
    pace, races, content = race.pace_of(arguments, Pace(0.01, budget=20, most=15)), [], {}
    for root in arguments.roots:
        dataset = trained.category(root)
        detector = trained.fit(dataset, arguments)
        with TemporaryDirectory() as folder:
            some = dataset.train[:: max(len(dataset.train) // 50, 1)]
            write_exports(detector, some, Path(folder), arguments.kinds)
            content[dataset.name] = compare(detector, dataset, Path(folder))
            print(f"\n{equality_table(content[dataset.name], dataset.name)}", flush=True)
            if root == arguments.roots[-1]:
                images = [read_image(sample.path) for sample in dataset.test[:8]]
                batch = np.stack([resize_image(image, detector.network.image_size) for image in images])
                sizes = QUICK_SIZES if arguments.quick else SIZES
                races = [race.run(contest, pace) for contest in speeds(detector, Path(folder), batch)]
                if {"onnx", "any"} <= set(arguments.kinds):
                    races += [race.run(contest, pace) for contest in any_size(Path(folder), images[0], sizes)]
    print("\n" + tables.time_table(races, ("first", "network")))
    trained.write(arguments, races, ("torch", "onnx", "onnxruntime", "openvino"), categories=content)


if __name__ == "__main__":
    main()
