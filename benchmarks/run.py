"""Runs benchmarks, writes their JSON, and redraws the tables and plots made from it.

python benchmarks/run.py                          the segmentation beside other libraries, some minutes
python benchmarks/run.py network                  the networks beside FrEIA, timm and a straightforward pipeline
python benchmarks/run.py --redraw                 tables and plots again, from the JSON that is there
python benchmarks/run.py --quick --root FOLDER    tiny inputs, to see that it works; FOLDER takes all that is written
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import plots
import race
import tables
from race import HERE, Pace, Result


@dataclass(frozen=True)
class Suite:
    """Benchmarks that run together, and where their results go.

    Attributes:
        modules: in their order; each has `contests(quick)`.
        libraries: whose versions are kept.
        pages: file, marker, and what goes between its two marker comments; pages without them are passed over.
    """

    modules: Sequence[str]
    pace: Pace
    libraries: Sequence[str]
    pages: Sequence[tuple[str, str, Callable[[Result], list[str]]]]


def small(result: Result) -> list[str]:
    """For the README: the speed beside other libraries, and the machine."""
    return [tables.speed_table(result), f"{tables.machine_line(result)}."]


def targets_and_times(result: Result) -> list[str]:
    """All targets, and the times of all contests."""
    return [tables.target_table(result), tables.caption(result), tables.time_table(result["races"])]


def segmentation(result: Result) -> list[str]:
    """As `targets_and_times`, the max-trees by size."""
    others = [entry for entry in result["races"] if "side" not in entry]
    return [
        tables.target_table(result),
        tables.caption(result),
        tables.size_table(result["races"], "noise", "noise"),
        tables.size_table(result["races"], "smooth", "smooth noise"),
        tables.time_table(others),
    ]


SUITES = {
    "segmentation": Suite(
        ("bench_max_tree", "bench_log_nfa", "bench_tails", "bench_block"),
        Pace(),
        ("higra", "scikit-image", "meaningful-spot-detector", "scipy", "mpmath", "torch"),
        (
            ("README.md", "benchmark", small),
            ("docs/notebook/performance.md", "benchmark", segmentation),
        ),
    ),
    "network": Suite(
        ("bench_network",),
        Pace(round_seconds=0.15, budget=5, most=15),
        ("torch", "timm", "FrEIA", "scikit-image", "scipy"),
        (
            ("docs/notebook/performance.md", "network", targets_and_times),
            ("docs/guide/large-images.md", "benchmark", targets_and_times),
        ),
    ),
}


def main() -> None:
    """Run a suite, or redraw what is made from its results."""
    parser = race.options(__doc__)
    parser.add_argument("suite", nargs="?", choices=SUITES, default="segmentation")
    parser.add_argument("--redraw", action="store_true", help="measure nothing")
    parser.add_argument("--root", type=Path, default=HERE.parent, help="where results, tables and plots go")
    arguments = parser.parse_args()
    if arguments.quick and arguments.root.resolve() == HERE.parent.resolve():
        parser.error("figures of the quick mode mean nothing and are not published: give another --root")
    suite, file = SUITES[arguments.suite], arguments.root / f"benchmarks/results/{arguments.suite}.json"
    if not arguments.redraw:
        pace = race.pace_of(arguments, suite.pace)
        race.write(race.document(measure(suite, pace, arguments.quick), arguments.quick, suite.libraries), file)
    result = json.loads(file.read_text(encoding="utf-8"))
    drawn = [page for page, marker, parts in suite.pages if tables.redraw(arguments.root / page, marker, parts(result))]
    if arguments.suite == "segmentation":
        plots.draw(result, arguments.root / "docs/notebook")
    print(tables.target_table(result), tables.caption(result), sep="\n\n")
    print(f"Wrote {file}; redrew {', '.join(drawn) or 'no page: none has the marker comments'}")


def measure(suite: Suite, pace: Pace, quick: bool) -> Iterator[Result]:
    """Hold all contests; an answer that differs stops everything, before anything is written."""
    for name in suite.modules:
        for contest in importlib.import_module(name).contests(quick):
            yield race.run(contest, pace)
            print(f"{contest.name}, {contest.case}: {', '.join(list(contest.contestants)[1:])}", flush=True)


if __name__ == "__main__":
    main()
