"""Train and evaluate a detector on every category of a data set, and go on where a run was broken off.

A model file and a JSON file a category, each written whole as soon as it is known. What is there already is used only
if it was made with the same settings, model and data; else one line says what differs.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from rich.progress import Progress

from .. import __version__, load
from ..deploy.exported import METADATA
from ..files import atomic_write, sha256
from ..images import digest
from ..model_file import load_model
from ..predictor import Predictor
from . import published
from .datasets import Dataset
from .evaluation import Evaluation

if TYPE_CHECKING:  # a model that is exported needs no torch
    from ..backbones import Backbone
    from ..training import TrainingSettings

__all__ = ["METRICS", "Given", "Models", "Result", "Trained", "check", "measure", "run", "summary"]

log = logging.getLogger("uflow")

METRICS = ("pixel_auroc", "aupro", "image_auroc", "miou", "miou_fair", "miou_best")
BEST_KNOWN = {"pixel AUROC": "pixel_auroc", "AUPRO": "aupro", "image AUROC": "image_auroc"}
FORMAT_VERSION = 1
EXPECTED = (
    ValueError,
    OSError,
    RuntimeError,
    ImportError,
)  # bad input, a full disk, no memory: the message says it all


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
        known = {name: self.record["evaluation"][metric] for name, metric in BEST_KNOWN.items()}
        figures = ", ".join(f"{name} {'-' if value is None else f'{value:.3f}'}" for name, value in known.items())
        return f"{self.category}: {self.done}; {figures}"


# Where models come from -----------------------------------------------------------------------------------------------


class Models(Protocol):
    """A model for each category."""

    def path(self, category: str) -> Path:
        """The model's file, or the folder of an exported one."""

    def settings(self) -> dict[str, Any]:
        """What else than the file decides how it predicts."""

    def check(self, categories: Sequence[str]) -> None:
        """Raise ValueError, one line, where a model was made with other settings."""

    def make(self, dataset: Dataset, progress: bool | Progress) -> bool:
        """Make the model if there is none; whether it was made now."""

    def load(self, category: str) -> Predictor: ...


@dataclass(frozen=True)
class Given:
    """One finished model for every category.

    Attributes:
        file: where it was read from.
        changed: settings that it does not have from its file, such as ``{"tile": True}``.
    """

    file: Path
    predictor: Predictor
    changed: Mapping[str, Any] = field(default_factory=dict)

    def path(self, category: str) -> Path:
        return self.file

    def settings(self) -> dict[str, Any]:
        return {"changed": dict(self.changed)}

    def check(self, categories: Sequence[str]) -> None:
        pass

    def make(self, dataset: Dataset, progress: bool | Progress) -> bool:
        return False

    def load(self, category: str) -> Predictor:
        return self.predictor


@dataclass(frozen=True)
class Trained:
    """The models CATEGORY.uflow of a folder, trained where there is none. See `Detector.fit` for the settings."""

    folder: Path
    backbone: str
    image_size: int | tuple[int, int] | None
    strides: Sequence[int] | None
    weights: Sequence[Path] | None
    training: TrainingSettings
    held_out: float
    alpha: float | None
    device: str
    tile: bool
    flow_steps: int = 4
    select_on_test: bool = False

    def path(self, category: str) -> Path:
        return self.folder / f"{category}.uflow"

    def settings(self) -> dict[str, Any]:
        return {"changed": {}}  # all are in the file

    def check(self, categories: Sequence[str]) -> None:
        asked = self._asked(None)  # without a model too: weights that are missing are one error, not one a category
        for category in categories:
            if self.path(category).exists():
                self._compare(category, asked)

    def make(self, dataset: Dataset, progress: bool | Progress) -> bool:
        from ..detector import Detector

        path = self.path(dataset.name)
        if path.exists():
            self._compare(dataset.name, self._asked(dataset))
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        state_file = path.with_name(path.name + ".state")
        detector = Detector.fit(
            dataset.train,
            self.backbone,
            image_size=self.image_size,
            strides=self.strides,
            weights=self.weights,
            flow_steps=self.flow_steps,
            settings=self.training,
            held_out=self.held_out,
            alpha=self.alpha,
            device=self.device,
            tile=self.tile,
            state_file=state_file,
            select_on_test=dataset if self.select_on_test else None,
            progress=progress,
        )
        detector.save(path)
        state_file.unlink()
        return True

    def load(self, category: str) -> Predictor:
        return load(self.path(category), self.device, self.weights)

    def _asked(self, dataset: Dataset | None) -> dict[str, Any]:
        """What `Detector.trained_with` must be; without a data set, all of it but the images."""
        from ..detector import fingerprint

        images = dataset.train if dataset else []
        chosen_on = dataset if self.select_on_test else None
        run = fingerprint(self._net, self.flow_steps, self.training, images, self.held_out, self.tile, chosen_on)
        run |= {"alpha": self.alpha, "select_on_test": self.select_on_test}
        if dataset is None:
            del run["images"]
        return run

    @cached_property
    def _net(self) -> Backbone:
        from ..backbones import create_backbone

        return create_backbone(self.backbone, image_size=self.image_size, strides=self.strides, weights=self.weights)

    def _compare(self, category: str, asked: Mapping[str, Any]) -> None:

        path = self.path(category)
        _, config = load_model(path)
        found = config.get("trained_with")
        if not found:
            raise ValueError(
                f"{path} does not say how it was trained (an older uflow wrote it): delete it, or give another "
                f"--models; uflow evaluate {path} ROOT evaluates it"
            )
        found = {"tile": False, **found, "select_on_test": "selected_on_test" in found}
        asked = {"tile": False, **asked}
        if differing := _differences({key: found.get(key) for key in asked}, asked):
            raise ValueError(f"{path} was trained with {differing}: give another --models and --output, or delete it")


# Running --------------------------------------------------------------------------------------------------------------


def check(datasets: Sequence[Dataset], output: Path, models: Models, protocol: str) -> None:
    """See before hours of training whether what is there already was made with these settings.

    Raises ValueError, one line, where it was not. Images are not looked at: `run` does that, category by category.
    """
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
            _compare(_file(output, dataset.name), record, _asked(dataset.name, models, protocol))


def run(
    datasets: Sequence[Dataset],
    output: Path,
    models: Models,
    protocol: str = "paper",
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
        protocol: "paper" or "native", see `evaluation.evaluate`.
        figures: draw pictures, see `figures.write_category`.
        progress: a `Progress` shows each category's bars among its own.
    """
    for dataset in datasets:
        bars = set(progress.task_ids) if isinstance(progress, Progress) else set()
        result = Result(dataset.name, dataset.layout)
        try:
            result, predictor = _run(dataset, output, models, protocol, progress)
            drawn = output / "figures" / dataset.name
            if figures and (predictor or not (drawn / "curves.png").exists()):
                from .figures import write_category

                evaluation = Evaluation(**result.record["evaluation"])
                write_category(predictor or models.load(dataset.name), dataset, evaluation, drawn)
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


def _run(
    dataset: Dataset, output: Path, models: Models, protocol: str, progress: bool | Progress
) -> tuple[Result, Predictor | None]:
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
    predictor = models.load(dataset.name)
    record = measure(dataset, predictor, models.path(dataset.name), protocol, progress) | {"asked": asked}
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps({"kind": "uflow evaluation", "version": FORMAT_VERSION, **record}) + "\n")
    done = "trained, evaluated" if trained else "evaluated"
    return Result(dataset.name, dataset.layout, record, done), predictor


def measure(
    dataset: Dataset, predictor: Predictor, model: Path, protocol: str = "paper", progress: bool | Progress = False
) -> dict[str, Any]:
    """Evaluate a model, read from the file `model`, on one category: what it is, and the figures, ready for JSON."""
    evaluation = predictor.evaluate(dataset, protocol=protocol, fair=True, progress=progress)
    history = getattr(predictor, "history", [])  # an exported model has none
    return {
        "uflow": __version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "category": dataset.name,
        "layout": dataset.layout,
        "counts": {"train": len(dataset.train), "test": len(dataset.test)},
        "model": str(model),
        "selected_on_test": predictor.selected_on_test,
        "alpha": predictor.alpha,
        "image_size": list(predictor.image_size),
        "tile": predictor.tile,
        "trained_with": getattr(predictor, "trained_with", {}),
        "epochs": len(history),
        "training_seconds": round(sum(epoch["seconds"] for epoch in history), 1),
        "evaluation": evaluation.to_dict(),
    }


def _file(output: Path, category: str) -> Path:
    return output / "evaluations" / f"{category}.json"


def _asked(category: str, models: Models, protocol: str) -> dict[str, Any]:
    path = models.path(category)
    return {"protocol": protocol, "model": sha256(path / METADATA if path.is_dir() else path), **models.settings()}


def _read(file: Path) -> dict[str, Any]:
    """A category's JSON file; empty where there is none."""
    if not file.exists():
        return {}
    try:
        record: dict[str, Any] = json.loads(file.read_bytes())
        kind, version = record.pop("kind"), record.pop("version")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{file} is no evaluation, or was cut short: delete it") from None
    if (kind, version) != ("uflow evaluation", FORMAT_VERSION):
        raise ValueError(f"{file} is a {kind!r} of version {version}, not {FORMAT_VERSION}: delete it")
    return record


def _compare(file: Path, record: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    if differing := _differences({key: record["asked"].get(key) for key in asked}, asked):
        raise ValueError(f"{file} was made with {differing}: give another --output, or delete it")


def _differences(found: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """What was found otherwise than asked for, in words.

    >>> _differences({"settings": {"epochs": 2}, "alpha": 0.05}, {"settings": {"epochs": 16}, "alpha": 0.05})
    'epochs 2, not 16'
    """
    words = []
    asked = json.loads(json.dumps(dict(asked)))  # as if it had been read from a file, too
    for key in dict.fromkeys([*asked, *found]):
        value, wanted = found.get(key), asked.get(key)
        if isinstance(wanted, dict) and isinstance(value, dict):
            if inner := _differences(value, wanted):
                words.append(inner)
        elif value != wanted:
            is_short = max(len(str(value)), len(str(wanted))) <= 40
            words.append(f"{key} {value}, not {wanted}" if is_short else f"other {key}")
    return ", ".join(words)


# Summing up -----------------------------------------------------------------------------------------------------------


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """The figures of all categories and their means, beside the published ones, ready for JSON and for `report`.

    Categories stand in the paper's order: textures, objects, then others by name. A mean is over the categories that
    did not fail, and None where one of them lacks the figure; a published mean is over the same categories.
    """
    rank = {name: i for i, name in enumerate(published.MVTEC_AD)}
    ordered = sorted(results, key=lambda r: (rank[r.category] if _is_mvtec(r) else len(rank), r.category))
    rows = [_row(result) for result in ordered]
    records = [result.record for result in ordered if result.record]
    groups = {"textures": published.TEXTURES, "objects": published.OBJECTS, "MVTec AD": tuple(published.MVTEC_AD)}
    means = []
    for name, members in groups.items():
        among = [row for row in rows if row["group"] and row["category"] in members]
        if among and (name != "MVTec AD" or len(among) < len(rows)):
            means.append(_mean(name, among))
    layouts = {result.layout for result in results}
    of_whole = published.DATASETS.get(layouts.pop(), {}) if len(layouts) == 1 else {}
    if len(rows) > 1 or of_whole:
        means.append(_mean("all", rows, of_whole))
    return {
        "uflow": __version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "protocol": records[0]["evaluation"]["protocol"] if records else None,
        "selected_on_test": any(record["selected_on_test"] for record in records),
        "not_fair": _not_fair(records),
        # The alpha is the detector's own: `calibrate` may have set another since.
        "trained_with": _common([{**record["trained_with"], "alpha": record["alpha"]} for record in records]),
        "categories": rows,
        "means": [mean for mean in means if mean["categories"]],
        "published_source": published.SOURCE,
        "published_methods": published.METHODS if any(row["group"] for row in rows) else {},
        "notes": _notes(ordered),
    }


def _is_mvtec(result: Result) -> bool:
    return result.category in published.MVTEC_AD and result.layout in ("mvtec", "")


def _row(result: Result) -> dict[str, Any]:
    evaluation = result.record.get("evaluation", {})
    flagged = evaluation.get("flagged", {})
    group = ""
    if _is_mvtec(result):
        group = "textures" if result.category in published.TEXTURES else "objects"
    return {
        "category": result.category,
        "group": group,
        **{metric: evaluation.get(metric) for metric in METRICS},
        "good_flagged": _share([counts for kind, counts in flagged.items() if kind == "good"]),
        "defective_flagged": _share([counts for kind, counts in flagged.items() if kind != "good"]),
        "flagged": flagged,
        "published": published.MVTEC_AD[result.category] if group else {},
        "selected_on_test": result.record.get("selected_on_test"),
        "model": result.record.get("model"),
        "counts": result.record.get("counts"),
        "epochs": result.record.get("epochs"),
        "training_seconds": result.record.get("training_seconds"),
        "error": result.error,
    }


def _share(counts: Sequence[Mapping[str, float]]) -> float | None:
    images = sum(c["images"] for c in counts)
    return sum(c["images"] * c["share"] for c in counts) / images if images else None


def _mean(name: str, rows: Sequence[dict[str, Any]], of_whole: Mapping[str, float] | None = None) -> dict[str, Any]:
    rows = [row for row in rows if row["counts"]]  # those that were evaluated

    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known and len(known) == len(values) else None

    theirs = {metric: mean([row["published"].get(metric) for row in rows]) for metric in published.METRICS}
    return {
        "name": name,
        "categories": [row["category"] for row in rows],
        **{key: mean([row[key] for row in rows]) for key in (*METRICS, "good_flagged", "defective_flagged")},
        "published": dict(of_whole or {}) or {metric: value for metric, value in theirs.items() if value is not None},
    }


def _common(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that all trainings share, without the images they are for."""
    first, *others = settings or [{}]
    shared = {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
    return {key: value for key, value in shared.items() if key not in ("images", "selected_on_test")}


def _not_fair(records: Sequence[Mapping[str, Any]]) -> str:
    """A warning in 120 columns where epochs were chosen on the test set, else nothing."""
    chosen = sum(record["selected_on_test"] for record in records)
    which = f"{chosen} of {len(records)} models" if chosen < len(records) else "each epoch"
    return (
        f"NOT A FAIR FIGURE: {which} chosen by pixel AUROC on the test set, as the published ones were."
        if chosen
        else ""
    )


def _notes(results: Sequence[Result]) -> list[str]:
    """What a reader must know to compare the figures."""
    records = [result.record for result in results if result.record]
    notes = []
    if any(record["evaluation"]["protocol"] == "native" for record in records):
        notes.append(
            "Protocol native: maps and masks at each image's own size. The published figures are at 256 x 256."
        )
    other = []
    for result in results:
        found, counts = result.record.get("counts", {}), published.IMAGES.get(result.category, ())
        if found and _is_mvtec(result) and counts != (found["train"], found["test"]):
            other.append("{}, {train} and {test}, not {} and {}".format(result.category, *counts, **found))
    if other:
        notes.append(
            "Published figures of another set: MVTec AD has other numbers of images to train on and to test "
            f"({'; '.join(other)})."
        )
    return notes
