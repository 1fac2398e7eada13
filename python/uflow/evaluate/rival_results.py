"""What a comparison of methods gave: a result a method, and its page of tables beside the literature."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import torch

from .. import __version__
from . import published
from .literature import literature_markdown
from .rival_methods import SIZE, Settings
from .tables import FIGURES, Table, figure_text, mean_figure

__all__ = ["Result", "comparison_tables", "describe_machine", "markdown"]


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


def describe_machine() -> dict[str, str]:
    versions = {name: version(name) for name in ("torch", "timm", "anomalib") if importlib.util.find_spec(name)}
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "threads": str(torch.get_num_threads()),
        "uflow": __version__,
        **versions,
    }


COSTS = {"fit_cpu_s": ("learning", "s"), "predict_cpu_ms": ("an image", "ms"), "memory_mb": ("memory", "MB")}


def markdown(results: Sequence[Result], settings: Settings) -> str:
    """Means over the seeds of what was measured here, and what the literature says of other methods."""
    (_, measured, notes), (_, others, source) = comparison_tables(results, settings)
    parts = [measured.to_markdown(), *notes, *source, others.to_markdown(), *_literature(results)]
    return "\n\n".join(parts) + "\n"


def comparison_tables(results: Sequence[Result], settings: Settings) -> list[tuple[str, Table, list[str]]]:
    """What was measured, and what the literature says: title, table, and what must be known of it."""
    size = f"{settings.image_size} pixels" if settings.image_size else f"quality {settings.quality}"
    notes = [
        f"Means over the seeds, at {SIZE} x {SIZE}; frozen {settings.backbone} at {size}{_uflow_words(settings)}; "
        "bold: best of a category. "
        "mIoU auto: at the method's own threshold; defect IoU: the same over the images with a defect alone; pixel F1: "
        "of those masks over all pixels; fair: at one false pixel a training image; best: at the threshold that is "
        "best on the test set. Learning, and an image from its file: seconds and milliseconds of processors; memory: "
        "the most that the process held.",
        f"{', '.join(f'{name} {value}' for name, value in describe_machine().items())}.",
    ]
    source = (
        "Published, not measured here: means over the 15 categories of MVTec AD, other backbones "
        f"({published.CITATION})."
    )
    return [("Measured", _measured_table(results), notes), ("Published", _published_table(), [source])]


def _uflow_words(settings: Settings) -> str:
    """What of U-Flow is not its default."""
    if settings.recipe == "paper":
        return "; uflow: the paper's recipe"
    parts = [name for name, asked in (("map", settings.paper_map), ("test", settings.paper_test)) if asked]
    return f"; uflow: the paper's {' and '.join(parts)}" if parts else ""


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
