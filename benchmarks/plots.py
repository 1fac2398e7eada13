"""Plots of the segmentation's benchmarks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from race import Result
from tables import machine_line, series

BYTES_A_PIXEL = 12  # of image, parent and order
# library -> colour, line and what to add to its name
LINES = {
    "uflow": ("#0072b2", "-", ""),
    "Higra": ("#d55e00", "-", ""),
    "scikit-image": ("#009e73", "-", ""),
    "meaningful-spot-detector": ("#cc79a7", "--", " (16 bits, areas)"),
    "numpy.argsort": ("#000000", ":", " (a sort only)"),
}


def draw(result: Result, folder: Path) -> None:
    """All plots."""
    draw_times(result, folder / "benchmark-max-tree.png")
    draw_pixel_cost(result, folder / "benchmark-pixel-cost.png")
    draw_threads(result, folder / "benchmark-threads.png")


def draw_times(result: Result, file: Path) -> None:
    """Time against size, log-log, one line a library, a panel for each kind of image."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    titles = {"noise": "noise", "smooth": "smooth noise (Gaussian, sigma 2 px)"}
    for axes, (kind, title) in zip(panels, titles.items(), strict=True):
        times = series(result["races"], kind)
        for name, (colour, style, note) in LINES.items():
            points = sorted(times.get(name, {}).items())
            milliseconds = [1e3 * seconds for _, seconds in points]
            label = name + note
            axes.loglog([s for s, _ in points], milliseconds, style, marker="o", ms=4, color=colour, label=label)
        _side_axis(axes, times["uflow"], title)
    panels[0].set_ylabel("processor time a map, ms")
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="outside right center")
    figure.suptitle("Max-tree of a float32 map, 4-connected, one thread", fontsize=11)
    _save(figure, result, file)


def draw_pixel_cost(result: Result, file: Path) -> None:
    """Nanoseconds a pixel of uflow's, with the sizes at which its input and output alone fill each cache."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for kind, colour, title in (("noise", "#0072b2", "noise"), ("smooth", "#56b4e9", "smooth noise")):
        line = series(result["races"], kind)["uflow"]
        sides = sorted(line)
        axes.semilogx(sides, [1e9 * line[s] / s**2 for s in sides], "-o", ms=4, color=colour, label=title)
    axes.set_ylim(bottom=0)
    text = {"rotation": 90, "fontsize": 7, "color": "#555555", "ha": "right", "va": "bottom"}
    for level, size in result["machine"]["caches"].items():
        side = math.sqrt(int(size.rstrip("K")) * 1024 / BYTES_A_PIXEL)
        if level != "L1i" and side < 1.2 * sides[-1]:
            axes.axvline(side, color="#999999", linestyle=":")
            axes.text(side, 0, f" {level} full: {size}", **text)
    _side_axis(axes, line, "")
    axes.set_ylabel("processor time a pixel, ns")
    axes.legend(fontsize=8)
    note = f"dotted: image, parent and order, {BYTES_A_PIXEL} bytes a pixel, fill the cache"
    axes.set_title(f"uflow's max-tree: cost per pixel, one thread\n{note}", fontsize=10)
    _save(figure, result, file)


def draw_threads(result: Result, file: Path) -> None:
    """Speed-up over one thread; without lines where the machine has one core."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    counts: set[int] = {1}
    styles = {"one call": "-o", "Python threads": "--s"}
    for name, style in styles.items():
        for source, colour in (("energies", "#0072b2"), ("latents", "#d55e00")):
            races = [r for r in result["races"] if r.get("by") == name and r["source"] == source]
            ratios = [race["contestants"][1]["ratio"] for race in races]
            threads, middle = [race["threads"] for race in races], [ratio["median"] for ratio in ratios]
            errors = [[abs(r[end] - r["median"]) for r in ratios] for end in ("low", "high")]
            axes.errorbar(threads, middle, errors, fmt=style, ms=4, capsize=3, color=colour, label=f"{name}, {source}")
            counts.update(threads)
    cores, ticks = result["machine"]["cores"], sorted(counts)
    axes.plot(ticks, [min(t, cores) for t in ticks], ":", color="black", label=f"{cores} cores, at best")
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, map(str, ticks))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("threads")
    axes.set_ylabel("times faster than one call on one thread")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    axes.set_title("log NFA of a batch of 64 images, MS-CaiT latents", fontsize=11)
    _save(figure, result, file)


def _side_axis(axes: Axes, sides: Iterable[int], title: str) -> None:
    axes.set_xticks(sorted(sides), [str(side) for side in sorted(sides)])
    axes.minorticks_off()
    axes.set_xlabel("side of the square map, px")
    axes.grid(alpha=0.3)
    axes.set_title(title, fontsize=10)


def _save(figure: Figure, result: Result, file: Path) -> None:
    figure.supxlabel(machine_line(result), fontsize=7, color="#555555")
    FigureCanvasAgg(figure)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
