"""The report pages that commands write: predictions of a folder, evaluations, comparisons."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import load
from ..bit_depth import find_bit_depth
from ..files import one_line
from ..images import read_image
from ..pages import (
    Card,
    CardMaker,
    Facts,
    Finding,
    PageTable,
    PictureLimits,
    Promise,
    Report,
    coloured_values,
    mask_path,
    model_facts,
    write_report,
)
from ..predictor import Predictor
from .common import number_of

if TYPE_CHECKING:
    from ..detector import Detector
    from ..evaluate.kept import KeptMaps
    from ..evaluate.rivals import Result as Compared
    from ..evaluate.rivals import Settings
    from ..evaluate.samples import Dataset
    from ..evaluate.study import Models, Result

__all__ = ["write_comparison_report", "write_evaluation_report", "write_prediction_report"]

GOOD_SHARE = 0.95  # of good test images, whose maps stay below the colour that stands for alpha


def write_prediction_report(maker: CardMaker, name: str, model: Detector | Predictor, report: Path) -> None:
    """The report of images that a model was asked about.

    Args:
        maker: made the cards of the images.
        name: of the model's file.
        model: what predicted.
        report: the file to write.
    """
    cards = maker.cards
    lead = f"Images in {_shorten_names(cards)}"
    promises = {"": Promise.from_threshold(maker.predictor.threshold)}
    title = f"{Path(name).name} on {number_of(len(cards), 'image')}"
    facts = _facts(name, model, maker.predictor)
    notes = [f"Not judged: {one_line(failed.error)}" for failed in maker.failed]
    write_report(Report(title, lead, cards, promises, facts=facts, notes=notes), report)


def write_evaluation_report(
    datasets: Sequence[Dataset], results: Sequence[Result], models: Models, report: Path
) -> None:
    """The report of what models say of test images whose truth is known, with the tables of the evaluation.

    The images are predicted once more: an evaluation keeps the figures alone.
    """
    from ..evaluate.summary import summarise, summary_tables

    done = {result.category for result in results if result.record and not result.error}
    shown = [dataset for dataset in datasets if dataset.name in done]
    limits = PictureLimits(sum(len(dataset.test) for dataset in shown))
    cards: list[Card] = []
    promises: dict[str, Promise] = {}
    facts: list[Facts] = []
    for dataset in shown:
        model = models.load(dataset.name)
        predictor = _predictor_of(model)
        cards += _test_cards(dataset.within(predictor.roi), predictor, limits)
        promises[dataset.name] = Promise.from_threshold(predictor.threshold)
        facts += _facts(str(models.path(dataset.name)), model, predictor, dataset.name if len(shown) > 1 else "")
    summary = summarise(results)
    notes = [summary["not_fair"]] if summary["not_fair"] else []
    notes += [f"{result.category} is not shown. It failed: {result.error}" for result in results if result.error]
    lead = f"{limits.images} test images whose defects are labelled"
    tables = [PageTable(*each) for each in summary_tables(summary)]
    title = f"Evaluation: {_names(shown)}"
    write_report(Report(title, lead, cards, promises, tables=tables, facts=facts, notes=notes), report)


def write_comparison_report(
    datasets: Sequence[Dataset], results: Sequence[Compared], settings: Settings, output: Path, report: Path
) -> None:
    """The report of a comparison: of each image what every method says, side by side.

    Of several seeds the first one's maps are shown.

    Args:
        datasets: the categories compared.
        results: of all methods, categories and seeds, kept in `output`.
        settings: common to all methods.
        output: the comparison's folder.
        report: the file to write.
    """
    from ..evaluate.kept import KeptMaps, kept_file
    from ..evaluate.rivals import comparison_tables

    failed = {result.method: result for result in results if result.failure is not None}
    first = {(r.category, r.method): r for r in reversed(results)}
    methods = sorted({r.method: None for r in results if r.method not in failed}, key=lambda name: name != "uflow")
    limits = PictureLimits(sum(len(dataset.test) for dataset in datasets), len(methods))
    cards: list[Card] = []
    promises: dict[str, Promise] = {}
    facts: list[Facts] = []
    for dataset in datasets:
        own, promises[dataset.name] = _cards_without_findings(dataset, limits), Promise()
        for method in methods:
            result = first[dataset.name, method]
            kept = kept_file(output, dataset.name, method, result.seed, result.epochs)
            if method == "uflow":
                model = load(kept, "cpu")
                predictor = _predictor_of(model)
                own = _test_cards(dataset, predictor, limits)
                promises[dataset.name] = Promise.from_threshold(predictor.threshold)
                facts += _facts(str(kept), model, predictor, dataset.name if len(datasets) > 1 else "")
            else:
                _add_findings(own, KeptMaps.load(kept), limits)
        cards += own
    names = ["U-Flow" if method == "uflow" else method for method in methods]
    notes = [f"{name} is not shown. It failed on {each.category}: {each.failure}" for name, each in failed.items()]
    lead = f"{limits.images} test images; all methods see the same features, of {settings.backbone}"
    tables = [PageTable(*each) for each in comparison_tables(results, settings)]
    title = f"Comparison of {len(methods)} methods: {_names(datasets)}"
    write_report(Report(title, lead, cards, promises, names, tables, facts, notes), report)


# Cards of test images -------------------------------------------------------------------------------------------------


def _test_cards(dataset: Dataset, predictor: Predictor, limits: PictureLimits) -> list[Card]:
    """Cards of a category's test images, with their truth."""
    maker = CardMaker(predictor, limits)
    for _ in maker.stream(sample.path for sample in dataset.test):
        pass
    return _with_truth(maker.cards, dataset)


def _cards_without_findings(dataset: Dataset, limits: PictureLimits) -> list[Card]:
    """The same where no predictor is at hand: photos and truth."""
    cards, bit_depth = [], find_bit_depth([sample.path for sample in dataset.test])
    for sample in dataset.test:
        image = read_image(sample.path, bit_depth)
        cards.append(Card(str(sample.path), (image.shape[0], image.shape[1]), [], photo=limits.photo(image)))
    return _with_truth(cards, dataset)


def _with_truth(cards: list[Card], dataset: Dataset) -> list[Card]:
    for card, sample in zip(cards, dataset.test, strict=True):
        card.kind, card.category = sample.defect, dataset.name
        truth = sample.truth(card.size) if sample.is_anomalous else None
        card.truth = "" if truth is None else mask_path(truth)
    _shorten_names(cards)
    return cards


def _add_findings(cards: Sequence[Card], kept: KeptMaps, limits: PictureLimits) -> None:
    """What a method without a threshold said of each image.

    Its maps are coloured by those of good test images: of images that it remembers it makes maps of nought.
    """
    good = [float(values.max()) for card, values in zip(cards, kept.maps, strict=True) if card.kind == "good"]
    usual, reach = (np.median(good), np.quantile(good, GOOD_SHARE)) if good else (kept.usual, kept.fair)
    for card, values, score in zip(cards, kept.maps, kept.scores, strict=True):
        picture = limits.map_picture(coloured_values(values, float(usual), float(reach)))
        card.findings.append(Finding(float(score), map_picture=picture))


# Words ----------------------------------------------------------------------------------------------------------------


def _predictor_of(model: Detector | Predictor) -> Predictor:
    return model if isinstance(model, Predictor) else model.predictor


def _facts(name: str, model: Detector | Predictor, predictor: Predictor, category: str = "") -> list[Facts]:
    """About a model and what predicts; of one category among several, its name goes before the titles."""
    metadata = getattr(predictor.network, "metadata", {})  # of an exported model
    record = getattr(model, "record", None) or metadata.get("record", {})
    facts = model_facts(name, predictor, record, getattr(model, "history", []))
    return [replace(each, title=f"{category}: {each.title}") for each in facts] if category else facts


def _names(datasets: Sequence[Dataset]) -> str:
    return ", ".join(dataset.name for dataset in datasets) if len(datasets) < 4 else f"{len(datasets)} categories"


def _shorten_names(cards: Sequence[Card]) -> str:
    """Name images, named by their files, by their place below the folder that all share; that folder."""
    paths = [Path(card.name).resolve() for card in cards]
    shared = os.path.commonpath([path.parent for path in paths]) if paths else ""
    for card, path in zip(cards, paths, strict=True):
        card.name = path.relative_to(shared).as_posix()
    return shared
