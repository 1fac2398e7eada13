"""What the benchmarks that train on data sets share: their options, their data, a detector as `fit` makes it."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import race
import torch

import uflow
from uflow.detector import Detector
from uflow.evaluate.datasets import Dataset, find_categories
from uflow.training import TrainingSettings

# Tiny, for --quick: it runs through all that the default does.
QUICK_SETTINGS = {"epochs": 1, "batch_size": 8, "memory_size": 50, "augment": False}


def options(description: str | None, results: str) -> argparse.ArgumentParser:
    """The options of a benchmark that trains on folders."""
    parser = race.options(description)
    parser.add_argument("roots", nargs="+", type=Path, help="categories, in any layout that uflow reads")
    parser.add_argument("--json", type=Path, default=race.HERE / "results" / results)
    parser.add_argument("--device", default="cpu")
    return parser


def category(root: Path) -> Dataset:
    """The one category in a folder."""
    (dataset,) = find_categories(root)
    return dataset


def fit(
    dataset: Dataset, arguments: argparse.Namespace, seed: int = 0, epochs: int | None = None, **recipe: Any
) -> Detector:
    """Today's default, but for the epochs and what the recipe says; tiny where the options say quick."""
    torch.set_num_threads(len(race.CORES) or 1)
    logging.getLogger("uflow").setLevel(logging.ERROR)
    quick: dict[str, Any] = QUICK_SETTINGS if arguments.quick else {}
    if arguments.quick:
        recipe = {"image_size": 64, "alpha": 0.2, **recipe}
    shorter: dict[str, Any] = {} if epochs is None else {"epochs": epochs}
    settings = TrainingSettings(seed=seed, **{**shorter, **quick})
    return Detector.fit(dataset.train, device=arguments.device, settings=settings, **recipe)


def write(arguments: argparse.Namespace, races: list[race.Result], libraries: tuple[str, ...], **more: object) -> None:
    """Write the JSON file, and say on what machine."""
    content = race.document(races, arguments.quick, libraries, **more)
    race.write(content, arguments.json)
    versions = ", ".join(f"{name} {version}" for name, version in content["machine"]["versions"].items())
    print(f"\n{content['machine']['processor']}, {versions}\nWrote {arguments.json} (uflow {uflow.__version__})")
