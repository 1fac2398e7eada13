"""Does the threshold keep its promise? The share of unseen good images flagged, for the alpha that was asked for.

python benchmarks/threshold.py data/magnetic_tile --seeds 0 1 2

Trains the default for each seed; one training serves all alphas. A second table says what the number of calibration
images does at alpha 5 %: so many good test images, drawn at random, set the limit for the others.
docs/notebook/threshold.md has the record of other tests that were tried.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tables
import trained
from numpy.typing import NDArray

from uflow.conformal import conformal_shift, supported_alpha
from uflow.detector import Detector
from uflow.evaluate.datasets import Dataset
from uflow.threshold import CalibratedThreshold

ALPHAS = (0.02, 0.05, 0.1, 0.2)
COUNTS = (19, 30, 38, 39, 58, 59, 79, 99)  # of calibration images
COUNTED_ALPHA = 0.05
DRAWS = 1000


@dataclass(frozen=True)
class Run:
    """One trained detector on its test images.

    Attributes:
        threshold: as `fit` calibrated it.
        lowest: the lowest log10 NFA of each test image, before the shift.
        good: which of them are good.
    """

    threshold: CalibratedThreshold
    lowest: NDArray[np.float64]
    good: NDArray[np.bool_]

    def flagged(self, alpha: float) -> tuple[float, float]:
        """Shares of the good and of the defective images."""
        flags = self.lowest + self.threshold.at(alpha).shift < 0
        return float(flags[self.good].mean()), float(flags[~self.good].mean())


def run(detector: Detector, dataset: Dataset) -> Run:
    """Predict the test images."""
    threshold = detector.threshold
    assert isinstance(threshold, CalibratedThreshold)
    results = detector.stream([sample.path for sample in dataset.test])
    lowest = np.array([float(result.log_nfa.min()) for result in results]) - threshold.shift
    return Run(threshold, lowest, np.array([not sample.is_anomalous for sample in dataset.test]))


def promise(runs: Sequence[Run], alpha: float) -> dict[str, float]:
    """What was promised, and the shares that were flagged: means over the runs.

    The standard error is of the mean share of good images, whose truth is alpha: each run has the same test images and
    other calibration images.
    """
    good, defective = np.mean([each.flagged(alpha) for each in runs], axis=0).tolist()
    tested, calibrated = int(runs[0].good.sum()), sum(len(each.threshold.minima) for each in runs)
    error = math.sqrt(alpha * (1 - alpha) * (1 / tested + 1 / calibrated))
    supported = supported_alpha(min(len(each.threshold.minima) for each in runs))
    return {"alpha": alpha, "good": good, "error": error, "defective": defective, "supported": supported}


def by_count(runs: Sequence[Run], count: int) -> dict[str, float]:
    """Shares flagged where `count` good test images, drawn at random, set the limit: means over draws and runs."""
    rng = np.random.default_rng(count)
    shares = []
    for each in runs:
        good, defective = each.lowest[each.good], each.lowest[~each.good]
        for _ in range(DRAWS):
            drawn = rng.permutation(len(good))
            shift = conformal_shift(good[drawn[:count]], COUNTED_ALPHA)
            shares.append([(values + shift < 0).mean() for values in (good[drawn[count:]], defective)])
    flagged, found = np.mean(shares, axis=0).tolist()
    return {"images": count, "good": flagged, "defective": found}


def main() -> None:
    """Train, predict, print, write."""
    parser = trained.options(__doc__, "threshold.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    kept, counted = {}, {}
    for root in arguments.roots:
        dataset = trained.category(root)
        runs = [run(trained.fit(dataset, arguments, seed), dataset) for seed in arguments.seeds]
        kept[dataset.name] = [promise(runs, alpha) for alpha in ALPHAS]
        rows = [[f"{dataset.name}, alpha", "good flagged ± standard error", "defective flagged"]]
        for row in kept[dataset.name]:
            few = "" if row["supported"] <= row["alpha"] else f" (so few images promise {row['supported']:.1%})"
            flagged = f"{tables.share(row['good'])} ± {tables.share(row['error'])}"
            rows.append([f"{row['alpha']:.0%}{few}", flagged, tables.share(row["defective"])])
        print(f"\n{tables.markdown(rows)}")
        counts = [count for count in COUNTS if count <= runs[0].good.sum() // 2]
        counted[dataset.name] = [by_count(runs, count) for count in counts]
        rows = [[f"{dataset.name}, calibration images", "good flagged", "defective flagged"]]
        rows += [
            [str(row["images"]), *(tables.share(row[kind]) for kind in ("good", "defective"))]
            for row in counted[dataset.name]
        ]
        print(f"\n{tables.markdown(rows)}")
    trained.write(arguments, [], ("torch", "timm"), seeds=arguments.seeds, promises=kept, counts=counted)


if __name__ == "__main__":
    main()
