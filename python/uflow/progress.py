"""Progress bars, on standard error: where that is a terminal, or in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as ProgressTask
from rich.text import Text

__all__ = ["progress_bar", "track"]

T = TypeVar("T")


class _Rate(ProgressColumn):
    def render(self, task: ProgressTask) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="progress.data.speed")


def _bars(*columns: ProgressColumn, show: bool) -> Progress:
    console = Console(stderr=True)
    return Progress(*columns, console=console, disable=not show or not (console.is_terminal or console.is_jupyter))


def progress_bar(show: bool | Progress) -> AbstractContextManager[Progress]:
    """A `Progress` of its own, or the caller's, who takes the bars away."""
    if isinstance(show, Progress):
        return nullcontext(show)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn()
    return _bars(*columns, show=show)


def track(items: Iterable[T], what: str, total: int, show: bool | Progress) -> Iterable[T]:
    """The items, with a bar of its own, or among the caller's, or without."""
    if isinstance(show, Progress):
        return show.track(items, total=total, description=what)
    return _track_alone(items, what, total) if show else items


def _track_alone(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    with _bars(*Progress.get_default_columns(), show=True) as bars:
        yield from bars.track(items, total=total, description=what)
