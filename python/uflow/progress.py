"""Progress bars on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import rich.progress
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as ProgressTask
from rich.text import Text

__all__ = ["progress_bar", "track"]

T = TypeVar("T")


class _Rate(ProgressColumn):
    def render(self, task: ProgressTask) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="progress.data.speed")


def progress_bar(show: bool | Progress) -> AbstractContextManager[Progress]:
    """A `Progress` of its own, or the caller's, who takes the bars away."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn()
    return nullcontext(show) if isinstance(show, Progress) else Progress(*columns, disable=not show)


def track(items: Iterable[T], what: str, total: int, show: bool | Progress) -> Iterable[T]:
    """The items, with a bar of its own, or among the caller's, or without."""
    if isinstance(show, Progress):
        return show.track(items, total=total, description=what)
    return rich.progress.track(items, what, total=total) if show else items
