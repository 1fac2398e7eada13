"""Pictures, tables and files from predictions and evaluations."""

from __future__ import annotations

import csv
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import matplotlib as mpl
import numpy as np
from PIL import Image

from ..files import atomic_write
from ..predictor import Prediction
from .evaluation import Evaluation

OUTLINE = (0, 255, 255)  # cyan: rare on parts, and far from every colour of the map


def overlay(prediction: Prediction) -> Image.Image:
    """The image under its anomaly map, detected regions outlined in cyan; as large as the image."""
    colours = mpl.colormaps["inferno"](prediction.anomaly_map)[..., :3] * 255
    # Normal pixels, about 1 - exp(-1/2) = 0.39, keep their look.
    weight = 0.7 * np.clip(2 * prediction.anomaly_map - 1, 0, 1)[..., None]
    blend = (1 - weight) * prediction.image + weight * colours
    blend[outline(prediction.mask)] = OUTLINE
    return Image.fromarray(blend.astype(np.uint8))


def outline(mask: np.ndarray) -> np.ndarray:
    """Pixels of an (H, W) bool mask that touch its outside, as wide as shows on the whole picture."""
    inside = mask.copy()
    for _ in range(max(1, round(max(mask.shape) / 250))):
        padded = np.pad(inside, 1, constant_values=False)
        inside = inside & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.asarray(mask & ~inside)


def write_prediction(prediction: Prediction, stem: Path, arrays: bool = False) -> list[Path]:
    """Write ``<stem>_mask.png`` (0 or 255), ``<stem>_map.png`` (anomaly map times 255), ``<stem>_overlay.png``.

    With `arrays` also ``<stem>_map.npy`` and ``<stem>_log_nfa.npy``, float32. Each file is written whole or not at all.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    pictures = {
        "mask": Image.fromarray(prediction.mask.astype(np.uint8) * 255),
        "map": Image.fromarray((prediction.anomaly_map * 255).round().astype(np.uint8)),
        "overlay": overlay(prediction),
    }
    written = []
    for name, picture in pictures.items():
        written.append(stem.with_name(f"{stem.name}_{name}.png"))
        with atomic_write(written[-1]) as temporary:
            picture.save(temporary)
    if arrays:
        for name, array in {"map": prediction.anomaly_map, "log_nfa": prediction.log_nfa}.items():
            written.append(stem.with_name(f"{stem.name}_{name}.npy"))
            with atomic_write(written[-1]) as temporary:
                np.save(temporary, array)
    return written


def write_json_line(prediction: Prediction, file: IO[str]) -> None:
    """One line of JSON: image, score, is_anomalous, log_nfa (the lowest) and regions."""
    file.write(json.dumps(prediction.to_dict()) + "\n")
    file.flush()


def write_json(content: object, path: Path) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


# Tables ---------------------------------------------------------------------------------------------------------------

# The field of an `Evaluation` or of a row of `experiments.summary`, and its title in two lines.
COLUMNS = {
    "pixel_auroc": ("pixel", "AUROC"),
    "aupro": ("", "AUPRO"),
    "image_auroc": ("image", "AUROC"),
    "miou": ("mIoU", "auto"),
    "miou_fair": ("mIoU", "fair"),
    "miou_best": ("mIoU", "best"),
    "good_flagged": ("good", "flagged"),
    "defective_flagged": ("defective", "flagged"),
}
PUBLISHED = ("pixel_auroc", "aupro", "miou", "miou_best")  # those that the literature gives for U-Flow
WIDTH, LONGEST_NAME = 120, 22  # columns of a terminal, and what of them a category may take


def table(evaluations: dict[str, Evaluation]) -> list[list[str]]:
    """Header, a row a category, and their mean: figures, and the share of good and of defective images flagged."""
    names = {"pixel AUROC": "pixel_auroc", "AUPRO": "aupro", "image AUROC": "image_auroc"}
    names |= {"mIoU": "miou", "mIoU best": "miou_best"}
    rows = [["category", *names, "good flagged", "defective flagged"]]
    for name, evaluation in evaluations.items():
        good = [counts for kind, counts in evaluation.flagged.items() if kind == "good"]
        defects = [counts for kind, counts in evaluation.flagged.items() if kind != "good"]
        figures = [_figure(getattr(evaluation, field)) for field in names.values()]
        rows.append([name, *figures, _share(good), _share(defects)])
    if len(evaluations) > 1:
        columns = [[getattr(e, field) for e in evaluations.values()] for field in names.values()]
        means = [None if None in column else float(np.mean(column)) for column in columns]
        rows.append(["mean", *map(_figure, means), "", ""])
    return rows


def _share(counts: Sequence[dict[str, float]]) -> str:
    images = sum(c["images"] for c in counts)
    return f"{sum(c['images'] * c['share'] for c in counts) / images:.1%}" if images else "-"


def _figure(value: float | None, field: str = "") -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if field.endswith("flagged") else f"{value:.3f}"


def write_summary(summary: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ``results.json`` (all there is), ``.csv``, ``.md`` and ``.txt``, each whole or not at all.

    `summary` is what `experiments.summary` gives.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(summary, folder / "results.json")
    for suffix, text in (("md", summary_markdown(summary)), ("txt", summary_text(summary))):
        with atomic_write(folder / f"results.{suffix}") as temporary:
            temporary.write_text(text, encoding="utf-8")
    fields = ["category", "kind", "group", *COLUMNS, *(f"published_{field}" for field in PUBLISHED)]
    fields += ["protocol", "selected_on_test", "model", "epochs", "training_seconds", "error"]
    with atomic_write(folder / "results.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        lines = csv.DictWriter(file, fields, extrasaction="ignore")
        lines.writeheader()
        for kind, rows in (("category", summary["categories"]), ("mean", summary["means"])):
            for row in rows:
                theirs = {f"published_{field}": row["published"].get(field) for field in PUBLISHED}
                line = {"category": row.get("name"), "selected_on_test": summary["selected_on_test"], **row, **theirs}
                lines.writerow({**line, "kind": kind, "protocol": summary["protocol"]})
    return [folder / f"results.{suffix}" for suffix in ("md", "csv", "json", "txt")]


def summary_text(summary: Mapping[str, Any]) -> str:
    """What `experiments.summary` gives, for a terminal of 120 columns: table, and what must be known of it."""
    header, rows, means = _summary_rows(summary)
    names = [row[0] if len(row[0]) <= LONGEST_NAME else f"{row[0][: LONGEST_NAME - 1]}…" for row in rows + means]
    body = [[name, *row[1:]] for name, row in zip(names, rows + means, strict=True)]
    lines = [[above for above, _ in header], [below for _, below in header], *body]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    text.insert(2, rule)
    if means:
        text.insert(3 + len(rows), rule)
    above = [f"{summary['not_fair']}\n"] if summary["not_fair"] else []
    notes = [textwrap.fill(note, WIDTH, subsequent_indent="  ") for note in (_settings(summary), *_notes(summary))]
    return "\n".join([*above, *text, "", *notes]) + "\n"


def summary_markdown(summary: Mapping[str, Any]) -> str:
    """The same as a page in Markdown, with the share of images flagged by kind, and other methods' published means."""
    header, rows, means = _summary_rows(summary)
    titles = [" ".join(filter(None, title)).replace("pub- lished", "published") for title in header]
    parts = ["# Results", _settings(summary), markdown_table(titles, rows + [[f"**{m[0]}**", *m[1:]] for m in means])]
    if summary["not_fair"]:
        parts.insert(1, f"**{summary['not_fair']}**")
    parts += _notes(summary)
    flagged = [
        [row["category"], kind, str(counts["images"]), f"{counts['share']:.1%}"]
        for row in summary["categories"]
        for kind, counts in row["flagged"].items()
    ]
    if flagged:
        parts += [
            "## Images flagged, by kind",
            markdown_table(["category", "test images", "number", "flagged"], flagged),
        ]
    if summary["published_methods"]:
        methods = [
            [f"{name}*", *(_figure(figures.get(field)) for field in ("pixel_auroc", "miou_fair", "miou_best"))]
            for name, figures in summary["published_methods"].items()
        ]
        parts += [
            "## Other methods on MVTec AD, as published*",
            "Means over its 15 categories, from the same paper; none of them was measured here.",
            markdown_table(["method", "pixel AUROC", "mIoU fair", "mIoU best"], methods),
        ]
    return "\n\n".join(parts) + "\n"


def _summary_rows(summary: Mapping[str, Any]) -> tuple[list[tuple[str, str]], list[list[str]], list[list[str]]]:
    """Titles in two lines, a row a category, and the rows of means; published figures where there are any."""
    rows, means = summary["categories"], summary["means"]
    beside = [field for field in PUBLISHED if any(field in row["published"] for row in (*rows, *means))]
    header = [("", "category")]
    for field, title in COLUMNS.items():
        header += [title, ("pub-", "lished*")] if field in beside else [title]

    def cells(name: str, row: Mapping[str, Any]) -> list[str]:
        line = [name]
        for field in COLUMNS:
            line.append("failed" if row.get("error") and not row["counts"] else _figure(row[field], field))
            if field in beside:
                line.append(_figure(row["published"].get(field)))
        return line

    def name(mean: Mapping[str, Any]) -> str:
        count = len(mean["categories"])
        return f"mean of {count}" if mean["name"] == "all" else f"mean of {count} {mean['name']}"

    return header, [cells(row["category"], row) for row in rows], [cells(name(mean), mean) for mean in means]


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


def _notes(summary: Mapping[str, Any]) -> list[str]:
    notes = [
        *summary["notes"],
        "mIoU auto: where log10 NFA < 0. Best: at the one threshold of log10 NFA that is best on this test set. "
        "Fair: at the threshold of the anomaly map that leaves one false pixel a training image.",
    ]
    if any(row["published"] for row in (*summary["categories"], *summary["means"])):
        notes.append(f"* published: {summary['published_source']}. Not measured here.")
    failed = [row for row in summary["categories"] if row["error"]]
    return notes + [f"{row['category']} failed: {row['error']}" for row in failed]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """The first columns, `texts` of them, aligned to the left, the others as numbers are."""
    lines = [header, ["---"] * texts + ["---:"] * (len(header) - texts), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
