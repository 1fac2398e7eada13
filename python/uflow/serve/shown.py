"""What pages show of parts and of a line, ready for JSON."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from ..pages.cards import MOST_REGIONS
from ..pages.pictures import svg_path
from ..pages.report import Promise, slider_alphas
from .judge import Judge
from .parts import Part

__all__ = [
    "WORDS",
    "parse_clock",
    "parse_time",
    "shift_start",
    "show_chart",
    "show_part",
    "show_threshold",
    "show_time",
    "without_folders",
]

CHARTED = 300  # p-values
LOOSE_LOOKS = (0.25, 0.3, 0.35, 0.4, 0.45, 0.5)  # beyond what the slider of alpha offers
WORDS = {
    "good": "Good",
    "look": "Look",
    "reject": "Reject",
    "failed": "Not judged",
    "accepted": "Waiting",
}


def show_time(seconds: float) -> str:
    """A time since 1970 as the service's clock has it."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def parse_time(text: str) -> float:
    """Seconds since 1970 of a time as a form has it, such as 2026-03-01T06:00; ValueError for anything else."""
    return datetime.fromisoformat(text).timestamp()


def parse_clock(text: str) -> tuple[int, int]:
    """Hour and minute of a text such as 06:00; ValueError for anything else."""
    found = datetime.strptime(text, "%H:%M")
    return found.hour, found.minute


def shift_start(clock: tuple[int, int], now: float) -> float:
    """When it was last so late, in seconds since 1970."""
    moment = datetime.fromtimestamp(now)
    start = moment.replace(hour=clock[0], minute=clock[1], second=0, microsecond=0)
    return (start if start <= moment else start - timedelta(days=1)).timestamp()


def show_part(part: Part, has_picture: bool) -> dict[str, Any]:
    """A part with its outlines, as the pages' scripts draw it.

    Args:
        part: judged or not.
        has_picture: whether its image can still be seen.
    """
    result = {} if part.line is None else json.loads(part.line)
    verdict = part.verdict or part.state
    return {
        "id": part.id,
        "name": part.name if part.name else f"Part {part.id}",
        "time": show_time(part.received),
        "verdict": verdict,
        "word": WORDS[verdict],
        "p": part.p_value,
        "score": part.score,
        "answer": part.answer,
        "size": result.get("size", [3, 4]),  # of an image that was not judged a frame of usual shape
        "regions": _show_regions(result),
        "error": result.get("error"),
        "picture": has_picture,
    }


def _show_regions(result: dict[str, Any]) -> list[dict[str, Any]]:
    shown = []
    for region in result.get("regions", [])[:MOST_REGIONS]:
        rings = [np.array(ring, np.float32) for ring in region["contours"]]
        numbers = {"p": region["p_value"], "area": region["area"], "score": region["score"]}
        shown.append(numbers | {"path": svg_path(rings, tuple(result["size"]))})
    return shown


def show_chart(judge: Judge) -> dict[str, Any]:
    """The last p-values of a product, the limits now, and what the monitor says of them.

    An alarm stands at a place among the p-values, counted from the first one shown; below 0 it was before them.
    """
    promise = _promise(judge)
    values = judge.store.p_values(judge.name, limit=CHARTED)
    watched = None if judge.watch is None else judge.watch.to_dict()
    alarm = None
    if watched is not None and watched["alarm"] is not None:
        offset = len(values) - watched["parts"] - 1  # from the number of a part to its place
        alarm = watched["alarm"] | {"place": watched["alarm"]["part"] + offset}
        alarm["since_place"] = watched["alarm"]["since"] + offset
    return {
        "values": [p for _, p in values],
        "times": [show_time(received)[-8:] for received, _ in values[:1] + values[-1:]],
        "alpha": promise.reject,
        "look": promise.look,
        "watched": None if watched is None else watched["parts"],
        "alarm": alarm,
    }


def _promise(judge: Judge) -> Promise:
    """What the model that judges now promises; nothing where there is none."""
    predictor = judge.live.predictor
    return Promise() if predictor is None else Promise.from_threshold(predictor.threshold)


def show_threshold(judge: Judge) -> dict[str, Any]:
    """What the sliders offer, and how parts are judged now."""
    promise = _promise(judge)
    alphas = slider_alphas(promise)
    further = {share for share in (*LOOSE_LOOKS, promise.look) if share is not None and alphas and share > alphas[-1]}
    return asdict(promise) | {"alphas": alphas, "looks": [*alphas, *sorted(further)], "least": promise.least}


def without_folders(judge: Judge, text: str) -> str:
    """A message with the names of a product's files and not where they lie, which the log says."""
    files = (judge.live.file, judge.live.product.model, judge.store.folder / "any")
    folders = {f"{parent}{os.sep}" for file in files for parent in (file.parent, file.resolve().parent)}
    for folder in sorted(folders - {os.sep, f".{os.sep}"}, key=len, reverse=True):
        text = text.replace(folder, "")
    return text
