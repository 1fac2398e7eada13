"""What a model learnt from, how it is calibrated, and its settings: names and values for a page. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..conformal import supported_alpha
from ..predictor import Predictor
from ..threshold import CalibratedThreshold, DecisionRule, PaperThreshold
from .report import Facts

__all__ = ["model_facts"]

ELSEWHERE = (
    "settings",
    "images",
    "alpha",
    "backbone",
    "image_size",
    "tile",
    "strides",
    "weights_sha256",
    "roi",
    "gain",
)


def model_facts(
    name: str, predictor: Predictor, record: Mapping[str, Any], history: Sequence[Mapping[str, Any]] = ()
) -> list[Facts]:
    """The facts of one model.

    Args:
        name: of its file.
        predictor: what predicts.
        record: what its training was asked for, `Detector.record`; empty where it is not known.
        history: its epochs, `Detector.history`.
    """
    network = predictor.network
    entries = [
        ("File", name),
        ("Input", "{} × {} pixels".format(*network.image_size[::-1])),
        ("Larger images", "cut into tiles" if predictor.tile else "shrunk to the input"),
        ("Cells", f"of {_words(network.strides)} pixels"),
    ]
    if predictor.roi is not None:
        share = predictor.roi.pixels(predictor.roi.size).mean()
        entries.append(("Region of interest", f"{share:.0%} of the image"))
    if predictor.gain != 1:
        entries.append(("Gain", f"{predictor.gain:g}: pixel values are divided by it"))
    if predictor.origin is not None:
        entries.append(("SHA-256", predictor.origin.sha256[:16]))
    if runtime := getattr(network, "runtime", None):
        entries.append(("Runs on", str(runtime)))
    facts = [Facts("Model", entries), _learnt(record, history, predictor), _calibration(predictor.threshold)]
    settings = _settings(record)
    return [*facts, *([Facts("Settings of the training", settings)] if settings else [])]


def _learnt(record: Mapping[str, Any], history: Sequence[Mapping[str, Any]], predictor: Predictor) -> Facts:
    if not record:
        return Facts("Learnt from", [("Training", "not known: the file of the model does not say")])
    count, _, digest = str(record.get("images", "")).partition(" ")
    entries = [("Good images", count), ("SHA-256 of them", digest[:16]), ("Backbone", str(record.get("backbone")))]
    entries.append(("SHA-256 of its weights", str(record.get("weights_sha256", ""))[:16]))
    if history:
        seconds = sum(epoch["seconds"] for epoch in history)
        entries.append(("Training", f"{len(history)} epochs, {seconds:.0f} s"))
    notes = []
    if predictor.selected_on_test:
        notes.append("The epoch was chosen on the test set: figures measured on it are not fair.")
    return Facts("Learnt from", [(key, value) for key, value in entries if value], notes)


def _calibration(threshold: DecisionRule) -> Facts:
    if isinstance(threshold, CalibratedThreshold):
        count = len(threshold.minima)
        entries = [
            ("Good images", str(count)),
            ("Alpha", f"{threshold.alpha:.3g}"),
            *([("Alpha of a look", f"{threshold.look_alpha:.3g}")] if threshold.look_alpha is not None else []),
            ("Least alpha they support", f"{supported_alpha(count):.3g}"),
            ("Exponent of the area", f"{threshold.exponent:.3f}"),
        ]
        notes = [
            "A p-value is the share of these images, and the new one, that are at least as strange as the new one."
        ]
        if supported_alpha(count) > threshold.alpha:
            notes.append(
                "They are too few for this alpha: a good image may be flagged as often as the least alpha says."
            )
        return Facts("Calibration", entries, notes)
    entries = [("Good images", "none")]
    if isinstance(threshold, PaperThreshold):
        entries += [("Tail", threshold.tail), ("Number of tests", threshold.n_tests)]
    return Facts("Calibration", entries, ["The published test: how often good images are flagged is not promised."])


def _settings(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The recipe of a training, but for what is shown elsewhere."""
    own = {key: value for key, value in record.items() if key not in ELSEWHERE}
    merged = {**own, **record.get("settings", {})}
    return [(key.replace("_", " "), _words(value)) for key, value in merged.items()]


def _words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else str(value)
