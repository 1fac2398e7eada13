"""Maps of anomalib's models: our threshold for an alpha beside anomalib's own, which is set on the test set.

python benchmarks/anomalib_maps.py data/hazelnut_toy data/magnetic_tile

A third of the good images is kept out of learning, and `uflow.Threshold` is calibrated on their maps: what
`CalibratedPostProcessor` does inside anomalib. anomalib's F1 threshold takes, as by its default, the test images
and their truth, for the level of the map and for that of the score: no fair figure, but what its users see. IoU is the
mean over the defective images; an image without a mask has IoU 0. Features: EfficientNet-Lite0, at 256 x 256.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import race
import tables
import torch
import trained
from numpy.typing import NDArray

from uflow.conformal import supported_alpha
from uflow.evaluate import metrics
from uflow.evaluate.datasets import Dataset
from uflow.evaluate.rival_methods import Scorer, Settings, find_method
from uflow.evaluate.samples import Sample
from uflow.images import read_image, resize_image, resize_mask
from uflow.map_threshold import Threshold

SIZE = (256, 256)  # masks are compared as in the paper
SHARE = 1 / 3  # of the good images, kept out to calibrate on
ALPHAS = (0.05, 0.1, 0.2)
CONTROL = 30  # good test images from which on some of them calibrate too
METHODS = ("patchcore", "padim")

Maps = NDArray[np.float32]


@dataclass(frozen=True)
class Run:
    """What one model says: maps of kept-out good images, maps and scores of test images, and their truth at `SIZE`."""

    samples: list[Sample]
    kept_out: Maps
    maps: Maps
    scores: NDArray[np.float32]
    truths: NDArray[np.bool_]


@torch.inference_mode()
def scored(scorer: Scorer, paths: Sequence[Any], size: tuple[int, int]) -> tuple[Maps, NDArray[np.float32]]:
    """Maps, (N, h, w), and scores of images."""
    found = [scorer(batch) for batch in Settings().read_images(paths, size)]
    return np.concatenate([m.float() for m, _ in found]), np.concatenate([s.float() for _, s in found])


def choose(samples: Sequence[Any], count: int, seed: int) -> list[Any]:
    """At most `count` of them, at random."""
    order = np.random.default_rng(seed).permutation(len(samples))
    return [samples[i] for i in sorted(order[:count])]


def run(dataset: Dataset, method: str, seed: int, arguments: Any) -> Run:
    """Learn, and make all maps."""
    learn = find_method(method)
    assert learn is not None
    good = choose(dataset.train, arguments.images, seed)
    np.random.default_rng(seed).shuffle(good)
    count = max(math.ceil(SHARE * len(good)), 2)
    size = (64, 64) if arguments.quick else SIZE
    _, scorer = learn(good[count:], Settings(image_size=size), seed)
    good_tests, defects = ([s for s in dataset.test if s.is_anomalous is kind] for kind in (False, True))
    samples = [*choose(good_tests, arguments.images, 0), *choose(defects, arguments.images, 0)]
    maps, scores = scored(scorer, [sample.path for sample in samples], size)
    return Run(samples, scored(scorer, good[:count], size)[0], maps, scores, np.array([_truth(s) for s in samples]))


def _truth(sample: Sample) -> NDArray[np.bool_]:
    truth = sample.truth(read_image(sample.path).shape[:2])
    assert truth is not None
    return resize_mask(truth, SIZE)


def judge(found: Run, alpha: float) -> dict[str, float]:
    """Our threshold at an alpha."""
    threshold = Threshold.from_good_maps(found.kept_out, alpha)
    masks = np.array([threshold.apply(values, SIZE).mask for values in found.maps])
    return figures(masks, masks.any(axis=(1, 2)), found.truths)


def judge_by_tests(found: Run, alpha: float, parts: int = 3) -> dict[str, float]:
    """The same, calibrated on a part of the good test images and judging the others: the mean over the parts.

    A control: where it keeps alpha and `judge` does not, training images that are kept out are not like the test's.
    """
    good = np.flatnonzero(~found.truths.any(axis=(1, 2)))
    rows = []
    for part in range(parts):
        own = good[part::parts]
        others = np.setdiff1d(np.arange(len(found.maps)), own)
        rest = replace(found, kept_out=found.maps[own], maps=found.maps[others], truths=found.truths[others])
        rows.append(judge(rest, alpha))
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def judge_by_anomalib(found: Run) -> dict[str, float]:
    """anomalib's own levels: the best F1 of the scores, and of the pixels, on the test set itself."""
    scores, defective = torch.from_numpy(found.scores), torch.from_numpy(found.truths).flatten(1).any(1)
    flagged = (scores > best_level(scores, defective)).numpy()
    return figures(masks_by_anomalib(found), flagged, found.truths)


def masks_by_anomalib(found: Run) -> NDArray[np.bool_]:
    """The pixels beyond the level of the best F1 on the test set."""
    maps = torch.nn.functional.interpolate(torch.from_numpy(found.maps)[:, None], SIZE, mode="bilinear")[:, 0]
    masks: NDArray[np.bool_] = (maps > best_level(maps, torch.from_numpy(found.truths))).numpy()
    return masks


def best_level(values: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """The level that anomalib's post-processor would take."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from anomalib.metrics.threshold.f1_adaptive_threshold import _F1AdaptiveThreshold
    metric = _F1AdaptiveThreshold()
    metric.update(values.flatten(), truth.flatten().int())
    return metric.compute()


def figures(masks: NDArray[np.bool_], flagged: NDArray[np.bool_], truths: NDArray[np.bool_]) -> dict[str, float]:
    """Shares of images that are flagged, and the mean IoU of defective ones."""
    defective = truths.any(axis=(1, 2))
    ious = [metrics.iou(mask, truth) for mask, truth in zip(masks[defective], truths[defective], strict=True)]
    return {
        "good": float(flagged[~defective].mean()),
        "defective": float(flagged[defective].mean()),
        "iou": float(np.mean(ious)),
    }


def table(found: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """A row a category, method and threshold: means over the seeds."""
    rows = [["category", "model", "threshold", "good flagged", "defective flagged", "IoU"]]
    for category, methods in found.items():
        for method, runs in methods.items():
            for name in runs[0]["thresholds"]:
                means = {
                    key: float(np.mean([run["thresholds"][name][key] for run in runs]))
                    for key in ("good", "defective", "iou")
                }
                shares = [f"{means[key]:.1%}" for key in ("good", "defective")]
                rows.append([category, method, name, *shares, f"{means['iou']:.3f}"])
    return tables.markdown(rows, texts=3)


def draw(found: Run, path: Path, alpha: float = 0.1, shown: int = 5) -> None:
    """Defective images, the model's map, our mask with its p-value, and anomalib's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    threshold, theirs = Threshold.from_good_maps(found.kept_out, alpha), masks_by_anomalib(found)
    defective = np.flatnonzero(found.truths.any(axis=(1, 2)))
    chosen = defective[np.linspace(0, len(defective) - 1, shown).round().astype(int)].tolist()
    figure = Figure(figsize=(1.6 * shown + 0.4, 7.8), dpi=80)
    FigureCanvasAgg(figure)
    for axes, index in zip(figure.subplots(5, shown, squeeze=False).T, chosen, strict=True):
        judged = threshold.apply(found.maps[index], SIZE)
        image = resize_image(read_image(found.samples[index].path), SIZE)
        panels = {
            "image": image,
            "truth": found.truths[index],
            "map": found.maps[index],
            f"alpha {alpha:g}": judged.mask,
            "anomalib": theirs[index],
        }
        for axis, (name, panel) in zip(axes, panels.items(), strict=True):
            axis.imshow(panel, cmap="inferno" if name == "map" else "gray", interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if index == chosen[0]:
                axis.set_ylabel(name)
        axes[3].set_xlabel(f"p = {judged.p_value:.2g}")
    figure.tight_layout(pad=0.4)
    figure.savefig(path, format="png")


def main() -> None:
    """Learn, judge, print, write."""
    parser = trained.options(__doc__, "anomalib_maps.json")
    parser.add_argument("--seeds", default="0", help="each keeps other good images out")
    parser.add_argument(
        "--images",
        type=int,
        default=60,
        help="at most so many good ones to learn from and calibrate on, good ones and defective ones to test on",
    )
    parser.add_argument("--picture", type=Path, help="draw some masks of the last model into this file")
    arguments = parser.parse_args()
    torch.set_num_threads(len(race.CORES) or 1)
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for root in arguments.roots:
        dataset = trained.category(root)
        found[dataset.name] = {method: [] for method in METHODS}
        for method in METHODS:
            for seed in map(int, arguments.seeds.split(",")):
                made = run(dataset, method, seed, arguments)
                thresholds = {f"alpha {alpha:g}": judge(made, alpha) for alpha in ALPHAS}
                if (~made.truths.any(axis=(1, 2))).sum() >= CONTROL:
                    thresholds |= {f"alpha {a:g}, good tests calibrate": judge_by_tests(made, a) for a in ALPHAS}
                thresholds["anomalib's F1, on the test set"] = judge_by_anomalib(made)
                good, supported = int((~made.truths.any((1, 2))).sum()), supported_alpha(len(made.kept_out))
                found[dataset.name][method].append(
                    {"good": good, "kept_out": len(made.kept_out), "supported": supported, "thresholds": thresholds}
                )
        first = found[dataset.name][METHODS[0]][0]
        print(
            f"{dataset.name}: {first['kept_out']} maps to calibrate on support alpha >= {first['supported']:.3f}; "
            f"{first['good']} good test images",
            flush=True,
        )
    if arguments.picture is not None:
        draw(made, arguments.picture)
    print(f"\nseeds {arguments.seeds}\n\n{table(found)}")
    trained.write(arguments, [], ("torch", "anomalib"), seeds=arguments.seeds, categories=found)


if __name__ == "__main__":
    main()
