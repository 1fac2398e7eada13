"""What was measured beside all published figures of the same categories: a table a figure, as the paper has them.

Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import published
from .tables import Table, mean_figure

__all__ = ["FIGURES", "Measured", "beside_literature", "literature_markdown"]

Figures = Mapping[str, Any]
Measured = Mapping[str, Mapping[str, Figures]]  # category, method: figures as in an `Evaluation`

# What the paper tabulates, and our fields for it: the first that a method has.
FIGURES = {
    "Pixel AUROC": ("pixel_auroc",),
    "AUPRO": ("aupro",),
    "mIoU at the method's own threshold, or at the fair one": ("miou", "miou_fair"),
    "mIoU at the best threshold": ("miou_best",),
    "Image AUROC": ("image_auroc",),
}


def beside_literature(measured: Measured, layout: str) -> dict[str, Table]:
    """A table for each figure of the literature that concerns the categories measured, by the figure's title.

    A column for each method that was measured, then for each published one; a row a category, and their mean. Data sets
    whose categories were not published one by one have the published mean alone.

    Args:
        measured: figures of each method on each category; of the same data set.
        layout: of the data set, one of `layouts.LAYOUTS`.

    Returns:
        Nothing where the literature has no figure of these categories.
    """
    by_method = published.by_method(layout)
    names = [name for name in published.categories(layout) if name in measured]
    if not names and published.is_single(layout):
        names = list(measured)
    tables = {}
    for title, fields in FIGURES.items():
        columns = [name for name, figures in by_method.items() if _has(figures, fields)]
        if names and columns:
            tables[title] = _table(measured, names, {name: by_method[name] for name in columns}, fields)
    return tables


def literature_markdown(measured: Measured, layout: str) -> list[str]:
    """The tables as parts of a page, with their source; nothing where there is none."""
    tables = beside_literature(measured, layout)
    if not tables:
        return []
    parts = [
        "## Beside the literature",
        f"Measured here, left; published, right of it and not measured here, in *italics*: {published.CITATION}. "
        "Published mIoU: U-Flow at its automatic threshold, the others at a fair one.",
    ]
    for title, table in tables.items():
        parts += [f"### {title}", table.to_markdown()]
    return parts


def _table(
    measured: Measured, names: Sequence[str], known: Mapping[str, Mapping[str, Figures]], fields: Sequence[str]
) -> Table:
    methods = list(dict.fromkeys(method for name in names for method in measured[name]))
    columns = [[_first(measured[name].get(method, {}), fields) for name in names] for method in methods]
    columns += [[_first(figures.get(name, {}), fields) for name in names] for figures in known.values()]
    whole = [None] * len(methods) + [_first(figures.get("", {}), fields) for figures in known.values()]
    rows = [[name, *(_text(column[i]) for column in columns)] for i, name in enumerate(names)]
    means = [mean if mean is not None else mean_figure(column) for mean, column in zip(whole, columns, strict=True)]
    if len(names) > 1:
        rows.append([f"mean of {len(names)}", *map(_text, means)])
    elif any(value is not None for value in whole):  # a data set of one category: its mean is the category
        rows = [[names[0], *map(_text, means)]]
    return Table(["category", *methods, *(f"*{name}*" for name in known)], rows)


def _has(figures: Mapping[str, Figures], fields: Sequence[str]) -> bool:
    return any(_first(one, fields) is not None for one in figures.values())


def _first(figures: Figures, fields: Sequence[str]) -> float | None:
    """The first of some fields that is known."""
    return next((figures[field] for field in fields if figures.get(field) is not None), None)


def _text(value: float | None) -> str:
    """Four digits, as published."""
    return "-" if value is None else f"{value:.4f}"
