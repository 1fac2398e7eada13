"""Train and evaluate a detector on every category of a data set, and go on where a run was broken off.

A model file and a JSON file a category, each written whole as soon as it is known. What is there already is used only
if it was made with the same settings, model and data; else one line says what differs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from rich.progress import Progress

from .. import __version__
from ..deploy.exported import METADATA
from ..files import atomic_write, sha256
from ..images import digest
from ..predictor import Predictor
from ..recipe import Recipe, differences
from ..schema import parse, read_json, write_json
from .evaluation import Evaluation, evaluate_predictor
from .models import Given, Models, TestSelection, Trained
from .protocols import Protocol, as_protocol
from .samples import Dataset
from .tables import FIGURES

if TYPE_CHECKING:  # a model that is exported needs no torch
    from ..detector import Detector

__all__ = ["Given", "Models", "Result", "TestSelection", "Trained", "check", "measure", "run"]

log = logging.getLogger("uflow")

KNOWN_BEST = {"pixel AUROC": "pixel_auroc", "AUPRO": "aupro", "image AUROC": "image_auroc"}
FORMAT_VERSION = 1
ROUNDING = 1e-6  # by which a figure that was summed up may leave its range
# Bad input, a full disk, no memory: the message says it all.
EXPECTED = (ValueError, OSError, RuntimeError, ImportError)


@dataclass(frozen=True)
class Result:
    """What is known of one category.

    Attributes:
        layout: of its data set, one of `datasets.LAYOUTS`; empty where it could not be read.
        record: the content of its JSON file, see `run`; empty where it failed before there was one.
        done: what was done: "trained, evaluated", "evaluated" or "already evaluated".
        error: why it failed, in one line; empty where it did not.
    """

    category: str
    layout: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    done: str = ""
    error: str = ""

    def __str__(self) -> str:
        """One line: what was done, and the three figures that are known best."""
        if self.error:
            return f"{self.category}: failed: {self.error}"
        known = {name: self.record["evaluation"][metric] for name, metric in KNOWN_BEST.items()}
        figures = ", ".join(f"{name} {'-' if value is None else f'{value:.3f}'}" for name, value in known.items())
        return f"{self.category}: {self.done}; {figures}"


class _Counts(TypedDict):
    train: int
    test: int


class _JudgedImage(TypedDict):
    path: str
    defect: str
    score: float
    log_nfa: float
    flagged: bool
    iou: float | None


class _Flagged(TypedDict):
    images: float
    share: float


@dataclass(frozen=True)
class _Record:
    """What a category's JSON file holds besides its kind and version.

    Raises:
        ValueError: a figure out of its range, other numbers of images, or a training by no recipe.
    """

    uflow: str
    date: str
    category: str
    layout: str
    counts: _Counts
    model: str
    selected_on_test: bool
    selected_by: str | None
    alpha: float | None
    image_size: tuple[int, int]
    tile: bool
    trained_with: dict[str, Any]
    epochs: int
    training_seconds: float
    evaluation: Evaluation
    asked: dict[str, Any]

    def __post_init__(self) -> None:
        parse(list[_JudgedImage], self.evaluation.images, "images")
        parse(dict[str, _Flagged], self.evaluation.flagged, "flagged")
        for name in FIGURES:
            value = getattr(self.evaluation, name)
            if value is not None and not -ROUNDING <= value <= 1 + ROUNDING:
                raise ValueError(f"{name} lies between 0 and 1, got {value}")
        if len(self.evaluation.images) != self.counts["test"]:
            raise ValueError(f"of {self.counts['test']} test images it judges {len(self.evaluation.images)}")
        if self.trained_with:  # nothing is known of a model that was made elsewhere
            names = {entry.name for entry in fields(Recipe)}
            Recipe.from_dict({name: value for name, value in self.trained_with.items() if name in names})


# Running --------------------------------------------------------------------------------------------------------------


def check(datasets: Sequence[Dataset], output: Path, models: Models, protocol: str | Protocol) -> None:
    """See before hours of training whether what is there already was made with these settings.

    Raises ValueError, one line, where it was not. Images are not looked at: `run` does that, category by category.
    """
    rules = as_protocol(protocol)
    for dataset in datasets:
        if Path(dataset.name).name != dataset.name:
            raise ValueError(f"the category {dataset.name!r} cannot be the name of a file: call it otherwise")
    models.check([dataset.name for dataset in datasets])
    for dataset in datasets:
        if record := _read(_file(output, dataset.name)):
            if not models.path(dataset.name).exists():
                raise ValueError(
                    f"{_file(output, dataset.name)} is of a model that is gone, {record['model']}: "
                    "give another --output, or delete it"
                )
            _compare(_file(output, dataset.name), record, _asked(dataset.name, models, rules))


def run(
    datasets: Sequence[Dataset],
    output: Path,
    models: Models,
    protocol: str | Protocol = "paper",
    figures: bool = False,
    progress: bool | Progress = False,
) -> Iterator[Result]:
    """Evaluate each category, training its model where there is none; one that fails does not stop the others.

    Writes ``evaluations/CATEGORY.json`` into `output` (and ``figures/CATEGORY/``): the `Evaluation` with all images,
    the model's file, its SHA-256 and training, and the digests of the images.

    Args:
        datasets: the categories.
        output: folder, made if it is not there.
        models: `Given` or `Trained`.
        protocol: "paper", "native", or a `Protocol`, see `evaluation.evaluate`.
        figures: draw pictures, see `figures.write_category`.
        progress: a `Progress` shows each category's bars among its own.
    """
    for dataset in datasets:
        bars = set(progress.task_ids) if isinstance(progress, Progress) else set()
        result = Result(dataset.name, dataset.layout)
        try:
            result, model = _run_category(dataset, output, models, as_protocol(protocol), progress)
            if figures:
                _draw(dataset, output, result, models, model)
        except Exception as error:
            if not isinstance(error, EXPECTED):
                log.exception("%s: a fault of this program", dataset.name)
            reason = " ".join(str(error).split()) or type(error).__name__
            result = replace(result, error=reason)
        finally:
            if isinstance(progress, Progress):
                for task in set(progress.task_ids) - bars:
                    progress.remove_task(task)
        yield result


def measure(
    dataset: Dataset,
    model: Detector | Predictor,
    path: Path,
    protocol: str | Protocol = "paper",
    progress: bool | Progress = False,
) -> dict[str, Any]:
    """Evaluate a model, read from `path`, on one category: what it is, and the figures, ready for JSON."""
    evaluation = evaluate_predictor(model, dataset, protocol=protocol, fair=True, progress=progress)
    predictor = model if isinstance(model, Predictor) else model.predictor
    history = getattr(model, "history", [])  # an exported model has none
    return {
        "uflow": __version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "category": dataset.name,
        "layout": dataset.layout,
        "counts": {"train": len(dataset.train), "test": len(evaluation.images)},  # those that count, see within
        "model": str(path),
        "selected_on_test": predictor.selected_on_test,
        "selected_by": getattr(model, "record", {}).get("selected_by"),
        "alpha": predictor.threshold.alpha,
        "image_size": list(predictor.network.image_size),
        "tile": predictor.tile,
        "trained_with": getattr(model, "record", {}),
        "epochs": len(history),
        "training_seconds": round(sum(epoch["seconds"] for epoch in history), 1),
        "evaluation": evaluation.to_dict(),
    }


def _run_category(
    dataset: Dataset, output: Path, models: Models, protocol: Protocol, progress: bool | Progress
) -> tuple[Result, Detector | Predictor | None]:
    """What is known of a category, and what it was evaluated with if that was done now."""
    file = _file(output, dataset.name)
    trained = models.make(dataset, progress)
    asked = _asked(dataset.name, models, protocol)
    asked["data"] = {
        "training images": digest(dataset.train),
        "test images": digest(dataset.test_files),
        "defects": [sample.defect for sample in dataset.test],
    }
    record = _read(file)
    if record:
        _compare(file, record, asked)
        return Result(dataset.name, dataset.layout, record, "already evaluated"), None
    model = models.load(dataset.name)
    record = measure(dataset, model, models.path(dataset.name), protocol, progress) | {"asked": asked}
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as temporary:
        temporary.write_text(write_json({"kind": "uflow evaluation", "version": FORMAT_VERSION, **record}) + "\n")
    done = "trained, evaluated" if trained else "evaluated"
    return Result(dataset.name, dataset.layout, record, done), model


def _draw(dataset: Dataset, output: Path, result: Result, models: Models, model: Detector | Predictor | None) -> None:
    """Draw the pictures of a category where it was evaluated now (`model`), or where they are missing."""
    folder = output / "figures" / dataset.name
    if model is None and (folder / "curves.png").exists():
        return
    from . import figures  # matplotlib

    model = model or models.load(dataset.name)
    predictor = model if isinstance(model, Predictor) else model.predictor
    evaluation = Evaluation(**result.record["evaluation"])
    figures.write_category(model, dataset.within(predictor.roi), evaluation, folder)


def _file(output: Path, category: str) -> Path:
    return output / "evaluations" / f"{category}.json"


def _asked(category: str, models: Models, protocol: Protocol) -> dict[str, Any]:
    path = models.path(category)
    return {"protocol": str(protocol), "model": sha256(path / METADATA if path.is_dir() else path), **models.settings()}


def _read(file: Path) -> dict[str, Any]:
    """A category's JSON file; empty where there is none. ValueError, one line, where it is damaged."""
    if not file.exists():
        return {}
    try:
        record: dict[str, Any] = read_json(file.read_bytes(), str(file))
        kind, version = record.pop("kind"), record.pop("version")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{file} is no evaluation, or was cut short: delete it") from None
    if (kind, version) != ("uflow evaluation", FORMAT_VERSION):
        raise ValueError(f"{file} is a {kind!r} of version {version!r}, not {FORMAT_VERSION}: delete it")
    try:
        parse(_Record, record, str(file))
    except ValueError as error:
        raise ValueError(f"{error}; delete the file") from None
    return record


def _compare(file: Path, record: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    if differing := differences({key: record["asked"].get(key) for key in asked}, asked):
        raise ValueError(f"{file} was made with {differing}: give another --output, or delete it")
