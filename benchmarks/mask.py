"""The automatic mask beside plain cuts of maps, on real and on made defects.

python benchmarks/mask.py data/hazelnut_toy data/cookie --seeds 0,1,2 --rivals patchcore,neighbours

The good images in a category's folder `calibration` are kept out of learning, or a quarter of the good images where
there is none: on them the automatic threshold is calibrated, and on them the cuts get their level, so that a good image
is flagged with the same promised probability. "Map alone" is the automatic mask whose outlines do not follow the
colours of the image. "Paper" is the published test, which nothing is calibrated for. IoU is the mean over the defective
images only, with the standard error of one run; a defective image that is not flagged has IoU 0. "Ahead" is how
much more a way has than the automatic mask, image by image, with the standard error of one run. "Best" is the one
level that is best on the test images themselves: no fair figure, but the mark that a mask without a threshold is
measured by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tables
import torch
import trained
from numpy.typing import NDArray

from uflow.detector import Detector
from uflow.evaluate import metrics
from uflow.evaluate.datasets import Dataset
from uflow.evaluate.rival_methods import Scorer, Settings, check_methods, find_method
from uflow.images import read_image, resize_image, resize_mask
from uflow.listing import list_images
from uflow.scoring import Evidence
from uflow.threshold import PaperThreshold

SIZE = (256, 256)  # masks are compared as in the paper
SHARE = 0.25  # of the good images, kept out to calibrate on where the category has no others

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]
Image = NDArray[np.uint8]


@dataclass
class Figures:
    """What is known of one way to make masks on one kind of defects."""

    ious: list[float] = field(default_factory=list)
    flagged: dict[str, list[bool]] = field(default_factory=lambda: {"good": [], "defective": []})
    scores: dict[str, list[float]] = field(default_factory=lambda: {"good": [], "defective": []})
    best: metrics.BestIoU = field(default_factory=metrics.BestIoU)

    def add(self, mask: Mask, values: Map, score: float, truth: Mask) -> None:
        """An image: its mask, the map that the mask was made of, its score, and the truth."""
        kind = "defective" if truth.any() else "good"
        self.flagged[kind].append(bool(mask.any()))
        self.scores[kind].append(score)
        if truth.any():
            self.ious.append(metrics.iou(mask, truth))
            self.best.update(values, truth)

    def row(self, automatic: Figures) -> dict[str, float]:
        """The figures, beside those of the automatic mask on the same images, ready for JSON."""
        ahead = np.subtract(self.ious, automatic.ious)
        labels = [False] * len(self.scores["good"]) + [True] * len(self.scores["defective"])
        return {
            "iou_defective": float(np.mean(self.ious)),
            "iou_error": _standard_error(self.ious),
            "ahead": float(np.mean(ahead)),
            "ahead_error": _standard_error(ahead),
            "best_iou": self.best.best()[0],
            "good_flagged": float(np.mean(self.flagged["good"])),
            "defective_flagged": float(np.mean(self.flagged["defective"])),
            "image_auroc": metrics.auroc([*self.scores["good"], *self.scores["defective"]], labels),
        }


def _standard_error(values: Sequence[float] | NDArray[np.float64]) -> float:
    return float(np.std(values) / math.sqrt(len(values)))


def made_defect(image: Image, rng: np.random.Generator) -> tuple[Image, Mask]:
    """A copy of a good image with a dot, a scratch, or a patch from elsewhere in it, and the pixels that changed.

    Of 1 to 15 % of the shorter side, darker or lighter by a third of the range: defects that nobody chose by results.
    """
    height, width = image.shape[:2]
    side = min(height, width) * rng.uniform(0.01, 0.15)
    row, column = rng.uniform(side, height - side), rng.uniform(side, width - side)
    rows, columns = np.mgrid[:height, :width]
    turn = rng.uniform(0, math.pi)
    along = (rows - row) * math.sin(turn) + (columns - column) * math.cos(turn)
    across = (rows - row) * math.cos(turn) - (columns - column) * math.sin(turn)
    shape = int(rng.integers(3))
    reach = (side / 2, side / 2) if shape != 1 else (2 * side, max(1.0, side / 10))
    mask = (along / reach[0]) ** 2 + (across / reach[1]) ** 2 <= 1
    mask[int(row), int(column)] = True
    changed = image.astype(np.float32)
    if shape == 2:
        changed[mask] = np.roll(image, (height // 3, width // 3), (0, 1))[mask]
    else:
        changed[mask] += 85.0 * (1 if rng.random() < 0.5 else -1)
    spoiled = changed.clip(0, 255).astype(np.uint8)
    return spoiled, mask & (spoiled != image).any(axis=2)


def test_images(dataset: Dataset, seed: int) -> Iterator[tuple[str, Image, Mask]]:
    """("real" or "made", image, truth at `SIZE`): good test images count for both, and get a made defect each."""
    rng = np.random.default_rng(seed)
    for sample in dataset.test:
        image = read_image(sample.path)
        truth = sample.truth((image.shape[0], image.shape[1]))
        if truth is None or (sample.is_anomalous and not truth.any()):
            continue
        yield "real", image, resize_mask(truth, SIZE)
        if not sample.is_anomalous:
            yield "made", image, resize_mask(truth, SIZE)
            spoiled, changed = made_defect(image, rng)
            if (small := resize_mask(changed, SIZE)).any():
                yield "made", spoiled, small


def level_of(maxima: Sequence[float], alpha: float) -> float:
    """The lowest level that a good image's largest value exceeds with a probability of at most alpha (conformal)."""
    allowed = max(math.floor(alpha * (len(maxima) + 1) - 1 + 1e-9), 0)
    return float(np.sort(maxima)[::-1][min(allowed, len(maxima) - 1)])


def maps_of(name: str, learnt: Sequence[Path], detector: Detector, seed: int) -> Callable[[Image], Map]:
    """A method of `uflow compare` on the same features and input size, learnt from the same images."""
    method = find_method(name)
    assert method is not None
    size = detector.network.image_size
    _, scorer = method(learnt, Settings(image_size=size), seed)

    def values(image: Image) -> Map:
        return _scored(scorer, resize_image(image, size))

    return values


@torch.inference_mode()
def _scored(scorer: Scorer, image: Image) -> Map:
    maps, _ = scorer(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
    resized = torch.nn.functional.interpolate(maps[:, None].float(), SIZE, mode="bilinear", align_corners=False)
    return np.asarray(resized[0, 0])


def split(root: Path, train: Sequence[Path], seed: int) -> tuple[list[Path], list[Path]]:
    """The good images to learn from, and those to set levels by."""
    if (root / "calibration").is_dir():
        return list(train), list_images(root / "calibration")
    order = np.random.default_rng(seed).permutation(len(train))
    count = max(math.ceil(SHARE * len(order)), 2)
    return [train[i] for i in order[count:]], [train[i] for i in order[:count]]


def measure(dataset: Dataset, root: Path, seed: int, arguments: Any) -> dict[str, dict[str, dict[str, float]]]:
    """Figures of each way to make masks on a category, for real and for made defects."""
    learnt, kept_out = split(root, dataset.train, seed)
    recipe = {} if arguments.quick else {"quality": arguments.quality}
    detector = trained.fit(Dataset(dataset.name, learnt, dataset.test), arguments, seed, alpha=None, **recipe)
    detector.calibrate(kept_out, arguments.alpha)
    own = detector.predictor
    rivals = {name: maps_of(name, learnt, detector, seed) for name in arguments.rivals}

    def look(image: Image) -> tuple[Evidence, dict[str, Map]]:
        (evidence,) = own.evidence([image], 1)
        return evidence, {"cut": own.anomaly_map(evidence, SIZE), **{name: f(image) for name, f in rivals.items()}}

    maxima = [{name: float(m.max()) for name, m in look(read_image(p))[1].items()} for p in kept_out]
    levels = {name: level_of([each[name] for each in maxima], arguments.alpha) for name in maxima[0]}
    ways = {
        kind: {name: Figures() for name in ("automatic", "map alone", "paper", *levels)} for kind in ("real", "made")
    }
    for kind, image, truth in test_images(dataset, seed):
        evidence, maps = look(image)
        for name, rule, images in (
            ("automatic", own.threshold, [image]),
            ("map alone", own.threshold, None),
            ("paper", PaperThreshold(), None),
        ):
            (log_nfa,) = rule.log_nfa(evidence, own.network.latent_channels, SIZE, images)
            ways[kind][name].add(log_nfa < 0, -log_nfa, -float(log_nfa.min()), truth)
        for name, values in maps.items():
            ways[kind][name].add(values > levels[name], values, float(values.max()), truth)
    return {
        kind: {name: f.row(named["automatic"]) for name, f in named.items() if f.ious} for kind, named in ways.items()
    }


def table(found: dict[str, list[dict[str, dict[str, dict[str, float]]]]], kind: str) -> str:
    """A row a category and way, means over the seeds; at the end the means over the categories."""
    columns = "category, mask, IoU, error, ahead, error, best IoU, good flagged, defective flagged, image AUROC"
    rows = [columns.split(", ")]
    means = {
        (category, way): _mean([run[kind][way] for run in runs])
        for category, runs in found.items()
        for way in runs[0][kind]
    }
    if len(found) > 1:
        for way in dict.fromkeys(way for _, way in means):
            means["mean", way] = _mean([means[category, way] for category in found if (category, way) in means])
    for (category, way), mean in means.items():
        flags = [f"{mean[name]:.1%}" for name in ("good_flagged", "defective_flagged")]
        ious = [f"{mean[name]:.3f}" for name in ("iou_defective", "iou_error", "ahead", "ahead_error", "best_iou")]
        rows.append([category, way, *ious, *flags, f"{mean['image_auroc']:.3f}"])
    return tables.markdown(rows, texts=2)


def _mean(entries: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([entry[name] for entry in entries])) for name in entries[0]}


def main() -> None:
    """Train, calibrate, make masks, print, write."""
    parser = trained.options(__doc__, "mask.json")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--quality", default="balanced")
    parser.add_argument("--rivals", default="", help="methods of uflow compare whose maps are cut too: patchcore,...")
    arguments = parser.parse_args()
    arguments.rivals = [name for name in arguments.rivals.split(",") if name]
    if "uflow" in arguments.rivals:
        parser.error("uflow is the automatic mask itself, no rival")
    try:
        check_methods(arguments.rivals)
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    found = {}
    for root in arguments.roots:
        dataset = trained.category(root)
        found[dataset.name] = [measure(dataset, root, int(seed), arguments) for seed in arguments.seeds.split(",")]
        print(f"{dataset.name}: {found[dataset.name]}", flush=True)
    for kind in ("real", "made"):
        print(f"\n{kind} defects, alpha {arguments.alpha:g}, seeds {arguments.seeds}\n\n{table(found, kind)}")
    trained.write(arguments, [], ("torch", "timm"), seeds=arguments.seeds, alpha=arguments.alpha, categories=found)


if __name__ == "__main__":
    main()
