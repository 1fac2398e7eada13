"""Progress bars on a terminal."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as ProgressTask
from rich.text import Text

__all__ = ["progress_bar"]


class _Rate(ProgressColumn):
    def render(self, task: ProgressTask) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="progress.data.speed")


def progress_bar(show: bool | Progress) -> AbstractContextManager[Progress]:
    """A `Progress` of its own, or the caller's, who takes the bars away."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn()
    return nullcontext(show) if isinstance(show, Progress) else Progress(*columns, disable=not show)
