"""Tables of the benchmarks' results, and the pages that hold them between two marker comments."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from race import Result

from uflow.evaluate.tables import Table

Row = Sequence[str]

WIDTH = 118  # columns of a page's text


def markdown(rows: Sequence[Row], texts: int = 1) -> str:
    """A table whose first row is its header."""
    return Table(rows[0], rows[1:], texts).to_markdown()


def targets(races: Sequence[Result]) -> list[Result]:
    """Per claim the worst and the best case; it is met when the worst meets it."""
    claims: dict[str, list[tuple[Result, Result]]] = {}
    for race in races:
        for claim in race["claims"]:
            claims.setdefault(claim["text"], []).append((claim, race))
    found = []
    for text, entries in claims.items():
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
                "where": race["case"],
                "rival": worst["rival"],
                "best": ordered[-1][0]["ratio"]["median"],
                "cases": len(entries),
                "met": median >= bound if sense == ">=" else median <= bound,
            }
        )
    return found


def target_table(result: Result) -> str:
    """All targets, by their worst cases."""
    rows = [["target", "wanted", "worst case (quartiles)", "where", "best case", "met"]]
    for target in targets(result["races"]):
        sign = "≥" if target["sense"] == ">=" else "≤"
        best = number(target["best"]) if target["cases"] > 1 else ""
        met = "yes" if target["met"] else "**no**"
        wanted = f"{sign} {target['bound']:g}"
        rows.append([target["text"], wanted, quartiles(target["worst"]), target["where"], best, met])
    return markdown(rows)


def speed_table(result: Result) -> str:
    """The short table of the README: how many times as fast as other libraries."""
    rows = [["uflow beside other libraries", "in the worst case", "in the best"]]
    for target in targets(result["races"]):
        if "times faster" in target["text"]:
            rows.append([target["text"], number(target["worst"]["median"]), number(target["best"])])
    return markdown(rows)


def time_table(races: Sequence[Result], sides: tuple[str, str] = ("uflow", "rival")) -> str:
    """A row for each rival of each contest; `sides` are what the first contestant and the others are called."""
    first_side, rival_side = sides
    rows = [[rival_side, "case", f"{rival_side}, ms", f"{first_side}, ms", "times as long (quartiles)"]]
    for race in races:
        first, *rivals = race["contestants"]
        for rival in rivals:
            times = [number(1e3 * entry["seconds"]["median"]) for entry in (rival, first)]
            unit = "" if race["unit"] == "call" else f" per {race['unit']}"
            rows.append([rival["name"], f"{race['name']}, {race['case']}", *times, quartiles(rival["ratio"]) + unit])
    return markdown(rows, texts=2)


def series(races: Sequence[Result], kind: str) -> dict[str, dict[int, float]]:
    """{library: {side: seconds}} of the max-tree; a library that comes in several ways by the fastest."""
    found: dict[str, dict[int, float]] = {}
    for race in races:
        if "side" in race and race["kind"] == kind:
            entry = race["contestants"][-1]  # uflow runs alone in a contest of its own
            line = found.setdefault(entry["name"].split(",")[0], {})
            line[race["side"]] = min(entry["seconds"]["median"], line.get(race["side"], float("inf")))
    return found


def size_table(races: Sequence[Result], kind: str, title: str) -> str:
    """Max-tree times of every library and size."""
    times = series(races, kind)
    sides = sorted({side for line in times.values() for side in line})
    rows = [[f"max-tree of {title}, ms", *(f"{side} px" for side in sides)]]
    rows += [[name, *(number(1e3 * line[s]) if s in line else "" for s in sides)] for name, line in times.items()]
    return markdown(rows)


def caption(result: Result) -> str:
    """Machine, versions, and how to read the ratios."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    text = (
        f"{machine_line(result)}; {machine['compiler']}; {versions}. One thread on one core unless said. "
        "Ratios of neighbouring rounds in processor time (threads: clock), median and quartiles; worst and best "
        "over all cases of a target."
    )
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def machine_line(result: Result) -> str:
    """Processor, cores, caches, date."""
    machine = result["machine"]
    caches = ", ".join(f"{level} {size}" for level, size in machine["caches"].items() if level != "L1i")
    quick = ", QUICK MODE: figures mean nothing" if result["quick"] else ""
    return f"{machine['processor']}, {machine['cores']} cores, {caches}, {result['date'][:10]}{quick}"


def quartiles(ratio: Result) -> str:
    """Such as 8.19 (8.03 to 8.60)."""
    return "{} ({} to {})".format(*(number(ratio[key]) for key in ("median", "low", "high")))


def number(value: float) -> str:
    """Three digits, no exponent."""
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:#.3g}" if value >= 1e-3 else f"{value:.2g}"


def share(value: float | None) -> str:
    """In per cent."""
    return "-" if value is None else f"{value:.1%}"


def redraw(file: Path, marker: str, parts: Sequence[str]) -> bool:
    """Put the parts between the lines <!-- MARKER:begin --> and <!-- MARKER:end -->; False where they are not there."""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    before, begin, rest = text.partition(f"<!-- {marker}:begin -->")
    _, end, after = rest.partition(f"<!-- {marker}:end -->")
    if not begin or not end:
        return False
    file.write_text("\n\n".join([before + begin, *parts, end + after]), encoding="utf-8")
    return True
