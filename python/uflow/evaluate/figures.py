"""The figures of an article about one category: examples, worst misses, worst false alarms, curves and histograms.

One style: the truth is a yellow line with a black rim, good images are blue, defective ones orange (the palette of
Okabe and Ito, which colour-blind readers can tell apart), and log10 NFA goes from red (detected) to blue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from ..files import atomic_write
from ..pictures import ALPHA_LEVEL, ColourScale, shrink
from ..prediction import Prediction
from ..predictor import Predictor
from .evaluation import Evaluation
from .samples import Dataset

if TYPE_CHECKING:  # an exported model needs no torch
    from ..detector import Detector

__all__ = ["Example", "write_category", "write_curves", "write_examples"]

ROWS = 6  # images a picture; examples.png may need more, one a kind
KINDS = 8  # of defects in examples.png
TRUTH = "#ffe800"
GOOD, DEFECTIVE = "#0072b2", "#d55e00"

# Lengths are inches; at 120 dots an inch a panel is 270 pixels wide, and a picture fits a screen.
DPI = 120
WIDTH, MARGIN, GAP = 9.6, 0.15, 0.1
PANEL = (WIDTH - 2 * MARGIN - 3 * GAP) / 4
TALLEST = 1.2 * PANEL
TITLE = 0.36  # above each row
HEADER = 1.1
MAX_FPR = 0.3  # that AUPRO goes to

# How values are coloured: the scale, and the colours. The map's are those of its predictions.
Colours = tuple[Normalize, str | ListedColormap]
LOG_NFA: Colours = (SymLogNorm(1, linscale=0.5, vmin=-1000, vmax=1000, base=10), "RdBu")


@dataclass(frozen=True)
class Example:
    """A row of a picture: one image, its maps, mask and truth, shrunk to what a panel shows.

    See `Example.from_prediction`.
    """

    title: str
    size: tuple[int, int]  # (H, W) of the whole image
    image: NDArray[np.uint8]
    anomaly_map: NDArray[np.float32]
    log_nfa: NDArray[np.float32]
    mask: NDArray[np.bool_]
    truth: NDArray[np.bool_] | None
    colours: ColourScale  # of the map

    @classmethod
    def from_prediction(cls, title: str, prediction: Prediction, truth: NDArray[np.bool_] | None) -> Example:
        """Shrink a prediction and its truth, (H, W) bool or None where it is not known.

        A pixel of the small maps has the worst value of those it stands for: the smallest mask still shows.
        """
        height, width = prediction.mask.shape
        step = max(1, int(np.ceil(max(width / PANEL, height / TALLEST) / DPI)))
        size = -(-height // step), -(-width // step)
        small = Image.fromarray(prediction.image).reduce(max(1, step // 2))  # finer: panels may be enlarged
        return cls(
            title,
            (height, width),
            np.asarray(small),
            shrink(np.maximum, prediction.anomaly_map, size),
            shrink(np.minimum, prediction.log_nfa, size),
            shrink(np.logical_or, prediction.mask, size),
            None if truth is None else shrink(np.logical_or, truth, size),
            prediction.colours,
        )


# Which images to show ---------------------------------------------------------------------------------------------


def write_category(
    predictor: Predictor | Detector, dataset: Dataset, evaluation: Evaluation, folder: Path
) -> list[Path]:
    """Write `examples.png`, `misses.png`, `false_alarms.png` and `curves.png` into `folder`, and return their paths.

    A picture that has nothing to show (misses without a defective image, false alarms without a good one) is left
    out. Only the images shown are predicted again, few at a time; each file is written whole or not at all.

    Args:
        predictor: what `evaluation` was made with.
        dataset: the category; `evaluation.images` are its test images, in order, see `Dataset.within`.
        evaluation: what `evaluation.evaluate` found on it.
        folder: made if it is not there.

    Raises:
        ValueError: the evaluation is not of this dataset's test images.
        What reading an image or a mask raises.
    """
    samples, images = dataset.test, evaluation.images
    if len(images) != len(samples):
        raise ValueError(f"{len(images)} images were evaluated, but {dataset.name} has {len(samples)}")
    pictures = {"examples": _typical(images), "misses": _misses(images), "false_alarms": _false_alarms(images)}
    shown = sorted({i for indices, _, _ in pictures.values() for i in indices})
    examples = {}
    predictions = predictor.stream([samples[i].path for i in shown], batch_size=1)
    for i, prediction in zip(shown, predictions, strict=True):
        truth = samples[i].truth((prediction.mask.shape[0], prediction.mask.shape[1]))
        examples[i] = Example.from_prediction(_title(images[i], truth), prediction, truth)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (indices, heading, below) in pictures.items():
        if indices:
            written.append(folder / f"{name}.png")
            write_examples([examples[i] for i in indices], written[-1], f"{dataset.name}: {heading}", below)
    written.append(folder / "curves.png")
    write_curves(evaluation, written[-1], f"{dataset.name}: curves and histograms")
    return written


Choice = tuple[list[int], str, str]  # which images, the heading, the line below it


def _typical(images: Sequence[dict[str, Any]]) -> Choice:
    """Of each kind the median image, or two or three images at its quantiles; by kind, good ones last."""
    good, defective = _by_kind(images)
    counts = Counter(images[i]["defect"] for i in defective)
    kinds = sorted(sorted(counts, key=lambda kind: -counts[kind])[:KINDS])
    left_out = f", the {KINDS} most frequent of {len(counts)} kinds" if len(counts) > KINDS else ""
    groups = [[i for i in defective if images[i]["defect"] == kind] for kind in kinds] + [good] * bool(good)
    each = min(3, max(1, ROWS // len(groups)))
    indices = []
    for group in groups:
        n = min(each, len(group))
        indices += [group[(2 * j + 1) * len(group) // (2 * n)] for j in range(n)]
    which = "the image of median IoU" if each == 1 else f"{each} images, from low to high IoU"
    return indices, "typical images", f"of each kind {which} (good ones: log10 NFA){left_out}"


def _misses(images: Sequence[dict[str, Any]]) -> Choice:
    """Defective images: those that are not flagged first, highest log NFA first, then those of the lowest IoU."""
    _, defective = _by_kind(images)
    missed = sum(not images[i]["flagged"] for i in defective)
    beside = sum(images[i]["flagged"] and images[i]["iou"] == 0 for i in defective)
    heading, n = "worst misses" if missed or beside else "no miss, nearest to one", len(defective)
    below = f"not flagged: {missed} of {n} defective images, highest log10 NFA first; " if missed else ""
    below += f"flagged beside the defect only: {beside}; " if beside else ""
    return defective[:ROWS], heading, below + ("then lowest IoU" if below else f"all {n} are flagged; lowest IoU first")


def _false_alarms(images: Sequence[dict[str, Any]]) -> Choice:
    """Good images, lowest log NFA first."""
    good, _ = _by_kind(images)
    flagged = sum(images[i]["flagged"] for i in good)
    heading = "worst false alarms" if flagged else "no false alarm, nearest to one"
    return good[:ROWS], heading, f"flagged: {flagged} of {len(good)} good images; lowest log10 NFA first"


def _by_kind(images: Sequence[dict[str, Any]]) -> tuple[list[int], list[int]]:
    """The good and the defective images, each from the worst on."""

    ranked = sorted(range(len(images)), key=lambda i: _badness(images[i]))
    good = [i for i in ranked if images[i]["defect"] == "good"]
    return good, [i for i in ranked if images[i]["defect"] != "good"]


def _badness(image: dict[str, Any]) -> tuple[float, float]:
    """A key that puts the worst image first: of good ones and of defective ones, which are not compared."""
    if image["defect"] == "good":
        return 0.0, image["log_nfa"]
    iou = 1.0 if image["iou"] is None else image["iou"]
    return (iou if image["flagged"] else 0.0), -image["log_nfa"]


def _title(image: dict[str, Any], truth: NDArray[np.bool_] | None) -> str:
    name = f"{image['defect']}/{Path(image['path']).name}"
    if len(name) > 64:
        name = f"{name[:40]}…{name[-23:]}"
    figures = f"score {image['score']:.2f},  log10 NFA {image['log_nfa']:.1f}"
    if image["defect"] != "good":
        unknown = "unknown" if truth is None else "empty"
        figures += f",  truth {unknown}" if truth is None or not truth.any() else f",  IoU {image['iou']:.2f}"
    return f"{name}:  {'flagged' if image['flagged'] else 'not flagged'},  {figures}"


# Images beside their maps -----------------------------------------------------------------------------------------


def write_examples(examples: Sequence[Example], path: Path, heading: str, below: str = "") -> None:
    """Draw rows of image with its truth outlined, anomaly map, log10 NFA and mask; written whole or not at all."""
    slots = [min(TALLEST, PANEL * example.size[0] / example.size[1]) for example in examples]
    height = HEADER + sum(slots) + len(slots) * TITLE + MARGIN
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    sheet = figure.add_axes((0, 0, 1, 1))  # in inches from the upper left corner
    sheet.set_axis_off()
    lefts = [MARGIN + column * (PANEL + GAP) for column in range(4)]
    _draw_header(sheet, heading, below, lefts)
    scale = examples[0].colours  # one model, one scale
    ends = {0.0: "0", 1.0: "1"} if scale.alarm is None else {0.0: "good", ALPHA_LEVEL: "alpha", 1.0: "stranger"}
    _draw_scale(figure, lefts[1], (Normalize(0, 1), ListedColormap(scale.colours() / 255)), ends)
    log_nfa = {tick: f"≤ {tick:g}" if tick == -1000 else f"{tick:g}" for tick in (-1000.0, -10.0, 0.0, 10.0, 1000.0)}
    _draw_scale(figure, lefts[2], LOG_NFA, log_nfa)
    top = HEADER
    for example, slot in zip(examples, slots, strict=True):
        _write(sheet, example.title, (MARGIN, top + TITLE - 0.17), 8)
        top += TITLE
        _draw_row(sheet, example, lefts, top, slot)
        top += slot
    sheet.set(xlim=(0, WIDTH), ylim=(height, 0), aspect="auto")
    _save(figure, path)


def _write(sheet: Axes, text: str, place: tuple[float, float], size: float, **options: Any) -> None:
    sheet.text(*place, text, fontsize=size, va="top", parse_math=False, **options)


def _draw_header(sheet: Axes, heading: str, below: str, lefts: Sequence[float]) -> None:
    """Heading, the line below it, and a caption above each column."""
    _write(sheet, heading, (MARGIN, 0.12), 12, weight="bold")
    _write(sheet, below, (MARGIN, 0.36), 9)
    captions = ("image, truth outlined", "anomaly map", "log10 NFA", "mask: log10 NFA < 0")
    for left, caption in zip(lefts, captions, strict=True):
        _write(sheet, caption, (left + PANEL / 2, 0.68), 9, ha="center")


def _draw_scale(figure: Figure, left: float, colours: Colours, ticks: dict[float, str]) -> None:
    """The bar that says which colour is which value."""
    height = figure.get_figheight()
    bar = figure.add_axes(((left + 0.1 * PANEL) / WIDTH, 1 - 0.95 / height, 0.8 * PANEL / WIDTH, 0.08 / height))
    figure.colorbar(ScalarMappable(*colours), cax=bar, orientation="horizontal")
    bar.set_xticks(list(ticks), list(ticks.values()), fontsize=7)
    bar.minorticks_off()
    bar.tick_params(length=2, pad=1)


def _draw_row(sheet: Axes, example: Example, lefts: Sequence[float], top: float, slot: float) -> None:
    scale = min(PANEL / example.size[1], slot / example.size[0])
    height, width = example.size[0] * scale, example.size[1] * scale
    lefts = [left + (PANEL - width) / 2 for left in lefts]

    panels: list[tuple[NDArray[Any], dict[str, Any]]] = [
        (example.image, {"interpolation": "antialiased"}),
        (example.colours.colours()[example.colours.indices(example.anomaly_map)], {}),
        (example.log_nfa, {"norm": LOG_NFA[0], "cmap": LOG_NFA[1]}),
        (example.mask, {"cmap": "gray", "vmin": -0.15, "vmax": 1}),
    ]
    for left, (values, options) in zip(lefts, panels, strict=True):
        place = (left, left + width, top + height, top)
        sheet.imshow(values, extent=place, **{"interpolation": "nearest", **options})
        sheet.add_patch(Rectangle((left, top), width, height, fill=False, linewidth=0.5, color="0.5"))
    if example.truth is not None and example.truth.any():
        padded = np.pad(example.truth.astype(np.float32), 1)  # a line along the border of the picture too
        rows, columns = example.truth.shape
        y = top + (np.arange(-1, rows + 1) + 0.5) * height / rows
        x = (np.arange(-1, columns + 1) + 0.5) * width / columns
        for left in (lefts[0], lefts[3]):  # of constant width, however small the defect and however large the image
            sheet.contour(left + x, y, padded, [0.5], colors="black", linewidths=2.4)
            sheet.contour(left + x, y, padded, [0.5], colors=TRUTH, linewidths=1)
    elif not example.mask.any():
        middle = lefts[3] + width / 2, top + height / 2
        sheet.text(*middle, "nothing\ndetected", color="0.8", fontsize=8, ha="center", va="center")


# Curves and histograms --------------------------------------------------------------------------------------------


def write_curves(evaluation: Evaluation, path: Path, heading: str) -> None:
    """Draw ROC, PRO up to its limit, and histograms of each image's lowest log10 NFA; written whole or not at all.

    What needs both good and defective images, or pixels, is left out where there is one kind only.
    """
    groups = dict(zip(("good", "defective"), _by_kind(evaluation.images), strict=True))
    groups = {kind: indices for kind, indices in groups.items() if indices}
    curves = [_roc] * bool(evaluation.roc or len(groups) == 2) + [_pro] * bool(evaluation.pro)
    heights = [3.6] * bool(curves) + [1.7] * len(groups)
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(heading, x=MARGIN / WIDTH, ha="left", fontsize=12, weight="bold", parse_math=False)
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
    for column, draw in enumerate(curves):
        draw(figure.add_subplot(grid[0, column]), evaluation)
    first = len(heights) - len(groups)
    axes = [figure.add_subplot(grid[row, :]) for row in range(first, len(heights))]
    _histograms(axes, {kind: [evaluation.images[i] for i in indices] for kind, indices in groups.items()})
    _save(figure, path)


def _roc(axis: Axes, evaluation: Evaluation) -> None:
    if evaluation.roc:
        label = f"pixels, AUROC {evaluation.pixel_auroc:.3f}"
        axis.plot(*np.transpose(evaluation.roc), color="black", linewidth=1.5, label=label)
    if evaluation.image_auroc is not None:
        scores = np.array([image["score"] for image in evaluation.images])
        defective = np.array([image["defect"] != "good" for image in evaluation.images])
        order = np.argsort(-scores)
        last = np.append(np.diff(scores[order]) != 0, True)  # of those that share a score
        rates = [np.append(0, np.cumsum(c[order])[last] / np.count_nonzero(c)) for c in (~defective, defective)]
        label = f"images, AUROC {evaluation.image_auroc:.3f}"
        axis.plot(*rates, color="black", linewidth=1.5, linestyle="--", label=label)
    axis.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, zorder=0)
    axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    _label(axis, "ROC", "false-positive rate", "true-positive rate")
    axis.legend(loc="lower right", fontsize=8)


def _pro(axis: Axes, evaluation: Evaluation) -> None:
    rates, overlaps = np.transpose(evaluation.pro)
    axis.plot(rates, overlaps, color="black", linewidth=1.5)
    axis.fill_between(rates, overlaps, color="0.85", linewidth=0)
    axis.set(xlim=(0, MAX_FPR), ylim=(-0.01, 1.01))
    _label(axis, f"PRO up to a false-positive rate of {MAX_FPR}", "false-positive rate of pixels", "mean overlap")
    axis.text(0.97, 0.05, f"AUPRO {evaluation.aupro:.3f}", transform=axis.transAxes, ha="right", fontsize=9)


def _histograms(axes: Sequence[Axes], groups: dict[str, list[dict[str, Any]]]) -> None:
    """One above the other on one axis: linear from -1 to 1, and beyond it a decade is as long as any other."""
    for axis in axes:
        axis.set_xscale("symlog", linthresh=1, linscale=0.5)
    scale = axes[0].xaxis.get_transform()
    lowest = {kind: np.array([image["log_nfa"] for image in images]) for kind, images in groups.items()}
    everything = np.concatenate([[-2, 2], *lowest.values()])
    step = 0.1
    first, last = scale.transform(np.array([everything.min(), everything.max()])) // step
    edges = scale.inverted().transform(np.arange(first - 1, last + 3) * step)  # 0 is one of them
    for axis, (kind, values) in zip(axes, lowest.items(), strict=True):
        colour = GOOD if kind == "good" else DEFECTIVE
        axis.hist(values, edges.tolist(), color=colour, edgecolor="white", linewidth=0.5)
        axis.axvspan(edges[0], 0, color="0.93", zorder=0)
        axis.axvline(0, color="black", linewidth=1)
        axis.set_xlim(edges[0], edges[-1])
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
        flagged = sum(image["flagged"] for image in groups[kind])
        _label(axis, f"{kind} images: {flagged} of {len(values)} flagged (log10 NFA < 0)", "", "images")
    axes[-1].set_xlabel("lowest log10 NFA of each image", fontsize=9)


def _label(axis: Axes, title: str, x: str, y: str) -> None:
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y, fontsize=9)
    axis.tick_params(labelsize=8)


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=DPI)
