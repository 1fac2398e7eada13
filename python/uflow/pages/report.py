"""A report: one HTML file with everything in it, that opens from a disk and asks nothing of any network.

Names and values are escaped by the templates or kept in JSON; a Content-Security-Policy lets nothing run but the page's
own script, told by its SHA-256, and nothing be fetched. Needs no torch.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .. import __version__
from ..conformal import supported_alpha
from ..files import PathLike, atomic_write
from ..pictures import ALPHA_LEVEL, ColourScale
from ..threshold import CalibratedThreshold, DecisionRule
from .assets import STATIC, json_for_script, read_script, read_style
from .cards import LOOSEST_ALPHA, MOST_PICTURES, Card, leave_out_pictures

__all__ = ["Facts", "PageTable", "Promise", "Report", "make_legend", "slider_alphas", "write_report"]

log = logging.getLogger("uflow")

ALPHA_STEP = 0.005  # of the slider
LEGEND_STEPS = 32  # colours of the bar that explains a map
SCRIPTS = ("words.js", "state.js", "drawing.js", "histogram.js", "gallery.js", "stage.js", "large_view.js", "theme.js",
           "report.js")  # fmt: skip


class TableLike(Protocol):
    """Texts in rows, as `evaluate.tables.Table` holds them."""

    @property
    def header(self) -> Sequence[str]: ...
    @property
    def rows(self) -> Sequence[Sequence[str]]: ...
    @property
    def texts(self) -> int: ...
    @property
    def tight(self) -> Collection[int]: ...
    @property
    def rules(self) -> Collection[int]: ...


@dataclass(frozen=True)
class PageTable:
    """A table with its title, and sentences below it."""

    title: str
    table: TableLike
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Facts:
    """Names and values of one subject, such as what a model learnt from."""

    title: str
    entries: Sequence[tuple[str, str]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Promise:
    """How a model decides: what it promises, and by how many good images.

    Attributes:
        alpha: probability that a good image is flagged; None where nothing is promised.
        good_images: that it was calibrated by.
        look_alpha: probability that a good image is not called good, see `Prediction.verdict`; None for one limit only.
    """

    alpha: float | None = None
    good_images: int = 0
    look_alpha: float | None = None

    @classmethod
    def from_threshold(cls, threshold: DecisionRule) -> Promise:
        """What a threshold promises."""
        count = len(threshold.minima) if isinstance(threshold, CalibratedThreshold) else 0
        return cls(threshold.alpha, count, threshold.look_alpha)

    @property
    def least(self) -> float:
        """The least alpha that can be promised: below it, the threshold is that of this one."""
        return supported_alpha(self.good_images) if self.good_images else 0.0

    @property
    def reject(self) -> float | None:
        """The largest p-value that is flagged; None where nothing is promised."""
        return None if self.alpha is None else max(self.alpha, self.least)

    @property
    def look(self) -> float | None:
        """The largest p-value that somebody should look at; None for one limit only."""
        return None if self.look_alpha is None else max(self.look_alpha, self.least)


@dataclass(frozen=True)
class Report:
    """All that a report shows.

    Attributes:
        title, lead: the heading, and a sentence below it.
        cards: of the images.
        promises: how the first method decides, by category, in their order.
        methods: names of those that each card has a finding of.
        tables: of an evaluation.
        facts: about the model.
        notes: sentences above the images.
    """

    title: str
    lead: str
    cards: Sequence[Card]
    promises: Mapping[str, Promise] = field(default_factory=lambda: {"": Promise()})
    methods: Sequence[str] = ("U-Flow",)
    tables: Sequence[PageTable] = ()
    facts: Sequence[Facts] = ()
    notes: Sequence[str] = ()


def write_report(report: Report, path: PathLike) -> Path:
    """Write a report as one HTML file, whole or not at all, and log how large it is.

    The most suspicious `MOST_PICTURES` images have pictures; of others the page has the numbers, and says so.

    Args:
        report: what to show.
        path: of the file.

    Returns:
        The path.

    Raises:
        ValueError: no images, or cards that do not fit the methods or categories.
        OSError: the file cannot be written.
    """
    path = Path(path)
    _check(report)
    leave_out_pictures(report.cards)
    left_out = _left_out(report.cards)
    environment = Environment(
        loader=PackageLoader("uflow.pages", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = read_style(), read_script([STATIC / name for name in SCRIPTS])
    sections = [("images", "Images"), ("figures", "Figures"), ("model", "Model and settings")]
    content = {"images": report.cards, "figures": report.tables, "model": report.facts}
    page = environment.get_template("report.html").generate(
        report=report,
        notes=[*report.notes, *([left_out] if left_out else [])],
        sections=[(name, title) for name, title in sections if content[name]],
        policy=_policy(style, script),
        style=Markup(style),
        script=Markup(script),
        data=Markup(json_for_script(_data(report))),
        pictures=_pictures(report.cards),
        version=__version__,
        date=datetime.now(timezone.utc).strftime("%d %B %Y, %H:%M UTC"),
    )
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(page)
    size = path.stat().st_size / 1e6
    log.info("report %s: %d images, %.1f MB. %s", path, len(report.cards), size, left_out or "Nothing is left out.")
    return path


def slider_alphas(promise: Promise) -> list[float]:
    """What the slider offers: from the least that can be promised to `LOOSEST_ALPHA`, the model's own among them."""
    own = promise.reject
    if own is None:
        return []
    most = max(LOOSEST_ALPHA, own)
    steps = [round(ALPHA_STEP * step, 4) for step in range(1, round(most / ALPHA_STEP) + 1)]
    fine = [0.001, 0.002, 0.003, 0.004] if promise.least < ALPHA_STEP else []
    return sorted({alpha for alpha in (*fine, *steps, promise.least, own) if alpha >= promise.least})


def _check(report: Report) -> None:
    """ValueError, one line, where the parts of a report do not fit each other."""
    if not report.cards:
        raise ValueError("a report needs at least one image, got none")
    for card in report.cards:
        if len(card.findings) != len(report.methods):
            raise ValueError(f"{card.name} has {len(card.findings)} findings, for {len(report.methods)} methods")
        if card.category not in report.promises:
            raise ValueError(f"{card.name} is of category {card.category!r}, of which nothing is known")


def _left_out(cards: Sequence[Card]) -> str:
    """What the page does not show, in words; empty where nothing is left out."""
    without = sum(card.photo is None for card in cards)
    if not without:
        return ""
    which = ", of the least suspicious ones" if len(cards) > MOST_PICTURES else ""
    return f"Left out, to keep this page small: the pictures of {without} of {len(cards)} images{which}."


def _data(report: Report) -> dict[str, Any]:
    """What the page's script works on."""
    categories = list(report.promises)
    promises = [report.promises[name] for name in categories]
    promised = [promise for promise in promises if promise.alpha is not None]
    widest = min(promised, key=lambda promise: promise.least, default=Promise())
    alphas = slider_alphas(widest)
    images = [{**card.to_dict(), "category": categories.index(card.category)} for card in report.cards]
    judged = [any(card.findings[i].flagged is not None for card in report.cards) for i in range(len(report.methods))]
    with_p = [all(card.findings[i].p_value is not None for card in report.cards) for i in range(len(report.methods))]
    return {
        "alpha": widest.reject,
        "alphas": alphas,
        "categories": [
            {"name": name, "least": promise.least, "look": promise.look, "good": promise.good_images or None}
            for name, promise in zip(categories, promises, strict=True)
        ],
        "methods": [
            {"name": name, "calibrated": calibrated and bool(alphas), "judges": judges}
            for name, calibrated, judges in zip(report.methods, with_p, judged, strict=True)
        ],
        "legend": make_legend() if alphas else None,
        "images": images,
    }


def make_legend() -> dict[str, Any]:
    """The colours of a map from one end of their scale to the other, and what they mean."""
    colours = ColourScale(alarm=ALPHA_LEVEL).colours()
    shown = [*range(0, len(colours), len(colours) // LEGEND_STEPS), len(colours) - 1]
    stops = [{"at": at / (len(colours) - 1), "colour": "#{:02x}{:02x}{:02x}".format(*colours[at])} for at in shown]
    return {"colours": stops, "words": ["as on good parts", "model's α", "stranger"]}


def _pictures(cards: Sequence[Card]) -> Iterator[tuple[str, str]]:
    """The name and the text of each picture."""
    for number, card in enumerate(cards):
        if card.photo is not None:
            yield f"photo-{number}", base64.b64encode(card.photo).decode()
        for method, finding in enumerate(card.findings):
            if finding.map_picture is not None:
                yield f"map-{number}-{method}", base64.b64encode(finding.map_picture).decode()


def _policy(style: str, script: str) -> str:
    """Nothing is fetched, and nothing runs but this style and this script."""
    style_hash, script_hash = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)
    )
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style_hash}'; script-src 'sha256-{script_hash}'; "
        "base-uri 'none'; form-action 'none'"
    )
