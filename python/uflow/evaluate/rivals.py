"""U-Flow beside other methods: same split, input size, frozen features and figures, each in a process of its own."""

from __future__ import annotations

import json
import math
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..detector import Detector
from ..files import sha256
from ..processes import peak_memory, run_apart
from ..recipe import Recipe, TrainingSettings
from ..schema import parse, read_json
from . import published
from .evaluation import Evaluation, ImageOutput, evaluate, evaluate_predictor, outputs_of
from .kept import KeptMaps, kept_file
from .method_maps import choose_shown, draw_methods, write_maps
from .rival_methods import (
    BATCH_SIZE,
    METHODS,
    SIZE,
    TRAINED,
    Scorer,
    Settings,
    check_methods,
    find_method,
)
from .rival_results import Result, comparison_tables, describe_machine, markdown
from .samples import Dataset
from .tables import FIGURES, Table, write_json, write_text

__all__ = [
    "METHODS",
    "Job",
    "Result",
    "Settings",
    "check_methods",
    "compare",
    "comparison_tables",
    "markdown",
    "measure_in_turn",
]

_Key = tuple[str, str, int, int | None]  # of a result: category, method, seed, epochs

STEPS = 200  # training steps of a trained rival, unless epochs are given


# ---- running


@dataclass(frozen=True)
class Job:
    """One method to be measured on one category with one seed, in a process of its own.

    Attributes:
        title: what it is, and which of how many.
        epochs: see `Result`.
        settings: common to all.
        logs: folder for what it prints.
        kept: file for what it says of the images, see `kept`; None keeps nothing.
    """

    title: str
    category: Dataset
    method: str
    seed: int
    epochs: int | None
    settings: Settings
    logs: Path
    kept: Path | None

    def measure(self) -> Result:
        """Measure it, here and now."""
        what = self.category, self.method, self.seed, self.epochs
        return _in_own_process(*what, self.settings, self.logs, self.kept)

    def result(self, **figures: Any) -> Result:
        """Its figures, or why there are none, as a result."""
        return Result(self.category.name, self.method, self.seed, self.epochs, self.category.layout, **figures)


Measure = Callable[[Sequence[Job]], Iterable[tuple[Job, Result]]]


def measure_in_turn(
    jobs: Sequence[Job], on_start: Callable[[str], None] = lambda _: None
) -> Iterator[tuple[Job, Result]]:
    """Measure one after another; `on_start` is called with the title of each."""
    for job in jobs:
        on_start(job.title)
        yield job, job.measure()


def compare(
    categories: Sequence[Dataset],
    methods: Sequence[str],
    seeds: Sequence[int],
    output: Path,
    settings: Settings | None = None,
    measure: Measure = measure_in_turn,
    keep: bool = False,
) -> list[Result]:
    """Measure every method on every category with every seed, and write the table after each.

    `output` gets ``comparison.md``, ``.csv`` and ``.json``, what each process printed in ``logs``, the maps of some
    defective images in ``maps/CATEGORY/METHOD-SEED.npz``, and a picture of them, ``pictures/CATEGORY.png``. Results
    that the folder holds already are not measured again, unless they are failures; those of other settings are an
    error.

    Args:
        categories: what to learn from and to test on.
        methods: names of `METHODS`, or ``module:function`` for a `Method` of one's own.
        seeds: of all that is random in a method.
        output: folder.
        settings: common to all; None is the defaults.
        measure: measures what is missing, in any order: here, or elsewhere (`on_ray.measure_jobs`).
        keep: also keep what each says of the images, see `kept`; what was measured without is measured again.

    Returns:
        All results of the folder that were asked for, in the order asked for.

    Raises:
        ValueError: no such method, or the folder holds results of other settings.
        ImportError: a method needs anomalib and it is not installed.
    """
    settings = settings or Settings()
    check_methods(methods)
    output.mkdir(parents=True, exist_ok=True)
    results = {_key(result): result for result in _read(output / "comparison.json", settings)}
    jobs: dict[_Key, Job] = {}  # all that is asked for, in this order
    total = len(categories) * len(methods) * len(seeds)
    for category in categories:
        for method in methods:
            epochs = _epochs(method, len(category.train), settings)
            for seed in seeds:
                key = category.name, method, seed, epochs
                title = f"{len(jobs) + 1}/{total} {category.name}, {method}, seed {seed}"
                kept = kept_file(output, *key) if keep else None
                jobs[key] = Job(title, category, method, seed, epochs, settings, output / "logs", kept)
    missing = {key: job for key, job in jobs.items() if not _is_done(results.get(key), job.kept)}
    left = Counter(job.category.name for job in missing.values())
    for job, found in measure(list(missing.values())):
        results[_key(found)] = found
        _write(sorted(results.values(), key=_place), settings, output)
        left[found.category] -= 1
        if not left[found.category]:  # the last of its category
            _draw(job.category, methods, seeds[0], output)
    for category in categories:
        if category.name not in left:
            _draw(category, methods, seeds[0], output)
    _write(sorted(results.values(), key=_place), settings, output)
    return [results[key] for key in jobs]


def _is_done(found: Result | None, kept: Path | None) -> bool:
    return found is not None and found.failure is None and (kept is None or kept.exists())


def _draw(category: Dataset, methods: Sequence[str], seed: int, output: Path) -> None:
    """The picture of a category: a row for each method whose maps are there."""
    files = {method: _maps_file(output, category.name, method, seed) for method in methods}
    there = {method: file for method, file in files.items() if file.is_file()}
    if there:
        draw_methods(category, there, output / "pictures" / f"{category.name}.png")


def _maps_file(output: Path, category: str, method: str, seed: int) -> Path:
    return output / "maps" / category / f"{method.replace(':', '.')}-{seed}.npz"


def _key(result: Result) -> _Key:
    return result.category, result.method, result.seed, result.epochs


def _place(result: Result) -> tuple[Any, ...]:
    """The order of the tables: by category, then as the methods are listed, whatever was measured first."""
    known = [*METHODS].index(result.method) if result.method in METHODS else len(METHODS)
    return result.category, known, result.method, result.epochs or 0, result.seed


def _epochs(method: str, images: int, settings: Settings) -> int | None:
    """Passes over the images, or None for a method that is not trained by them."""
    if method == "uflow" and settings.recipe == "paper":
        return settings.epochs
    if method not in TRAINED:
        return None
    return settings.epochs or math.ceil(STEPS / max(images // BATCH_SIZE, 1))


def _in_own_process(
    category: Dataset,
    method: str,
    seed: int,
    epochs: int | None,
    settings: Settings,
    logs: Path,
    kept: Path | None,
) -> Result:
    """A crash ends that process only, and the memory is the method's own."""
    logs.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="uflow-compare-") as folder:
        job, answer = Path(folder, "job"), Path(folder, "answer.json")
        own = replace(settings, epochs=epochs)
        maps = _maps_file(logs.parent.resolve(), category.name, method, seed)
        job.write_bytes(pickle.dumps((category, method, seed, own, str(answer), maps, kept)))
        name = f"{category.name}-{method.replace(':', '.')}-{seed}.log"
        with (logs / name).open("w") as log:
            command = [
                sys.executable,
                "-c",
                "import sys; from uflow.evaluate.rivals import _work; _work(sys.argv[1])",
                str(job),
            ]
            code = subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, check=False).returncode
        figures: dict[str, Any] = {"failure": _ending(code)}
        if answer.is_file():
            figures = json.loads(answer.read_text())
    if figures.get("failure"):
        figures["failure"] += f" (logs/{name})"
    return Result(category.name, method, seed, epochs, category.layout, **figures)


def _ending(code: int) -> str:
    if code < 0:
        hint = ": out of memory?" if -code == signal.SIGKILL else ""
        return f"its process was ended by signal {signal.Signals(-code).name}{hint}"
    return f"its process ended with exit code {code}"


def _work(job: str) -> None:
    """The whole of a process: measure one method, write its figures, or why there are none, to a file."""
    # Written by _in_own_process.
    category, method, seed, settings, answer, maps, kept = pickle.loads(Path(job).read_bytes())
    figures: dict[str, Any]
    try:
        figures = _measure(category, method, seed, settings, maps, kept)
    except Exception as error:  # whatever it is, it is this method's row, and the others go on
        traceback.print_exc()
        figures = {"failure": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    Path(answer).write_text(json.dumps(figures))


def _measure(
    category: Dataset,
    method: str,
    seed: int,
    settings: Settings,
    maps: Path | None = None,
    kept: Path | None = None,
) -> dict[str, float | None]:
    """The figures of a method; the maps of some images go to the file `maps`, what a page shows to `kept`."""
    paths = [sample.path for sample in category.test]
    settings = settings.for_images(category.train)
    learn = find_method(method)
    clock = _Clock()
    if learn is None:
        found, fit, predict, outputs = _measure_uflow(category, seed, settings, clock, kept)
    else:
        size, score = learn(category.train, settings, seed)
        fit = clock.lap()
        found_of_all = list(_outputs(settings.read_images(paths, size), score))
        predict = clock.lap()
        medians: list[float] = []
        normal_maps = _noting_medians(_outputs(settings.read_images(category.train, size), score), medians)
        found = evaluate(category.test, found_of_all, normal_maps=normal_maps, input_size=size)
        outputs = dict(enumerate(found_of_all))
        if kept is not None and found.fair_threshold is not None:
            KeptMaps.from_outputs(found_of_all, medians, found.fair_threshold).save(kept)
    if maps is not None and (shown := choose_shown(category.test)):
        write_maps({i: outputs[i] for i in shown}, maps)
    return {
        **{name: getattr(found, name) for name in FIGURES},
        "fit_s": fit[0],
        "fit_cpu_s": fit[1],
        "predict_ms": 1e3 * predict[0] / len(paths),
        "predict_cpu_ms": 1e3 * predict[1] / len(paths),
        "memory_mb": peak_memory(),
    }


def _measure_uflow(
    category: Dataset, seed: int, settings: Settings, clock: _Clock, kept: Path | None
) -> tuple[Evaluation, tuple[float, float], tuple[float, float], dict[int, ImageOutput]]:
    """U-Flow by its recipe, but for the input size, which is that of the others.

    Learning includes the threshold; an image includes mask and regions at its own size.
    """
    recipe = _uflow_recipe(category.name, seed, settings)
    clock.lap()
    learn = partial(Detector.fit_recipe, category.train, recipe, weights=settings.weights, device="cpu", progress=False)
    detector = run_apart(learn)  # as in line code, where nobody learns in the process that predicts
    fit = clock.lap()
    for _ in detector.stream([sample.path for sample in category.test]):
        pass
    predict = clock.lap()
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        detector.save(kept)
    outputs = outputs_of(detector, category, choose_shown(category.test))
    return evaluate_predictor(detector, category, fair=True), fit, predict, outputs


def _uflow_recipe(category: str, seed: int, settings: Settings) -> Recipe:
    """The default recipe, or the published one of the category, at the common input size."""
    size = settings.make_backbone().image_size
    if settings.recipe == "paper":
        recipe = Recipe.paper(category, settings.backbone, image_size=size)
        epochs = settings.epochs or recipe.settings.epochs
        return replace(recipe, settings=replace(recipe.settings, epochs=epochs, seed=seed))
    plain = TrainingSettings(seed=seed, augment=False, memory_size=0)
    own = plain if settings.paper_map else TrainingSettings(seed=seed)
    return Recipe(settings.backbone, size, settings=own, alpha=None if settings.paper_test else Recipe.alpha)


def _noting_medians(outputs: Iterable[ImageOutput], medians: list[float]) -> Iterator[np.ndarray]:
    """The maps, one after another; the median of each is added to a list."""
    for output in outputs:
        medians.append(float(np.median(output.anomaly_map)))
        yield output.anomaly_map


class _Clock:
    def __init__(self) -> None:
        self.lap()

    def lap(self) -> tuple[float, float]:
        """Seconds since the last call: by the clock, of processors."""
        now = time.perf_counter(), time.process_time()
        last, self.last = getattr(self, "last", now), now
        return now[0] - last[0], now[1] - last[1]


def _outputs(batches: Iterable[Tensor], score: Scorer) -> Iterator[ImageOutput]:
    for images in batches:
        with torch.inference_mode():
            maps, scores = score(images)
            if maps.shape[1:] != (SIZE, SIZE):
                maps = F.interpolate(maps[:, None], (SIZE, SIZE), mode="bilinear", align_corners=False)[:, 0]
        for anomaly_map, image_score in zip(maps.float().numpy(), scores.tolist(), strict=True):
            yield ImageOutput(anomaly_map, image_score)


# ---- files


class _Content(TypedDict):
    """What comparison.json holds."""

    settings: dict[str, Any]
    machine: dict[str, str]
    results: list[Result]
    published: dict[str, Any]


def _read(path: Path, settings: Settings) -> list[Result]:
    if not path.is_file():
        return []
    try:
        content = parse(_Content, read_json(path.read_bytes(), str(path)), str(path))
    except ValueError as error:
        raise ValueError(f"{error}; delete it, or choose another --output") from None
    if content["settings"] != _common(settings):
        seen, wanted = (", ".join(f"{k} {v}" for k, v in s.items()) for s in (content["settings"], _common(settings)))
        raise ValueError(f"{path} holds results of other settings ({seen}; not {wanted}): choose another --output")
    return content["results"]


def _common(settings: Settings) -> dict[str, Any]:
    size = settings.image_size or settings.quality
    common: dict[str, Any] = {"backbone": settings.backbone, "image_size": size}  # epochs are each result's own
    if settings.weights is not None:
        common["weights"] = [sha256(file) if file.is_file() else str(file) for file in settings.weights]
    if settings.recipe != "default":
        common["recipe"] = settings.recipe
    return common | {name: True for name in ("paper_map", "paper_test") if getattr(settings, name)}


def _write(results: Sequence[Result], settings: Settings, output: Path) -> None:
    records = [asdict(result) for result in results]
    content = {
        "settings": _common(settings),
        "machine": describe_machine(),
        "results": records,
        "published": {"source": published.CITATION, "means": published.METHODS},
    }
    write_json(content, output / "comparison.json")
    write_text(
        Table.from_records([field.name for field in fields(Result)], records).to_csv(), output / "comparison.csv"
    )
    write_text(markdown(results, settings), output / "comparison.md")
