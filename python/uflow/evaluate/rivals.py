"""U-Flow beside other methods: same split, input size, frozen features and figures, each in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import math
import pickle
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from .. import __version__
from ..backbones import create_backbone
from ..detector import Detector
from ..recipe import TrainingSettings
from . import published
from .evaluation import Evaluation, ImageOutput, evaluate, evaluate_predictor
from .literature import literature_markdown
from .rival_methods import (
    ANOMALIB,
    BATCH_SIZE,
    METHODS,
    SIZE,
    Scorer,
    Settings,
    Size,
    check_methods,
    find_method,
    read_images,
)
from .samples import Dataset
from .tables import FIGURES, Table, figure_text, mean_figure, write_json, write_text

__all__ = ["METHODS", "Result", "Settings", "check_methods", "compare", "markdown"]

STEPS = 200  # training steps of a trained rival, unless epochs are given


@dataclass(frozen=True)
class Result:
    """One method on one category with one seed: figures, cost, or why there are none.

    Attributes:
        epochs: passes over the good images; None for a method that learns in one.
        layout: of the data set, for what the literature says of it.
        pixel_auroc, ..., defective_flagged: as in `evaluation.Evaluation`; None for what needs a threshold of the
            method's own, where it has none.
        fit_s, fit_cpu_s: seconds to learn, by the clock and of processors (which other programs do not lengthen).
        predict_ms, predict_cpu_ms: milliseconds for a test image from its file, also by the clock and of processors.
        memory_mb: the most memory that the process held, libraries included; None where the system does not say.
        failure: why it failed, one line.
    """

    category: str
    method: str
    seed: int
    epochs: int | None = None
    layout: str = ""
    pixel_auroc: float | None = None
    aupro: float | None = None
    image_auroc: float | None = None
    miou: float | None = None
    iou_defective: float | None = None
    pixel_f1: float | None = None
    miou_fair: float | None = None
    miou_best: float | None = None
    good_flagged: float | None = None
    defective_flagged: float | None = None
    fit_s: float | None = None
    fit_cpu_s: float | None = None
    predict_ms: float | None = None
    predict_cpu_ms: float | None = None
    memory_mb: float | None = None
    failure: str | None = None


# ---- running


def compare(
    categories: Sequence[Dataset],
    methods: Sequence[str],
    seeds: Sequence[int],
    output: Path,
    settings: Settings | None = None,
    on_start: Callable[[str], None] = lambda _: None,
) -> list[Result]:
    """Measure every method on every category with every seed, and write the table after each.

    `output` gets ``comparison.md``, ``.csv`` and ``.json``, and what each process printed in ``logs``. Results that the
    folder holds already are not measured again, unless they are failures; those of other settings are an error.

    Args:
        categories: what to learn from and to test on.
        methods: names of `METHODS`, or ``module:function`` for a `Method` of one's own.
        seeds: of all that is random in a method.
        output: folder.
        settings: common to all; None is the defaults.
        on_start: called with what is measured next.

    Returns:
        All results of the folder that were asked for, in the order asked for.

    Raises:
        ValueError: no such method, or the folder holds results of other settings.
        ImportError: a method needs anomalib and it is not installed.
    """
    settings = settings or Settings()
    check_methods(methods)
    output.mkdir(parents=True, exist_ok=True)
    results = _read(output / "comparison.json", settings)
    wanted: list[Result] = []
    total = len(categories) * len(methods) * len(seeds)
    for category in categories:
        for method in methods:
            epochs = _epochs(method, len(category.train), settings)
            for seed in seeds:
                key = (category.name, method, seed, epochs)
                found = next((r for r in results if _key(r) == key), None)
                if found is None or found.failure is not None:
                    on_start(f"{len(wanted) + 1}/{total} {category.name}, {method}, seed {seed}")
                    results = [r for r in results if r is not found]
                    found = _in_own_process(category, method, seed, epochs, settings, output / "logs")
                    results = sorted([*results, found], key=_place)
                    _write(results, settings, output)
                wanted.append(found)
    _write(results, settings, output)
    return wanted


def _key(result: Result) -> tuple[str, str, int, int | None]:
    return result.category, result.method, result.seed, result.epochs


def _place(result: Result) -> tuple[Any, ...]:
    """The order of the tables: by category, then as the methods are listed, whatever was measured first."""
    known = [*METHODS].index(result.method) if result.method in METHODS else len(METHODS)
    return result.category, known, result.method, result.epochs or 0, result.seed


def _epochs(method: str, images: int, settings: Settings) -> int | None:
    """Passes over the images, or None for a method that is not trained by them."""
    if method not in ANOMALIB or not ANOMALIB[method].trained:
        return None
    return settings.epochs or math.ceil(STEPS / max(images // BATCH_SIZE, 1))


def _in_own_process(
    category: Dataset, method: str, seed: int, epochs: int | None, settings: Settings, logs: Path
) -> Result:
    """A crash ends that process only, and the memory is the method's own."""
    logs.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="uflow-compare-") as folder:
        job, answer = Path(folder, "job"), Path(folder, "answer.json")
        own = replace(settings, epochs=epochs)
        job.write_bytes(pickle.dumps((category, method, seed, own, str(answer))))
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
    category, method, seed, settings, answer = pickle.loads(Path(job).read_bytes())  # written by _in_own_process
    figures: dict[str, Any]
    try:
        figures = _measure(category, method, seed, settings)
    except Exception as error:  # whatever it is, it is this method's row, and the others go on
        traceback.print_exc()
        figures = {"failure": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    Path(answer).write_text(json.dumps(figures))


def _measure(category: Dataset, method: str, seed: int, settings: Settings) -> dict[str, float | None]:
    paths = [sample.path for sample in category.test]
    settings = settings.for_images(category.train)
    learn = find_method(method)
    clock = _Clock()
    if learn is None:
        found, fit, predict = _measure_uflow(category, seed, settings, clock)
    else:
        size, score = learn(category.train, settings, seed)
        fit = clock.lap()
        outputs = list(_outputs(paths, size, score))
        predict = clock.lap()
        normal_maps = (output.anomaly_map for output in _outputs(category.train, size, score))
        found = evaluate(category.test, outputs, normal_maps=normal_maps, input_size=size)
    return {
        **{name: getattr(found, name) for name in FIGURES},
        "fit_s": fit[0],
        "fit_cpu_s": fit[1],
        "predict_ms": 1e3 * predict[0] / len(paths),
        "predict_cpu_ms": 1e3 * predict[1] / len(paths),
        "memory_mb": _peak_memory(),
    }


def _measure_uflow(
    category: Dataset, seed: int, settings: Settings, clock: _Clock
) -> tuple[Evaluation, tuple[float, float], tuple[float, float]]:
    """U-Flow with its defaults, but for the input size, which is that of the others.

    Learning includes the threshold; an image includes mask and regions at its own size.
    """
    image_size = create_backbone(settings.backbone, image_size=settings.image_size).image_size
    clock.lap()
    detector = Detector.fit(
        category.train,
        settings.backbone,
        image_size=image_size,
        settings=TrainingSettings(seed=seed),
        device="cpu",
        progress=False,
    )
    fit = clock.lap()
    for _ in detector.stream([sample.path for sample in category.test]):
        pass
    predict = clock.lap()
    return evaluate_predictor(detector, category, fair=True), fit, predict


class _Clock:
    def __init__(self) -> None:
        self.lap()

    def lap(self) -> tuple[float, float]:
        """Seconds since the last call: by the clock, of processors."""
        now = time.perf_counter(), time.process_time()
        last, self.last = getattr(self, "last", now), now
        return now[0] - last[0], now[1] - last[1]


def _peak_memory() -> float | None:
    """The most that this process held at once, in MB."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what the parent process held when it started this one
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _outputs(paths: Sequence[Path], size: Size, score: Scorer) -> Iterator[ImageOutput]:
    for images in read_images(paths, size):
        with torch.inference_mode():
            maps, scores = score(images)
            if maps.shape[1:] != (SIZE, SIZE):
                maps = F.interpolate(maps[:, None], (SIZE, SIZE), mode="bilinear", align_corners=False)[:, 0]
        for anomaly_map, image_score in zip(maps.float().numpy(), scores.tolist(), strict=True):
            yield ImageOutput(anomaly_map, image_score)


# ---- files


def _read(path: Path, settings: Settings) -> list[Result]:
    if not path.is_file():
        return []
    content = json.loads(path.read_text())
    if content["settings"] != _common(settings):
        seen, wanted = (", ".join(f"{k} {v}" for k, v in s.items()) for s in (content["settings"], _common(settings)))
        raise ValueError(f"{path} holds results of other settings ({seen}; not {wanted}): choose another --output")
    return [Result(**result) for result in content["results"]]


def _common(settings: Settings) -> dict[str, Any]:
    size = settings.image_size or settings.quality
    return {"backbone": settings.backbone, "image_size": size}  # epochs are each result's own


def _write(results: Sequence[Result], settings: Settings, output: Path) -> None:
    records = [asdict(result) for result in results]
    content = {
        "settings": _common(settings),
        "machine": _machine(),
        "results": records,
        "published": {"source": published.CITATION, "means": published.METHODS},
    }
    write_json(content, output / "comparison.json")
    write_text(
        Table.from_records([field.name for field in fields(Result)], records).to_csv(), output / "comparison.csv"
    )
    write_text(markdown(results, settings), output / "comparison.md")


def _machine() -> dict[str, str]:
    versions = {name: version(name) for name in ("torch", "timm", "anomalib") if importlib.util.find_spec(name)}
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "threads": str(torch.get_num_threads()),
        "uflow": __version__,
        **versions,
    }


# ---- tables


COSTS = {"fit_cpu_s": ("learning", "s"), "predict_cpu_ms": ("an image", "ms"), "memory_mb": ("memory", "MB")}


def markdown(results: Sequence[Result], settings: Settings) -> str:
    """Two tables: means over the seeds of what was measured here, and what the literature says of other methods."""
    size = f"{settings.image_size} pixels" if settings.image_size else f"quality {settings.quality}"
    lines = [
        _measured_table(results).to_markdown(),
        "",
        f"Means over the seeds, at {SIZE} x {SIZE}; frozen {settings.backbone} at {size}; bold: best of a category. "
        "mIoU auto: at the method's own threshold; defect IoU: the same over the images with a defect alone; pixel F1: "
        "of those masks over all pixels; fair: at one false pixel a training image; best: at the threshold that is "
        "best on the test set. Learning, and an image from its file: seconds and milliseconds of processors; memory: "
        "the most that the process held.",
        "",
        f"{', '.join(f'{name} {value}' for name, value in _machine().items())}.",
        "",
        "Published, not measured here: means over the 15 categories of MVTec AD, other backbones "
        f"({published.CITATION}).",
        "",
        _published_table().to_markdown(),
    ]
    return "\n\n".join(["\n".join(lines), *_literature(results)]) + "\n"


def _literature(results: Sequence[Result]) -> list[str]:
    """All published figures of these categories beside what was measured, means over the seeds."""
    groups: dict[str, dict[str, dict[str, list[Result]]]] = {}
    for result in results:
        if result.failure is None:
            by_method = groups.setdefault(result.layout, {}).setdefault(result.category, {})
            by_method.setdefault(result.method, []).append(result)
    parts: list[str] = []
    for layout, categories in groups.items():
        measured = {
            category: {method: {name: _mean(done, name) for name in FIGURES} for method, done in methods.items()}
            for category, methods in categories.items()
        }
        parts += literature_markdown(measured, layout)
    return parts


def _measured_table(results: Sequence[Result]) -> Table:
    """A row a category, method and number of epochs; failures in rows of their own."""
    header = ["category", "method", "epochs", "seeds", *FIGURES.values(), *(title for title, _ in COSTS.values())]
    groups: dict[tuple[str, str, int | None], list[Result]] = {}
    for result in results:
        groups.setdefault((result.category, result.method, result.epochs), []).append(result)
    rows = []
    for (category, method, epochs), group in groups.items():
        done = [result for result in group if result.failure is None]
        passes = "-" if epochs is None else str(epochs)
        if done:
            others = [other for (where, *_), other in groups.items() if where == category]
            seeds = " ".join(str(result.seed) for result in done)
            rows.append([category, method, passes, seeds, *_measured_cells(done, others)])
        for result in group:
            if result.failure is not None:
                cells = [category, method, passes, str(result.seed), f"failed: {result.failure}"]
                rows.append([*cells, *[""] * (len(header) - len(cells))])
    return Table(header, rows, texts=2)


def _measured_cells(done: Sequence[Result], others: Sequence[Sequence[Result]]) -> list[str]:
    """Figures, bold where no other group of the category has a better mean, and costs."""
    cells = []
    for name in FIGURES:
        text = figure_text(_mean(done, name), name)
        known = [value for value in (_mean(other, name) for other in others) if value is not None]
        is_best = bool(known) and not name.endswith("flagged") and text == figure_text(max(known), name)
        cells.append(f"**{text}**" if is_best else text)
    for name, (_, unit) in COSTS.items():
        cost = _mean(done, name)
        cells.append("-" if cost is None else f"{cost:.0f} {unit}")
    return cells


def _published_table() -> Table:
    names = ("pixel_auroc", "aupro", "miou", "miou_fair", "miou_best")
    methods = {"U-Flow, MS-CaiT": published.CONTENT["mvtec"]["means"]["U-Flow"], **published.METHODS}
    rows = [[name, *(figure_text(figures.get(key)) for key in names)] for name, figures in methods.items()]
    return Table(["method (published)", *(FIGURES[name] for name in names)], rows)


def _mean(group: Sequence[Result], name: str) -> float | None:
    """Over the seeds that have it."""
    return mean_figure([value for result in group if (value := getattr(result, name)) is not None])
