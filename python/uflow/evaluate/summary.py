"""The results of a study in one place: rows and means beside the published figures, as text, Markdown, CSV and JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .. import __version__
from . import published
from .evaluation import Evaluation
from .literature import literature_markdown
from .study import Result
from .tables import FIGURES, Table, figure_text, mean_figure, write_json, write_text

__all__ = ["flagged_table", "summarise", "summary_markdown", "summary_tables", "summary_text", "write_summary"]

WIDTH = 120  # columns of a terminal
MAX_NAME_LENGTH = 20  # what of them the name of a category may take
FAIR_RULES = {
    "sentence": "one false pixel a training image",
    "corners": "one false pixel a training image on the ROC curve's corner points, as the published figures have it",
}
ELSEWHERE = ("selected_on_test", "model", "counts", "epochs", "training_seconds")  # taken over from a record as it is


def summarise(results: Sequence[Result]) -> dict[str, Any]:
    """The figures of all categories and their means, beside the published ones, ready for JSON and for the tables.

    Categories stand in the paper's order: textures, objects, then others by name. A mean is over the categories that
    did not fail, and None where one of them lacks the figure; a published mean is over the same categories.
    """
    rank = {name: i for i, name in enumerate(published.MVTEC_AD)}
    ordered = sorted(results, key=lambda r: (rank[r.category] if _is_mvtec(r) else len(rank), r.category))
    rows = [_row(result) for result in ordered]
    records = [result.record for result in ordered if result.record]
    first = Evaluation(**records[0]["evaluation"]) if records else None
    return {
        "uflow": __version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **{name: getattr(first, name, None) for name in ("protocol", "oracle", "fair_rule")},
        "selected_on_test": any(record["selected_on_test"] for record in records),
        "not_fair": _not_fair(records),
        # The alpha is the detector's own: `calibrate` may have set another since.
        "trained_with": _common([{**record["trained_with"], "alpha": record["alpha"]} for record in records]),
        "categories": rows,
        "means": _means(rows, {result.layout for result in results}),
        "published_source": published.SOURCE,
        "published_methods": published.METHODS if any(row["group"] for row in rows) else {},
        "notes": _notes(ordered),
    }


def write_summary(summary: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ``results.json`` (all there is), ``.csv``, ``.md`` and ``.txt``, each whole or not at all.

    Args:
        summary: what `summarise` gives.
        folder: made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"results.{suffix}" for suffix in ("md", "csv", "json", "txt")]
    texts = summary_markdown(summary), _records_table(summary).to_csv()
    for path, text in zip(paths, texts, strict=False):
        write_text(text, path)
    write_json(summary, paths[2])
    write_text(summary_text(summary), paths[3])
    return paths


# Rows and means -------------------------------------------------------------------------------------------------------


def _is_mvtec(result: Result) -> bool:
    return result.category in published.MVTEC_AD and result.layout in ("mvtec", "")


def _row(result: Result) -> dict[str, Any]:
    figures: dict[str, Any] = dict.fromkeys(FIGURES)
    flagged: dict[str, Any] = {}
    if result.record:
        evaluation = Evaluation(**result.record["evaluation"])
        figures, flagged = {field: getattr(evaluation, field) for field in FIGURES}, evaluation.flagged
    group = ""
    if _is_mvtec(result):
        group = "textures" if result.category in published.TEXTURES else "objects"
    return {
        "category": result.category,
        "layout": "mvtec" if group else result.layout,
        "group": group,
        **figures,
        "flagged": flagged,
        "published": published.MVTEC_AD[result.category] if group else {},
        **{name: result.record.get(name) for name in ELSEWHERE},
        "error": result.error,
    }


def _means(rows: Sequence[dict[str, Any]], layouts: set[str]) -> list[dict[str, Any]]:
    """Of textures, of objects, of MVTec AD, and of all, where each says something that the others do not."""
    groups = {"textures": published.TEXTURES, "objects": published.OBJECTS, "MVTec AD": tuple(published.MVTEC_AD)}
    means = []
    for name, members in groups.items():
        among = [row for row in rows if row["group"] and row["category"] in members]
        if among and (name != "MVTec AD" or len(among) < len(rows)):
            means.append(_mean(name, among))
    whole = published.DATASETS.get(next(iter(layouts)), {}) if len(layouts) == 1 else {}
    if len(rows) > 1 or whole:
        means.append(_mean("all", rows, whole))
    return [mean for mean in means if mean["categories"]]


def _mean(name: str, rows: Sequence[dict[str, Any]], whole: Mapping[str, float] | None = None) -> dict[str, Any]:
    """The mean row; `whole` are published figures of the whole data set, where its categories have none."""
    rows = [row for row in rows if row["counts"]]  # those that were evaluated
    beside = {metric: mean_figure([row["published"].get(metric) for row in rows]) for metric in published.METRICS}
    return {
        "name": name,
        "categories": [row["category"] for row in rows],
        **{field: mean_figure([row[field] for row in rows]) for field in FIGURES},
        "published": dict(whole or {}) or {metric: value for metric, value in beside.items() if value is not None},
    }


def _common(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that all trainings share, without the images they are for."""
    first, *others = settings or [{}]
    shared = {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
    return {key: value for key, value in shared.items() if key not in ("images", "selected_on_test", "selected_by")}


# What must be known of the figures ------------------------------------------------------------------------------------


def _not_fair(records: Sequence[Mapping[str, Any]]) -> str:
    """A warning in 120 columns where epochs were chosen on the test set, else nothing."""
    chosen = sum(record["selected_on_test"] for record in records)
    which = f"{chosen} of {len(records)} models" if chosen < len(records) else "each epoch"
    named = {"aupro": "AUPRO", "miou": "mIoU"}
    figures = dict.fromkeys(named.get(record.get("selected_by") or "", "pixel AUROC") for record in records)
    return (
        f"NOT A FAIR FIGURE: {which} chosen by {', '.join(figures)} on the test set, as the published ones were."
        if chosen
        else ""
    )


def _notes(results: Sequence[Result]) -> list[str]:
    """What a reader must know to compare the figures with the published ones."""
    records = [result.record for result in results if result.record]
    notes = []
    if any(record["evaluation"]["protocol"] == "native" for record in records):
        notes.append(
            "Protocol native: maps and masks at each image's own size. The published figures are at 256 x 256."
        )
    other = []
    for result in results:
        found, counts = result.record.get("counts", {}), published.IMAGES.get(result.category, ())
        if found and _is_mvtec(result) and counts != (found["train"], found["test"]):
            other.append("{}, {train} and {test}, not {} and {}".format(result.category, *counts, **found))
    if other:
        notes.append(
            "Published figures of another set: MVTec AD has other numbers of images to train on and to test "
            f"({'; '.join(other)})."
        )
    return notes


def _settings(summary: Mapping[str, Any]) -> str:
    known = summary["trained_with"]
    words = [f"uflow {summary['uflow']}"]
    if "backbone" in known:
        words.append(known["backbone"] + (" at {}x{}".format(*known["image_size"]) if "image_size" in known else ""))
    if "settings" in known:
        words.append(f"at most {known['settings']['epochs']} epochs, seed {known['settings']['seed']}")
    if "alpha" in known:
        words.append("the paper's test" if known["alpha"] is None else f"alpha {known['alpha']:g}")
    size = {"paper": "at 256 x 256", "native": "at each image's own size"}.get(summary["protocol"], "")
    words.append(f"protocol {summary['protocol']} ({size}, AUPRO to a false-positive rate of 0.3)")
    return ", ".join(words) + "."


def _legend(summary: Mapping[str, Any]) -> list[str]:
    """Notes, what the columns mean, and which categories failed."""
    notes = [
        *summary["notes"],
        "mIoU auto: where log10 NFA < 0. Defect IoU: the same over the images with a defect alone, where an empty mask "
        f"counts 0. Pixel F1: of those masks over all pixels. Fair: at the threshold of the anomaly map that leaves "
        f"{FAIR_RULES.get(summary['fair_rule'], FAIR_RULES['sentence'])}. Best: at the threshold of log10 NFA "
        f"{'' if summary['oracle'] in ('any', None) else 'in ' + summary['oracle'] + ' '}"
        "that is best on this test set.",
    ]
    if any(row["published"] for row in (*summary["categories"], *summary["means"])):
        notes.append(f"Paper: {summary['published_source']}. Not measured here.")
    failed = [row for row in summary["categories"] if row["error"]]
    return notes + [f"{row['category']} failed: {row['error']}" for row in failed]


# Tables ---------------------------------------------------------------------------------------------------------------


def summary_text(summary: Mapping[str, Any]) -> str:
    """What `summarise` gives, for a terminal of 120 columns: the table, and what must be known of it."""
    above = [f"{summary['not_fair']}\n"] if summary["not_fair"] else []
    notes = [textwrap.fill(note, WIDTH, subsequent_indent="  ") for note in (_settings(summary), *_legend(summary))]
    return "\n".join([*above, _figures_table(summary, MAX_NAME_LENGTH).to_text(), "", *notes]) + "\n"


def summary_markdown(summary: Mapping[str, Any]) -> str:
    """The same as a page in Markdown, with the share of images flagged by kind, and all published figures."""
    (title, figures, (settings, *legend)), *others = summary_tables(summary)
    parts = [f"# {title}", settings, figures.to_markdown()]
    if summary["not_fair"]:
        parts.insert(1, f"**{summary['not_fair']}**")
    parts += legend
    for title, table, notes in others:
        parts += [f"## {title}", *notes, table.to_markdown()]
    return "\n\n".join([*parts, *_literature(summary)]) + "\n"


def summary_tables(summary: Mapping[str, Any]) -> list[tuple[str, Table, list[str]]]:
    """The tables of a page: title, table, and what must be known of it; means are bold as in Markdown."""
    notes = [_settings(summary), *_legend(summary)]
    tables = [("Results", _figures_table(summary, bold_means=True), notes)]
    flagged = flagged_table(summary)
    if flagged.rows:
        tables.append(("Images flagged, by kind", flagged, []))
    if summary["published_methods"]:
        fields = ("pixel_auroc", "aupro", "miou_fair", "miou_best")
        rows = [
            [name, *(figure_text(figures.get(field)) for field in fields)]
            for name, figures in summary["published_methods"].items()
        ]
        source = "Means over its 15 categories, from the same paper; none of them was measured here."
        table = Table(["method", *(FIGURES[field] for field in fields)], rows)
        tables.append(("Other methods on MVTec AD, as published", table, [source]))
    return tables


def _literature(summary: Mapping[str, Any]) -> list[str]:
    """All published figures of these categories beside ours, data set by data set."""
    rows = [row for row in summary["categories"] if row["counts"]]
    parts: list[str] = []
    for layout in dict.fromkeys(row["layout"] for row in rows):
        measured = {row["category"]: {"measured here": row} for row in rows if row["layout"] == layout}
        parts += literature_markdown(measured, layout)
    return parts


def flagged_table(summary: Mapping[str, Any]) -> Table:
    """How many images of each kind there are, and the share flagged."""
    rows = [
        [row["category"], kind, str(int(counts["images"])), figure_text(counts["share"], "flagged")]
        for row in summary["categories"]
        for kind, counts in row["flagged"].items()
    ]
    return Table(["category", "test images", "number", "flagged"], rows, texts=2)


def _figures_table(summary: Mapping[str, Any], longest_name: int | None = None, bold_means: bool = False) -> Table:
    """A row a category, then the means; published figures beside those measured, where there are any."""
    rows, means = summary["categories"], summary["means"]
    beside = [field for field in published.METRICS if any(field in row["published"] for row in (*rows, *means))]
    header, tight = ["category"], []
    for field, title in FIGURES.items():
        header.append(title)
        if field in beside:
            tight.append(len(header))
            header.append("paper")
    mark = "**" if bold_means else ""
    names = [row["category"] for row in rows]
    if longest_name is not None:
        names = [name if len(name) <= longest_name else f"{name[: longest_name - 1]}…" for name in names]
    names += [f"{mark}{_mean_name(mean)}{mark}" for mean in means]
    cells = [[name, *_cells(row, beside)] for name, row in zip(names, (*rows, *means), strict=True)]
    return Table(header, cells, tight=tight, rules=[len(rows)] if means else [])


def _cells(row: Mapping[str, Any], beside: Sequence[str]) -> list[str]:
    failed = bool(row.get("error")) and not row["counts"]
    cells = []
    for field in FIGURES:
        cells.append("failed" if failed else figure_text(row[field], field))
        if field in beside:
            cells.append(figure_text(row["published"].get(field)))
    return cells


def _mean_name(mean: Mapping[str, Any]) -> str:
    count = len(mean["categories"])
    return f"mean of {count}" if mean["name"] == "all" else f"mean of {count} {mean['name']}"


def _records_table(summary: Mapping[str, Any]) -> Table:
    """All digits, for programs."""
    fields = ["category", "kind", "group", *FIGURES, *(f"published_{metric}" for metric in published.METRICS)]
    fields += ["protocol", "selected_on_test", "model", "epochs", "training_seconds", "error"]
    records = []
    for kind, rows in (("category", summary["categories"]), ("mean", summary["means"])):
        for row in rows:
            beside = {f"published_{metric}": row["published"].get(metric) for metric in published.METRICS}
            defaults = {"category": row.get("name"), "selected_on_test": summary["selected_on_test"]}
            records.append({**defaults, **row, **beside, "kind": kind, "protocol": summary["protocol"]})
    return Table.from_records(fields, records)
