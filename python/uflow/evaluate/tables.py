"""The one table maker: figures and words in rows, for a terminal, as Markdown and as CSV. Needs no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import schema
from ..files import atomic_write
from .evaluation import Evaluation

__all__ = ["FIGURES", "Table", "evaluations_table", "figure_text", "mean_figure", "write_json", "write_text"]

# The fields of an `Evaluation` that tables show, and their titles, in two lines on a terminal.
FIGURES = {
    "pixel_auroc": "pixel\nAUROC",
    "aupro": "AUPRO",
    "image_auroc": "image\nAUROC",
    "miou": "mIoU\nauto",
    "iou_defective": "defect\nIoU",
    "pixel_f1": "pixel\nF1",
    "miou_fair": "mIoU\nfair",
    "miou_best": "mIoU\nbest",
    "good_flagged": "good\nflagged",
    "defective_flagged": "defects\nflagged",
}


@dataclass(frozen=True)
class Table:
    """A header and rows of texts, each as long as the header.

    Attributes:
        header: titles; a line break in one counts on a terminal only.
        rows: the cells.
        texts: how many columns, the first ones, hold words: they stand left, and numbers right.
        tight: numbers of columns that belong to the one before them and stand close to it.
        rules: numbers of rows above which a line is drawn on a terminal.

    >>> print(Table(["part", "mIoU"], [["nut", "0.5"], ["mean", "0.5"]], rules=[1]).to_text())
    part  mIoU
    ----------
    nut    0.5
    ----------
    mean   0.5
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1
    tight: Collection[int] = ()
    rules: Collection[int] = ()

    @classmethod
    def from_records(cls, fields: Sequence[str], records: Iterable[Mapping[str, Any]]) -> Table:
        """A table of values as they are, empty where a record has none."""
        return cls(fields, [[_text(record.get(field)) for field in fields] for record in records])

    def to_text(self) -> str:
        """For a terminal: columns side by side, a line under the header."""
        titles = [title.split("\n") for title in self.header]
        height = max(map(len, titles))
        titles = [[""] * (height - len(lines)) + lines for lines in titles]  # they end on the same line
        lines: list[Sequence[str]] = [*zip(*titles, strict=True), *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [self._line(line, widths) for line in lines]
        rule = "-" * len(self._line([" " * width for width in widths], widths, strip=False))
        for number in sorted({0, *self.rules}, reverse=True):
            text.insert(height + number, rule)
        return "\n".join(text)

    def _line(self, cells: Sequence[str], widths: Sequence[int], strip: bool = True) -> str:
        line = ""
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            gap = "" if i == 0 else " " if i in self.tight else "  "
            line += gap + (cell.ljust(width) if i < self.texts else cell.rjust(width))
        return line.rstrip() if strip else line

    def to_markdown(self) -> str:
        """A table of Markdown."""
        titles = [title.replace("\n", " ") for title in self.header]
        lines = [titles, ["---"] * self.texts + ["---:"] * (len(titles) - self.texts), *self.rows]
        return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)

    def to_csv(self) -> str:
        """Comma-separated values with a header."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.header, *self.rows])
        return text.getvalue()


def evaluations_table(evaluations: Mapping[str, Evaluation]) -> Table:
    """A row an evaluation and, of several, their mean; figures that none of them has are left out."""
    fields = [field for field in FIGURES if any(getattr(e, field) is not None for e in evaluations.values())]
    figures = [[getattr(evaluation, field) for field in fields] for evaluation in evaluations.values()]
    if len(figures) > 1:
        figures.append([mean_figure(column) for column in zip(*figures, strict=True)])
    cells = [[figure_text(value, field) for value, field in zip(row, fields, strict=True)] for row in figures]
    rows = [[name, *row] for name, row in zip([*evaluations, "mean"], cells, strict=False)]
    header = ["category", *(FIGURES[field] for field in fields)]
    return Table(header, rows, rules=[len(evaluations)] if len(rows) > len(evaluations) else [])


def figure_text(value: float | None, field: str = "") -> str:
    """Three digits, or per cent of the images flagged; a dash for what is not known."""
    if value is None:
        return "-"
    return f"{value:.1%}" if field.endswith("flagged") else f"{value:.3f}"


def mean_figure(values: Iterable[float | None]) -> float | None:
    """The mean; None where one of them is not known, or there is none."""
    everything = list(values)
    known = [value for value in everything if value is not None]
    return float(np.mean(known)) if known and len(known) == len(everything) else None


def write_json(content: object, path: Path) -> None:
    """Write a JSON file, whole or not at all; ValueError where a number is not finite, which no reader takes."""
    with atomic_write(path) as temporary:
        temporary.write_text(schema.write_json(content, indent=2) + "\n", encoding="utf-8")


def write_text(text: str, path: Path) -> None:
    """Write a text file, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _text(value: object) -> str:
    return "" if value is None else str(value)
