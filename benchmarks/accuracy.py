"""Reprints the README's table of results: train on each category's good images, evaluate on its test images.

python benchmarks/accuracy.py data/magnetic_tile data/cookie data/hazelnut_toy
"""

import argparse
import platform
import statistics
import time
from pathlib import Path

import torch

import uflow
from uflow.evaluate import tables as report


def distances_cost(detector: uflow.Detector, images: list[Path]) -> float:
    """Time to predict some images over that without the distance to neighbours: median of 9 neighbouring rounds."""
    neighbours, ratios = detector.neighbours, []
    for _ in range(10):
        taken = []
        for used in (neighbours, None):
            detector.neighbours = used
            started = time.perf_counter()
            detector.predict(images)
            taken.append(time.perf_counter() - started)
        ratios.append(taken[0] / taken[1])
    detector.neighbours = neighbours
    return statistics.median(ratios[1:])  # the first warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="+", type=Path, help="folders in the MVTec layout")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/accuracy.json"))
    arguments = parser.parse_args()

    evaluations, seconds, cost = {}, {}, {}
    for root in arguments.roots:
        started = time.perf_counter()
        settings = uflow.training.TrainingSettings(seed=arguments.seed)
        detector = uflow.Detector.fit(root / "train/good", settings=settings)
        seconds[root.name] = round(time.perf_counter() - started)
        evaluations[root.name] = detector.evaluate(root, progress=True)
        cost[root.name] = distances_cost(detector, uflow.data.list_images(root / "train/good")[:8])

    header, *rows = report.table(evaluations)
    print("|", " | ".join([*header, "training"]), "|")
    print("|", " | ".join(["---"] * (len(header) + 1)), "|")
    for row in rows:
        print("|", " | ".join([*row, f"{seconds[row[0]]} s" if row[0] in seconds else ""]), "|")
    for name, evaluation in evaluations.items():
        kinds = (f"{kind} {c['share']:.0%} of {c['images']}" for kind, c in evaluation.flagged.items())
        print(f"{name}: flagged {', '.join(kinds)}")
    for name, ratio in cost.items():
        print(f"{name}: the distance to neighbours makes prediction take {ratio:.2f} times as long (median of 9)")
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"uflow {uflow.__version__}, seed {arguments.seed}, {machine}")
    content = {
        name: {k: v for k, v in e.to_dict().items() if k not in ("images", "roc", "pro")}
        | {"training_seconds": seconds[name]}
        for name, e in evaluations.items()
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    report.write_json({"machine": machine, "seed": arguments.seed, "categories": content}, arguments.json)


if __name__ == "__main__":
    main()
