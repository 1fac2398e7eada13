"""Studies and comparisons as tasks of a Ray cluster: the same files in the same folder, so the same tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..interop.cluster import Needs, run_tasks
from . import rivals, study
from .models import Trained
from .protocols import Protocol
from .samples import Dataset

__all__ = ["measure_jobs", "run_study"]


def run_study(
    datasets: Sequence[Dataset],
    output: Path,
    models: Trained,
    protocol: str | Protocol = "paper",
    figures: bool = False,
    needs: Needs = Needs(),  # noqa: B008 (it cannot change)
) -> Iterator[study.Result]:
    """What `study.run` does, a task a category; results come in the order in which they are done.

    All machines must see `output`, the models and the images by the same paths.

    Args:
        datasets, output, models, protocol, figures: see `study.run`.
        needs: of each task.
    """
    plain = replace(models)  # without the backbones that were made to check it: they are large
    tasks = {dataset.name: partial(_run_category, dataset, output, plain, protocol, figures) for dataset in datasets}
    layouts = {dataset.name: dataset.layout for dataset in datasets}
    for done in run_tasks(tasks, needs):
        yield done.value or study.Result(done.name, layouts[done.name], error=done.error)


def _run_category(
    dataset: Dataset, output: Path, models: Trained, protocol: str | Protocol, figures: bool
) -> study.Result:
    (result,) = study.run([dataset], output, models, protocol, figures)
    return result


def measure_jobs(
    jobs: Sequence[rivals.Job], needs: Needs, on_done: Callable[[str], None] = lambda _: None
) -> Iterator[tuple[rivals.Job, rivals.Result]]:
    """What `rivals.measure_in_turn` does, a task a job; results come in the order in which they are done.

    All machines must see the folder of results and the images by the same paths. `on_done` is called with the title of
    each job, and why it failed if it did.
    """
    by_title = {job.title: job for job in jobs}
    for done in run_tasks({title: job.measure for title, job in by_title.items()}, needs):
        job = by_title[done.name]
        result = done.value or job.result(failure=done.error)
        on_done(f"{job.title}: {result.failure or 'done'}")
        yield job, result
