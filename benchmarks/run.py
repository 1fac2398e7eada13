"""Runs the benchmarks of the segmentation, writes their JSON, and redraws the tables and plots made from it.

python benchmarks/run.py                          all of it, some minutes
python benchmarks/run.py --redraw                 tables and plots again, from the JSON that is there
python benchmarks/run.py --quick --root FOLDER    tiny inputs, to see that the suite works; FOLDER holds README.md and
                                                  docs/performance.md with their markers
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from uflow import benchmark
from uflow.files import atomic_write

HERE = Path(__file__).parent
IN_AND_OUT = 12  # bytes a pixel of image, parent and order
RESULTS = "benchmarks/results/segmentation.json"
BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"
LIBRARIES = (
    "higra", "matplotlib", "meaningful-spot-detector", "mpmath", "pytest-benchmark", "scikit-image", "scipy", "torch",
)  # fmt: skip
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")
COLOURS = {
    "uflow": "#0072b2",
    "Higra": "#d55e00",
    "scikit-image": "#009e73",
    "meaningful-spot-detector": "#cc79a7",
    "slow twin (numpy)": "#888888",
    "numpy.argsort": "#000000",
}

Result = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny inputs, few rounds; needs --root")
    parser.add_argument("--redraw", action="store_true", help="measure nothing")
    parser.add_argument("--root", type=Path, default=HERE.parent, help="where results and pictures go")
    arguments = parser.parse_args()
    if arguments.quick and arguments.root.resolve() == HERE.parent.resolve():
        parser.error("figures of the quick mode mean nothing and are not published: give another --root")
    file = arguments.root / RESULTS
    if not arguments.redraw:
        result = measure(arguments.quick)
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n")
    result = json.loads(file.read_text())
    replace(arguments.root / "README.md", [target_table(result), caption(result)])
    replace(
        arguments.root / "docs/performance.md",
        [target_table(result), caption(result), *time_tables(result)],
    )
    draw_times(result, arguments.root / "docs/benchmark-max-tree.png")
    draw_pixel_cost(result, arguments.root / "docs/benchmark-pixel-cost.png")
    draw_threads(result, arguments.root / "docs/benchmark-threads.png")
    print(target_table(result))
    print(caption(result))


# Measuring ------------------------------------------------------------------------------------------------------------


def measure(quick: bool) -> Result:
    """Run the benchmarks; an answer that differs stops everything, and nothing is written."""
    started, load = time.time(), _load()
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.json"
        files = sorted(
            HERE.glob("bench_*.py"), key=lambda f: ["max_tree", "log_nfa", "tails", "block"].index(f.stem[6:])
        )
        command = [
            *(sys.executable, "-m", "pytest", "-qx", *map(str, files), f"--rootdir={HERE.parent}"),
            *("-o", "addopts=", "-o", "python_files=bench_*.py", "-p", "no:cacheprovider"),
            *(
                "--benchmark-quiet",
                "--benchmark-timer=time.process_time",
                f"--benchmark-json={raw}",
                *(["--quick"] if quick else []),
            ),
        ]
        code = subprocess.run(command, env={**os.environ, **ONE_THREAD}, check=False).returncode
        if code:
            sys.exit("benchmarks: an answer differs or a benchmark failed, see above; nothing was written")
        races = [_race(entry) for entry in json.loads(raw.read_text())["benchmarks"]]
    machine = benchmark.machine()
    machine["versions"].update({name: _version(name) for name in LIBRARIES})
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "quick": quick,
        "seconds": round(time.time() - started),
        "machine": {**machine, "load_average": {"before": load, "after": _load()}},
        "threads": "1, pinned to one core, unless the entry says otherwise",
        "times": "seconds of the processor; of the clock for entries with threads",
        "targets": targets(races),
        "benchmarks": races,
    }


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _race(entry: Result) -> Result:
    info = dict(entry["extra_info"])
    return {"name": entry["name"], **info, "rounds": entry["stats"]["rounds"], "calls": entry["stats"]["iterations"]}


def targets(races: Sequence[Result]) -> list[Result]:
    """Per claim the worst and the best race; it is met when the worst meets it."""
    rows: dict[str, list[tuple[Result, Result]]] = {}
    for race in races:
        for claim in race.get("claims", []):
            rows.setdefault(claim["text"], []).append((claim, race))
    found = []
    for text, entries in rows.items():
        sense, bound = entries[0][0]["sense"], entries[0][0]["bound"]
        ordered = sorted(entries, key=lambda entry: entry[0]["ratio"]["median"], reverse=sense == "<=")
        worst, race = ordered[0]
        median = worst["ratio"]["median"]
        found.append(
            {
                "text": text,
                "sense": sense,
                "bound": bound,
                "worst": worst["ratio"],
                "where": _where(race),
                "best": ordered[-1][0]["ratio"]["median"],
                "races": len(entries),
                "met": median >= bound if sense == ">=" else median <= bound,
            }
        )
    return found


def _where(race: Result) -> str:
    side = f", {race['side']} px" if "side" in race else ""
    return f"{race['kind']}{side}"


# Tables ---------------------------------------------------------------------------------------------------------------


def target_table(result: Result) -> str:
    rows = [["target", "wanted", "measured, worst case (quartiles)", "where", "best case", "met"]]
    for target in result["targets"]:
        worst = target["worst"]
        rows.append(
            [
                target["text"],
                f"{'≥' if target['sense'] == '>=' else '≤'} {target['bound']:g}",
                f"{number(worst['median'])} ({number(worst['low'])} to {number(worst['high'])})",
                target["where"],
                number(target["best"]) if target["races"] > 1 else "",
                "yes" if target["met"] else "**no**",
            ]
        )
    return markdown(rows)


def caption(result: Result) -> str:
    machine, versions = result["machine"], result["machine"]["versions"]
    libraries = ("uflow", "higra", "scikit-image", "numpy", "scipy", "mpmath", "torch")
    return (
        f"{machine_line(result)}; {machine['compiler']}; "
        f"{', '.join(f'{name} {versions[name]}' for name in libraries)}. One thread on one core unless said. "
        "Ratios of neighbouring rounds in processor time (threads: clock), median and quartiles; worst and best "
        "over all inputs of a target."
    )


def machine_line(result: Result) -> str:
    machine = result["machine"]
    caches = ", ".join(f"{level} {size}" for level, size in machine["caches"].items() if level != "L1i")
    quick = ", QUICK MODE: figures mean nothing" if result["quick"] else ""
    return f"{machine['processor']}, {machine['cores']} cores, {caches}, {result['date'][:10]}{quick}"


def time_tables(result: Result) -> list[str]:
    """Max-tree times of every library and size, per kind of image; then all other races."""
    parts = []
    for kind, title in (("noise", "noise"), ("smooth", "smooth noise")):
        times = series(result, kind)
        sides = sorted({side for line in times.values() for side in line})
        rows = [[f"max-tree of {title}, ms", *(f"{side} px" for side in sides)]]
        rows += [[name, *(number(1e3 * line[s]) if s in line else "" for s in sides)] for name, line in times.items()]
        parts.append(markdown(rows))
    rows = [["other races", "case", "theirs, ms a call", "uflow, ms a call", "uflow is times faster (quartiles)"]]
    for race in result["benchmarks"]:
        if "faster" in race and not race["group"].startswith(("max_tree", "components of")):
            faster = race["faster"]
            case = race["group"] if race["kind"] in race["group"] else f"{race['group']}, {race['kind']}"
            rows.append(
                [
                    race["library"],
                    f"{race['kind']}, {race['threads']} threads" if "threads" in race else case,
                    number(1e3 * race["time"]["median"]),
                    number(1e3 * race["ours"]["median"]),
                    f"{number(faster['median'])} ({number(faster['low'])} to {number(faster['high'])})"
                    + ("" if race["per"] == "call" else f" per {race['per']}"),
                ]
            )
    return [*parts, markdown(rows)]


def series(result: Result, kind: str) -> dict[str, dict[int, float]]:
    """{library: {side: seconds}} of the max-tree; Higra by the faster of its graphs."""
    found: dict[str, dict[int, float]] = {}
    for race in result["benchmarks"]:
        if "side" in race and race["kind"] == kind:
            line = found.setdefault(race["library"].split(",")[0], {})
            line[race["side"]] = min(race["time"]["median"], line.get(race["side"], float("inf")))
    return found


def markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"| {' | '.join(['---'] * len(rows[0]))} |", *lines[1:]])


def number(value: float) -> str:
    """Three digits, no exponent."""
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:#.3g}" if value >= 1e-3 else f"{value:.2g}"


def replace(file: Path, parts: Sequence[str]) -> None:
    """Put the parts between the file's two marker comments."""
    text = file.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{file} lacks the lines {BEGIN} and {END}")
    file.write_text("\n\n".join([before + begin, *parts, end + after]))


# Plots ----------------------------------------------------------------------------------------------------------------


def draw_times(result: Result, file: Path) -> None:
    """Time against size, log-log, one line a library, a panel for each kind of image."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, kind, title in zip(
        panels, ("noise", "smooth"), ("noise", "smooth noise (Gaussian, sigma 2 px)"), strict=True
    ):
        times = series(result, kind)
        for name, colour in COLOURS.items():
            if name in times:
                style = {"numpy.argsort": ":", "meaningful-spot-detector": "--"}.get(name, "-")
                note = {"numpy.argsort": " (a sort only)", "meaningful-spot-detector": " (16 bits, areas)"}.get(
                    name, ""
                )
                sides = sorted(times[name])
                axes.loglog(
                    sides,
                    [1e3 * times[name][s] for s in sides],
                    style,
                    marker="o",
                    ms=4,
                    color=colour,
                    label=name + note,
                )
        _side_axis(axes, times["uflow"], title)
    panels[0].set_ylabel("processor time a map, ms")
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="outside right center")
    figure.suptitle("Max-tree of a float32 map, 4-connected, one thread", fontsize=11)
    _save(figure, result, file)


def draw_pixel_cost(result: Result, file: Path) -> None:
    """Nanoseconds a pixel of ours, with the sizes at which its input and output alone fill each cache."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for kind, colour, title in (("noise", "#0072b2", "noise"), ("smooth", "#56b4e9", "smooth noise")):
        line = series(result, kind)["uflow"]
        sides = sorted(line)
        axes.semilogx(sides, [1e9 * line[s] / s**2 for s in sides], "-o", ms=4, color=colour, label=title)
    axes.set_ylim(bottom=0)
    for level, size in result["machine"]["caches"].items():
        side = math.sqrt(int(size.rstrip("K")) * 1024 / IN_AND_OUT)
        if level != "L1i" and side < 1.2 * sides[-1]:
            axes.axvline(side, color="#999999", linestyle=":")
            axes.text(
                side, 0, f" {level} full: {size}", rotation=90, fontsize=7, color="#555555", ha="right", va="bottom"
            )
    _side_axis(axes, series(result, "noise")["uflow"], "")
    axes.set_ylabel("processor time a pixel, ns")
    axes.legend(fontsize=8)
    note = f"dotted: image, parent and order, {IN_AND_OUT} bytes a pixel, fill the cache"
    axes.set_title(f"uflow's max-tree: cost per pixel, one thread\n{note}", fontsize=10)
    _save(figure, result, file)


def draw_threads(result: Result, file: Path) -> None:
    """Speed-up over one thread."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    counts: set[int] = {1}
    styles = {
        "one call, from energies": ("#0072b2", "-o"),
        "one call, from latents": ("#d55e00", "-o"),
        "Python threads, from energies": ("#0072b2", "--s"),
        "Python threads, from latents": ("#d55e00", "--s"),
    }
    for kind, (colour, style) in styles.items():
        line = {r["threads"]: r["faster"] for r in result["benchmarks"] if "threads" in r and r["kind"] == kind}
        if kind.startswith("one call"):
            line[1] = {"median": 1.0, "low": 1.0, "high": 1.0}
        threads = sorted(line)
        counts.update(threads)
        middle = [line[t]["median"] for t in threads]
        errors = [
            [line[t]["median"] - line[t]["low"] for t in threads],
            [line[t]["high"] - line[t]["median"] for t in threads],
        ]
        axes.errorbar(threads, middle, errors, fmt=style, ms=4, capsize=3, color=colour, label=kind)
    cores = result["machine"]["cores"]
    axes.plot(
        sorted(counts), [min(t, cores) for t in sorted(counts)], ":", color="black", label=f"{cores} cores, at best"
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(counts), map(str, sorted(counts)))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("threads")
    axes.set_ylabel("times faster than one call on one thread")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    axes.set_title("log NFA of a batch of 64 images, MS-CaiT latents", fontsize=11)
    _save(figure, result, file)


def _side_axis(axes: Axes, line: dict[int, float], title: str) -> None:
    axes.set_xticks(sorted(line), [str(side) for side in sorted(line)])
    axes.minorticks_off()
    axes.set_xlabel("side of the square map, px")
    axes.grid(alpha=0.3)
    axes.set_title(title, fontsize=10)


def _save(figure: Figure, result: Result, file: Path) -> None:
    figure.supxlabel(machine_line(result), fontsize=7, color="#555555")
    FigureCanvasAgg(figure)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
