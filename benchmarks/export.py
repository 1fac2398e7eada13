"""Reprints the figures of docs/deploy.md: exported networks beside torch, their speed, and what INT8 costs.

python benchmarks/export.py data/hazelnut_toy data/magnetic_tile

Trains on each category. Speed is measured on the last one: ms an image through the network, median of rounds in which
all take turns; one thread in processor time, two by the clock.
"""

import argparse
import shutil
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import uflow
from uflow import benchmark
from uflow.deploy import export
from uflow.deploy import exported as runtime
from uflow.evaluate import tables as report
from uflow.images import list_images, read_image, resize_image
from uflow.predictor import Predictor


def exported(detector: uflow.Detector, good: list[Path], folder: Path) -> dict[str, tuple[Path, str]]:
    """name -> (folder, runtime) of each way to run the detector's network."""
    export.export(detector, folder / "onnx")
    export.export(detector, folder / "torch", "torch")
    export.export(detector, folder / "int8", int8=good)
    all8 = folder / "all8"  # what `export` does not offer: the backbone in 8 bits too
    shutil.copytree(folder / "onnx", all8)
    network = all8 / "network.onnx"
    export._quantise(network, [resize_image(read_image(p), detector.image_size) for p in good], part="")
    runtime.write_metadata(all8, {**runtime.read_metadata(all8), "files": {network.name: runtime.sha256(network)}})
    return {
        "torch.export": (folder / "torch", "torch"),
        "ONNX Runtime": (folder / "onnx", "onnxruntime"),
        "OpenVINO": (folder / "onnx", "openvino"),
        "ONNX Runtime, INT8": (folder / "int8", "onnxruntime"),
        "OpenVINO, INT8": (folder / "int8", "openvino"),
        "ONNX Runtime, backbone INT8 too": (all8, "onnxruntime"),
        "OpenVINO, backbone INT8 too": (all8, "openvino"),
    }


def differences(found: Predictor, wanted: list[uflow.Prediction], images: list[Path]) -> tuple[float, float, int]:
    """Largest and mean difference of the anomaly maps; how many images are judged otherwise."""
    pairs = list(zip(found.stream(images), wanted, strict=True))
    apart = [np.abs(a.anomaly_map - b.anomaly_map) for a, b in pairs]
    largest, mean = max(float(d.max()) for d in apart), float(np.mean([d.mean() for d in apart]))
    return largest, mean, sum(a.is_anomalous != b.is_anomalous for a, b in pairs)


def milliseconds(models: dict[str, Predictor], batch: np.ndarray, threads: int, rounds: int) -> dict[str, float]:
    clock = time.process_time if threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            started = clock()
            model._network(batch)
            times[name].append(1000 * (clock() - started) / len(batch))
    return {name: float(np.median(t[1:])) for name, t in times.items()}


def any_size(detector: uflow.Detector, folder: Path, image: np.ndarray, threads: int) -> list[dict[str, object]]:
    """A network that resizes by itself beside Pillow and the network of fixed size, for an image of several sizes."""
    export.export(detector, folder / "any", dynamic_size=True)
    models = {name: runtime.load(folder / "any", name, threads) for name in ("onnxruntime", "openvino")}
    fixed = runtime.load(folder / "onnx", "onnxruntime", threads)
    rows = []
    for size in ((480, 640), (640, 480), (1080, 1920), (2000, 3000)):
        large = np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))
        x = torch.from_numpy(large).permute(2, 0, 1).float()
        x = export._rounded(x @ export._resizing(x[0, 0], detector.image_size[1]).T)
        x = export._rounded(export._resizing(x[0, :, 0], detector.image_size[0]) @ x)
        apart = np.abs(x.permute(1, 2, 0).numpy() - resize_image(large, detector.image_size))
        wanted = fixed.predict(large).anomaly_map
        times: dict[str, list[float]] = {}
        for _ in range(7):
            for name, model in (("fixed", fixed), *models.items()):
                started = time.perf_counter()
                model._run_network((resize_image(large, detector.image_size) if model is fixed else large)[None])
                times.setdefault(name, []).append(1000 * (time.perf_counter() - started))
        maps = [np.abs(model._run_network(large[None])[-1][0] - wanted).max() for model in models.values()]
        rows.append(
            {
                "size": f"{size[0]}x{size[1]}",
                "one level off": float((apart > 0).mean()),
                "largest": float(apart.max()),
                "map": float(max(maps)),
                "ms": {name: float(np.median(t)) for name, t in times.items()},
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="+", type=Path, help="folders in the MVTec layout")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/export.json"))
    arguments = parser.parse_args()
    content = {}

    for root in arguments.roots:
        detector = uflow.Detector.fit(root / "train/good", device="cpu")
        good, images = list_images(root / "train/good"), list_images(root / "test")
        with tempfile.TemporaryDirectory() as folder:
            ways = exported(detector, good[:: max(len(good) // 50, 1)], Path(folder))
            megabytes = {
                name: sum(p.stat().st_size for p in where.iterdir()) / 1e6 for name, (where, _) in ways.items()
            }
            wanted = list(detector.stream(images))
            rows = {"torch": {"evaluation": detector.evaluate(root).to_dict()}}
            for name, (where, runs) in ways.items():
                model = runtime.load(where, runs)
                largest, mean, otherwise = differences(model, wanted, images)
                rows[name] = {"MB": megabytes[name], "largest": largest, "mean": mean, "judged otherwise": otherwise}
                rows[name]["evaluation"] = model.evaluate(root).to_dict()

            print(f"\n{root.name}: {len(images)} test images\n")
            print(
                "| network | MB | map differs by at most | on average | judged otherwise | pixel AUROC | image AUROC |",
                end="",
            )
            print(" good flagged | defective flagged |\n|" + " --- |" * 9)
            for name, row in rows.items():
                e = row["evaluation"]
                bad = [kind for kind in e["flagged"] if kind != "good"]
                count = sum(e["flagged"][kind]["images"] for kind in bad)
                share = sum(e["flagged"][kind]["images"] * e["flagged"][kind]["share"] for kind in bad) / count
                cells = [
                    f"{row[k]:{f}}" if k in row else ""
                    for k, f in (("MB", ".0f"), ("largest", ".1e"), ("mean", ".1e"), ("judged otherwise", "d"))
                ]
                cells += [
                    f"{e['pixel_auroc']:.4f}",
                    f"{e['image_auroc']:.4f}",
                    f"{e['flagged']['good']['share']:.1%}",
                    f"{share:.1%}",
                ]
                print("|", " | ".join([name, *cells]), "|")
            content[root.name] = rows

            if root is not arguments.roots[-1]:
                continue
            batch = np.stack([resize_image(read_image(p), detector.image_size) for p in images[:8]])
            speed = {}
            for threads in (1, 2):
                torch.set_num_threads(threads)
                models = {name: runtime.load(where, runs, threads) for name, (where, runs) in ways.items()}
                for size in (1, 8):
                    speed[f"{threads} threads, batch of {size}"] = milliseconds(
                        {"torch": detector, **models}, batch[:size], threads, arguments.rounds
                    )
            torch.set_num_threads(2)
            sizes = any_size(detector, Path(folder), read_image(images[0]), 2)
    print("\n| resized in the network | values other than Pillow's | by at most | map differs by at most |", end="")
    print(" ms fixed, with Pillow | ms ONNX Runtime | ms OpenVINO |\n|" + " --- |" * 7)
    for row in sizes:
        print(f"| {row['size']} | {row['one level off']:.2%} | {row['largest']:.0f} | {row['map']:.1e} |", end=" ")
        print(" | ".join(f"{t:.1f}" for t in row["ms"].values()), "|")
    print("\n| ms an image (times as fast as torch) |", " | ".join(speed), "|\n|" + " --- |" * 5)
    for name in next(iter(speed.values())):
        cells = [f"{column[name]:.1f} ({column['torch'] / column[name]:.2f})" for column in speed.values()]
        print("|", " | ".join([name, *cells]), "|")
    machine = benchmark.machine()
    machine["versions"] |= {name: version(name) for name in ("torch", "onnx", "onnxruntime", "openvino")}
    print("\n" + ", ".join([machine["processor"], *(f"{k} {v}" for k, v in machine["versions"].items())]))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    report.write_json({"machine": machine, "categories": content, "speed": speed, "any size": sizes}, arguments.json)


if __name__ == "__main__":
    main()
