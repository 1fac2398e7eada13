"""How well the default finds defects: trains on each category's good images, evaluates on its test images.

python benchmarks/accuracy.py data/magnetic_tile data/cookie data/hazelnut_toy

It also says what the parts that the default adds to the paper's method cost in time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import race
import tables
import trained
from race import Contest, Pace

from uflow.detector import Detector
from uflow.evaluate.evaluation import evaluate_predictor
from uflow.evaluate.tables import evaluations_table
from uflow.network import TorchNetwork
from uflow.predictor import Predictor
from uflow.threshold import PaperThreshold

CURVES = ("images", "roc", "pro")  # of an evaluation: not kept


def prediction_costs(detector: Detector, images: Sequence[Path], name: str) -> Contest:
    """Files to regions: by the paper's method alone, and by the default, with a memory of good images too."""
    network = detector.network
    alone = TorchNetwork(network.backbone, network.flow, device=network.device)
    paper = Predictor(alone, PaperThreshold(), tile=detector.predictor.tile)
    contestants = {
        "the paper's method": lambda: paper.predict(list(images)),
        "the default": lambda: detector.predict(list(images)),
    }
    return Contest("prediction, files to regions", name, contestants, None)


def main() -> None:
    """Train, evaluate, print, write."""
    parser = trained.options(__doc__, "accuracy.json")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    evaluations, seconds, races = {}, {}, []
    for root in arguments.roots:
        dataset, started = trained.category(root), time.perf_counter()
        detector = trained.fit(dataset, arguments, arguments.seed)
        seconds[dataset.name] = round(time.perf_counter() - started)
        evaluations[dataset.name] = evaluate_predictor(detector, dataset, progress=True)
        pace = race.pace_of(arguments, Pace(budget=30, most=9))
        races.append(race.run(prediction_costs(detector, dataset.train[:8], dataset.name), pace))
    print(evaluations_table(evaluations).to_markdown())
    print("\ntraining:", ", ".join(f"{name} {took} s" for name, took in seconds.items()))
    for name, evaluation in evaluations.items():
        kinds = (f"{kind} {c['share']:.0%} of {c['images']}" for kind, c in evaluation.flagged.items())
        print(f"{name}: flagged {', '.join(kinds)}")
    print("\n" + tables.time_table(races, ("paper's", "changed")))
    figures = {
        name: {key: value for key, value in evaluation.to_dict().items() if key not in CURVES}
        | {"training_seconds": seconds[name]}
        for name, evaluation in evaluations.items()
    }
    trained.write(arguments, races, ("torch", "timm"), seed=arguments.seed, categories=figures)


if __name__ == "__main__":
    main()
