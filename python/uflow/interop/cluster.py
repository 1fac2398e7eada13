"""Functions as tasks of a Ray cluster, or of this machine: each by itself, whatever becomes of the others."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

__all__ = ["Done", "Needs", "connect", "describe_failure", "run_tasks"]

log = logging.getLogger("uflow")

RETRIES = 2  # of a task whose process, or machine, is lost


@dataclass(frozen=True)
class Needs:
    """What a task is given.

    Attributes:
        threads: processors.
        gpus: a part is allowed; with 0 it sees to it by itself that it uses none.

    Raises:
        ValueError: no thread, or less than no GPU.
    """

    threads: int = 1
    gpus: float = 0

    def __post_init__(self) -> None:
        if self.threads < 1 or self.gpus < 0:
            raise ValueError(
                f"a task needs at least 1 thread and 0 GPUs, got {self.threads} threads and {self.gpus:g} GPUs"
            )


@dataclass(frozen=True)
class Done:
    """What has become of a task: what its function gave, or in one line why it gave nothing."""

    name: str
    value: Any = None
    error: str = ""


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, or start one here."""
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)


def run_tasks(tasks: Mapping[str, Callable[[], Any]], needs: Needs) -> Iterator[Done]:
    """Call functions on a cluster, and give what each gave as soon as it is there.

    Each runs in the caller's working folder, which all machines must see under the same name. What it logs is logged
    here when it is done. One whose process is lost is called again, twice; one that fails stops no other. A caller who
    stops half-way ends those at work.

    Args:
        tasks: what to call, by a name for messages.
        needs: of each.

    Raises:
        ValueError: no machine of the cluster has what a task needs.
    """
    connect()
    _check_needs(needs)
    call = ray.remote(num_cpus=needs.threads, num_gpus=needs.gpus, max_retries=RETRIES)(_call)
    here = Path.cwd()
    at_work = {call.options(name=name).remote(task, here, needs.threads): name for name, task in tasks.items()}
    try:
        while at_work:
            (found, *_), _ = ray.wait(list(at_work))
            name = at_work.pop(found)
            try:
                value, messages = ray.get(found)
            except ray.exceptions.RayError as error:
                yield Done(name, error=describe_failure(error))
                continue
            for level, message in messages:
                log.log(level, "%s: %s", name, message)
            yield Done(name, value)
    finally:
        for task in at_work:
            ray.cancel(task, force=True)


def describe_failure(error: Exception) -> str:
    """One line of Ray's pages: the last, where it is the reason."""
    if isinstance(error, ray.exceptions.WorkerCrashedError):
        return f"its process was killed, {RETRIES + 1} times: out of memory?"
    return [line.strip() for line in str(error).splitlines() if line.strip()][-1]


def _check_needs(needs: Needs) -> None:
    """ValueError where Ray would wait for ever."""
    machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]
    if any(there.get("CPU", 0) >= needs.threads and there.get("GPU", 0) >= needs.gpus for there in machines):
        return
    largest = [max((there.get(kind, 0) for there in machines), default=0) for kind in ("CPU", "GPU")]
    raise ValueError(
        f"a task needs {needs.threads} processors and {needs.gpus:g} GPUs on one machine, and none has them: there are "
        f"at most {largest[0]:g} and {largest[1]:g}"
    )


class _Messages(logging.Handler):
    """Keeps what is logged, to be logged elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append((record.levelno, self.format(record)))


def _call(task: Callable[[], Any], folder: Path, threads: int) -> tuple[Any, list[tuple[int, str]]]:
    """The whole of a task: what its function gives, and what it logged."""
    import torch

    os.chdir(folder)
    torch.set_num_threads(threads)
    messages = _Messages()
    log.addHandler(messages)
    log.setLevel(logging.INFO)
    try:
        return task(), messages.found
    finally:
        log.removeHandler(messages)
