"""What a process must see to: forks, locks, what others that were killed left behind, memory. Needs no torch."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = [
    "check_not_forked",
    "claim",
    "exit_on_terminate",
    "only_one",
    "peak_memory",
    "remove_orphans",
    "remove_unclaimed",
    "run_apart",
]

log = logging.getLogger("uflow")

Result = TypeVar("Result")

LOCK = "lock"  # name of the file in a folder of its own that a process holds while it lives
ORPHAN_AGE_S = 24 * 3600  # from which a temporary file cannot be in the making
YOUNG_S = 60  # age below which a folder may not have been claimed yet
TEMPORARY = re.compile(r"\.uflow-[0-9a-f]{16}(\.\w+)?")  # as `files.atomic_write` names them

_loaded_in: dict[str, int] = {}  # process in which a runtime first ran a network; a forked one inherits it


def check_not_forked(runtime: str) -> None:
    """Raise RuntimeError in a process that was forked from one in which a runtime ran: it would wait for ever.

    A fork copies the memory of a process, and of its threads only the one that forks. Runtimes wait for the others.

    Args:
        runtime: what runs the network, such as "torch".
    """
    if _loaded_in.setdefault(runtime, os.getpid()) != os.getpid():
        raise RuntimeError(
            f"this process was forked from one that had loaded a model, and {runtime}'s threads did not come along: "
            "start it by multiprocessing's 'spawn', or load models after the fork only"
        )


def run_apart(work: Callable[[], Result]) -> Result:
    """What some work returns, done in a thread that ends with it: loading a model, of which another thread computes.

    Torch computes with OpenMP, which gives each thread that computes a team of its own, until that thread ends. Where
    there are more threads in teams than cores, a team sleeps at each of its hundreds of waits an image instead of
    staying awake, and an image takes longer: `python benchmarks/threads.py MODEL IMAGES` says how much.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="uflow-load") as thread:
        return thread.submit(work).result()


@contextmanager
def exit_on_terminate() -> Iterator[None]:
    """SIGTERM ends the program as an error does: what it has half written is removed. Exit code 143."""
    if threading.current_thread() is not threading.main_thread():  # handlers belong to that one
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise_exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise_exit(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


# Locks: the system lets go of them when a process ends, however it ends --------------------------------------------


def claim(path: Path) -> BaseFileLock | None:
    """Hold a lock file until it is released, or this process ends; None where another one holds it.

    Raises:
        OSError: it cannot be written.
    """
    from filelock import FileLock, Timeout  # comes with torch, which everything that takes a lock needs

    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


@contextmanager
def only_one(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file meanwhile; it is removed at the end.

    Raises:
        RuntimeError: another process, or thread, holds it.
    """
    try:
        lock = claim(path)
    except NotImplementedError:  # a file system without locks
        log.warning("%s cannot be locked: see to it yourself that %s runs once", path, what)
        yield
        return
    if lock is None:
        raise RuntimeError(f"{what} is at work already, in another process ({path}): wait for it, or name another file")
    try:
        yield
    finally:
        with suppress(OSError):  # while it is held: a file that another one holds must not go. (Not on Windows.)
            path.unlink()
        lock.release()


# Orphans: what was left behind by runs that were killed ---------------------------------------------------------------


def remove_orphans(folder: Path) -> None:
    """Remove temporary files of `files.atomic_write` that have lain in a folder for a day."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if TEMPORARY.fullmatch(entry.name) and _age(entry.stat(follow_symlinks=False)) > ORPHAN_AGE_S:
                _remove(Path(entry.path))


def remove_unclaimed(parent: Path, prefix: str) -> None:
    """Remove folders of a prefix in which no process holds the lock file: those of runs that were killed."""
    for folder in parent.glob(f"{prefix}*"):
        with suppress(OSError, NotImplementedError):
            status = folder.lstat()
            own = not hasattr(os, "getuid") or status.st_uid == os.getuid()  # others' may hold a trap
            if not own or folder.is_symlink() or not (folder / LOCK).is_file() or _age(status) < YOUNG_S:
                continue
            if (lock := claim(folder / LOCK)) is not None:
                log.info("removing %s, which a run that was killed left behind", folder)
                lock.release()
                _remove(folder)


def _age(status: os.stat_result) -> float:
    return time.time() - status.st_mtime


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def peak_memory() -> float | None:
    """The most that this process held at once, in MB."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what the parent process held when it started this one
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
