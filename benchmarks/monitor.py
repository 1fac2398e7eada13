"""Does the monitor keep its promise, and how soon does it see a change? Prints the tables of docs/guide/monitor.md.

    python benchmarks/monitor.py data/magnetic_tile

Streams are random orders of the good test images, which no training saw. The calibration images are those of `fit`, or
a hundred of the test images, never in the stream then. A change is made to the images themselves, before the network.
What is watched is the model's p-value; beside it, the mean brightness of the image, ranked in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tables
import trained
from numpy.typing import NDArray
from PIL import Image, ImageFilter

import uflow
from uflow.conformal import conformal_p_value
from uflow.detector import Detector
from uflow.images import read_image
from uflow.monitor import Alarm, Monitor
from uflow.scoring import Evidence
from uflow.threshold import CalibratedThreshold

Pixels = NDArray[np.uint8]

ALPHA = 0.05
RATES = (0.01, 0.05)  # of false alarms
SOURCES = {"p-value": 0, "brightness": 1}  # what is watched: columns of `Numbers.changed`


def gain(factor: float) -> Callable[[Pixels], Pixels]:
    """As of another exposure."""
    return lambda image: (image * factor).clip(0, 255).astype(np.uint8)


def blur(radius: float) -> Callable[[Pixels], Pixels]:
    """As of a lens out of focus; the standard deviation in pixels."""
    return lambda image: np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def moved(share: float) -> Callable[[Pixels], Pixels]:
    """As of a camera that moved sideways by a share of the width; what comes into view is the border's reflection."""
    return lambda image: np.pad(image, ((0, 0), (0, round(share * image.shape[1])), (0, 0)), "reflect")[
        :, round(share * image.shape[1]) :
    ]


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "none": lambda image: image,
    "gain 0.9": gain(0.9),
    "gain 0.8": gain(0.8),
    "blur, 1 pixel": blur(1),
    "blur, 2 pixels": blur(2),
    "camera moved by 5%": moved(0.05),
    "camera moved by 15%": moved(0.15),
}


@dataclass(frozen=True)
class Numbers:
    """What is watched of images.

    Attributes:
        fitted: the lowest log10 NFA, before the shift, of the images that `fit` calibrated on.
        changed: of the test's good images under each change, (N, 2): the same, and the mean brightness.
    """

    fitted: NDArray[np.float64]
    changed: dict[str, NDArray[np.float64]]


def measure(detector: Detector, paths: Sequence[Path], change: Callable[[Pixels], Pixels]) -> NDArray[np.float64]:
    """The lowest log10 NFA of each image, changed, before the shift; and its brightness: (N, 2)."""
    threshold = detector.threshold
    assert isinstance(threshold, CalibratedThreshold)
    images = (change(read_image(path)) for path in paths)

    def numbers(_: object, image: Pixels, evidence: Evidence) -> tuple[float, float]:
        return float(threshold.log_nfa(evidence, (), image.shape[:2]).min()) - threshold.shift, float(image.mean())

    return np.array(list(detector.predictor.run(images, numbers)))


def watch(calibration: NDArray[np.float64], parts: NDArray[np.float64], rate: float, seed: int) -> Alarm | None:
    """The first alarm of a stream of parts."""
    monitor = Monitor(len(calibration), ALPHA, false_alarm=rate, seed=seed)
    for part in parts:
        if (alarm := monitor.add(conformal_p_value(calibration, part))) is not None:
            return alarm
    return None


def false_alarms(numbers: Numbers, streams: int, long_streams: int, length: int) -> list[dict[str, Any]]:
    """Streams on which nothing has changed: how many of them raise an alarm, for each rate that is promised."""
    good, found = numbers.changed["none"][:, 0], []
    held_out = min(100, len(good) // 2)

    def fitted(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return numbers.fitted, rng.permutation(good)

    def halves(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        order = rng.permutation(good)
        return order[:held_out], order[held_out:]

    def made(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return rng.normal(size=100), rng.normal(size=length)

    def made_few(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return rng.normal(size=20), rng.normal(size=length)

    def defects(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return rng.normal(size=100), np.where(rng.random(length) < 0.1, -9, rng.normal(size=length))

    sources = {
        "test images, calibrated by fit": (fitted, streams),
        f"test images, calibrated on {held_out} others of them": (halves, streams),
        "made numbers, 100 calibration images": (made, long_streams),
        "made numbers, 20 calibration images": (made_few, long_streams),
        "made numbers, 100 calibration images, 10% defects": (defects, long_streams),
    }
    for name, (draw, count) in sources.items():
        for rate in RATES:
            rng = np.random.default_rng(0)
            pairs = [draw(rng) for _ in range(count)]
            alarms = sum(watch(*pair, rate, seed) is not None for seed, pair in enumerate(pairs))
            found.append({"streams": name, "count": count, "parts": len(pairs[0][1]), "rate": rate, "alarms": alarms})
    return found


def delays(numbers: Numbers, streams: int, before: int) -> list[dict[str, Any]]:
    """Streams that change after some parts: how many raise an alarm, how many parts later, and how far off it says."""
    found = []
    for (source, column), (name, values) in product(SOURCES.items(), numbers.changed.items()):
        good, changed = numbers.changed["none"][:, column], values[:, column]
        held_out = min(100, len(good) // 2)
        rng = np.random.default_rng(1)
        late, off, early = [], [], 0
        for seed in range(streams):
            order = rng.permutation(len(good))
            calibration, rest = good[order[:held_out]], order[held_out:]
            parts = np.concatenate([good[rest[:before]], changed[rest[before:]]])
            alarm = watch(calibration, parts, RATES[0], seed)
            if alarm is not None and alarm.part <= before:
                early += 1
            elif alarm is not None:
                late.append(alarm.part - before)
                off.append(alarm.since - before - 1)
        shares = [float(np.mean([conformal_p_value(good, part) <= p for part in changed])) for p in (0.05, 0.5)]
        row = {
            "watched": source,
            "change": name,
            "streams": streams,
            "early": early,
            "found": len(late),
            "p below": shares,
        }
        quantiles = {"delay": (late, (50, 90)), "off": (off, (10, 50, 90))}
        row |= {key: np.percentile(values, at).tolist() if values else None for key, (values, at) in quantiles.items()}
        found.append(row)
    return found


def show(promises: list[dict[str, Any]], found: list[dict[str, Any]], before: int, after: int) -> None:
    """Print the two tables."""
    rows = [["streams without a change", "parts each", "promised", "alarms"]]
    for row in promises:
        alarms = f"{row['alarms']} of {row['count']}"
        rows.append([row["streams"], str(row["parts"]), f"{row['rate']:.0%}", alarms])
    print(f"\n{tables.markdown(rows)}\n")
    rows = [
        [
            "watched",
            f"changed after {before} parts, for {after}",
            "p ≤ 0.05",
            "p ≤ 0.5",
            "found",
            "parts until then",
            "since",
        ]
    ]
    for row in found:
        delay, off = row["delay"], row["off"]
        late = "" if delay is None else f"{delay[0]:.0f} ({delay[1]:.0f})"
        since = "" if off is None else f"{off[1]:+.0f} ({off[0]:+.0f} to {off[2]:+.0f})"
        shares = [f"{share:.0%}" for share in row["p below"]]
        rows.append([row["watched"], row["change"], *shares, f"{row['found']} of {row['streams']}", late, since])
    print(f"{tables.markdown(rows, 2)}\n")
    print(
        "Found: alarms after the change. Parts until then: median (9 of 10 streams).\n"
        "Since: how far off the estimate is, median (8 of 10 streams)."
    )


def main() -> None:
    """Train or load, predict, simulate, print, write."""
    parser = trained.options(__doc__, "monitor.json")
    parser.add_argument("--model", type=Path, help="a model file of the category (default: train one)")
    arguments = parser.parse_args()
    (root,) = arguments.roots
    dataset = trained.category(root)
    if arguments.model is None:
        detector = trained.fit(dataset, arguments)
    else:
        detector = uflow.load(arguments.model, arguments.device)
    paths = [sample.path for sample in dataset.test if not sample.is_anomalous]
    changed = {name: measure(detector, paths, change) for name, change in CHANGES.items()}
    numbers = Numbers(np.array(detector.threshold.minima), changed)
    streams, long_streams, length, before = (2, 1, 50, 1) if arguments.quick else (400, 40, 2000, 50)
    promises = false_alarms(numbers, streams, long_streams, length)
    found = delays(numbers, streams // 2, before)
    show(promises, found, before, len(paths) - min(100, len(paths) // 2) - before)
    size = detector.network.image_size
    trained.write(arguments, [], ("torch", "timm"), category=dataset.name, size=size, promises=promises, delays=found)


if __name__ == "__main__":
    main()
