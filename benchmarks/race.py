"""The one harness of all benchmarks: contestants take turns, answers are compared first, ratios have quartiles.

A benchmark is a module with `contests(quick)`, which yields a `Contest` after another; `run` holds each. How it
measures, and why so, is in README.md.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

# Before numpy is imported: its libraries read them once. torch's threads are set for each contest.
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import numpy as np
import torch

from uflow import benchmark
from uflow.files import atomic_write

HERE = Path(__file__).parent
CORES: set[int] = getattr(os, "sched_getaffinity", lambda _: set())(0)
sys.path.append(str(HERE.parent / "tests"))  # the slow twin, reference.py, and FrEIA's graph, test_flow.py

Function = Callable[[], object]
Result = dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """A target: a ratio of times is at least, or at most, `bound`. Contests with the same text are one row of a table.

    Attributes:
        sense: ">=" of the rival's time over that of the first contestant; "<=" of the first one's over the rival's.
        rival: how the names of the rivals begin that it is about; all by default.
    """

    text: str
    sense: str
    bound: float
    rival: str = ""


def at_least(bound: float, text: str, rival: str = "") -> Claim:
    """How many times as long the rival takes."""
    return Claim(text, ">=", bound, rival)


def at_most(bound: float, text: str, rival: str = "") -> Claim:
    """How many times as long as the rival the first contestant takes."""
    return Claim(text, "<=", bound, rival)


@dataclass(frozen=True)
class Contest:
    """Functions that do the same work, uflow's first.

    Attributes:
        name, case: what is done, and on which input.
        contestants: name -> function.
        agree: takes what each contestant returns, in their order, and raises AssertionError where the answers differ.
            None: a yardstick, whose answer is another one.
        claims: what the ratios must be.
        work: how much each does in a call, in `unit`s; ratios are of the times a unit. Empty: as much as the others.
        threads: 1 is one core and its processor time; more are timed by the clock, on all cores.
        details: kept with the result.
    """

    name: str
    case: str
    contestants: Mapping[str, Function]
    agree: Callable[..., None] | None
    claims: Sequence[Claim] = ()
    work: Sequence[float] = ()
    unit: str = "call"
    threads: int = 1
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Pace:
    """How long contests take: rounds of some calls, as many as `budget` seconds hold, or `rounds` of them."""

    round_seconds: float = 0.002
    budget: float = 2.0
    most: int = 101
    rounds: int | None = None

    def rounds_of(self, seconds: float) -> int:
        """How many rounds, where each contestant's turn takes so many seconds together."""
        fewest = 3 if seconds > self.budget / 2 else 5
        return self.rounds or min(max(int(self.budget / seconds), fewest), self.most)


QUICK = Pace(0.0005, 0.02, 5)


# Measuring ------------------------------------------------------------------------------------------------------------


def run(contest: Contest, pace: Pace) -> Result:
    """Compare the answers, then let the contestants take turns.

    Returns:
        Ready for JSON: name, case, details, rounds; "contestants", each with its name, calls a round, seconds a call
        and, but for the first, its time over the first one's, "ratio"; and "claims". Each a median with quartiles.

    Raises:
        AssertionError: the answers differ.
    """
    names, functions = list(contest.contestants), list(contest.contestants.values())
    with prepared(contest.threads) as clock:
        answers = [function() for function in functions]
        if contest.agree is not None:
            contest.agree(*answers)
        del answers
        calls, seconds = zip(*(_calls_a_round(function, clock, pace) for function in functions), strict=True)
        rounds, is_slow = pace.rounds_of(sum(seconds)), sum(seconds) > pace.budget / 2
        times = np.array([_turn(functions, calls, clock) for _ in range(rounds + (not is_slow))])[-rounds:]
    per_unit = times / np.array(contest.work or [1.0] * len(names))
    ratios = per_unit / per_unit[:, :1]
    entries = [
        {"name": name, "calls": count, "seconds": spread(column)}
        for name, count, column in zip(names, calls, times.T, strict=True)
    ]
    for entry, ratio in zip(entries[1:], ratios.T[1:], strict=True):
        entry["ratio"] = spread(ratio)
    return {
        "name": contest.name,
        "case": contest.case,
        **contest.details,
        "threads": contest.threads,
        "unit": contest.unit,
        "rounds": rounds,
        "contestants": entries,
        "claims": [
            {**asdict(claim), "rival": name, "ratio": spread(ratio if claim.sense == ">=" else 1 / ratio)}
            for claim in contest.claims
            for name, ratio in zip(names[1:], ratios.T[1:], strict=True)
            if name.startswith(claim.rival)
        ],
    }


@contextmanager
def prepared(threads: int) -> Iterator[Callable[[], float]]:
    """The machine for so many threads, without garbage collection; gives the clock.

    One thread is pinned to a core, and its time is the processor's, which other processes do not stretch.
    """
    torch_threads = torch.get_num_threads()
    gc.disable()
    torch.set_num_threads(threads)
    if CORES:
        os.sched_setaffinity(0, {min(CORES)} if threads == 1 else CORES)
    try:
        yield time.process_time if threads == 1 else time.perf_counter
    finally:
        gc.enable()
        torch.set_num_threads(torch_threads)
        if CORES:
            os.sched_setaffinity(0, CORES)


def _calls_a_round(function: Function, clock: Callable[[], float], pace: Pace) -> tuple[int, float]:
    """Warm up; calls that fill a round, and the round's seconds, from the fastest of a few calls."""
    times: list[float] = []
    while sum(times) < pace.round_seconds or (len(times) < 3 and sum(times) < 20 * pace.round_seconds):
        start = clock()
        function()
        times.append(max(clock() - start, 1e-9))
    calls = max(1, math.ceil(pace.round_seconds / min(times)))
    return calls, calls * min(times)


def _turn(functions: Sequence[Function], calls: Sequence[int], clock: Callable[[], float]) -> list[float]:
    """Seconds a call of each contestant, one after another."""
    seconds = []
    for function, count in zip(functions, calls, strict=True):
        start = clock()
        for _ in range(count):
            function()
        seconds.append((clock() - start) / count)
    return seconds


def spread(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = np.percentile(values, (25, 50, 75)).tolist()
    return {"median": middle, "low": low, "high": high}


def agree_within(share: float) -> Callable[..., None]:
    """Answers are arrays that differ from the first by no more than a share of its largest value."""

    def agree(first: Any, *others: Any) -> None:
        for other in others:
            np.testing.assert_allclose(first, other, rtol=0, atol=share * np.abs(first).max())

    return agree


# Files ----------------------------------------------------------------------------------------------------------------


def document(results: Iterable[Result], quick: bool, libraries: Sequence[str], **more: object) -> Result:
    """All that is written to a JSON file: the results, the machine, and what else is to be kept.

    `results` may measure while it is read: the machine's load is taken before and after.
    """
    started, load = time.time(), _load()
    content = {"races": list(results), **more}
    machine = benchmark.machine()
    machine["versions"] |= {name: _version(name) for name in libraries}
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "quick": quick,
        "seconds": round(time.time() - started),
        "machine": {**machine, "load_average": {"before": load, "after": _load()}},
        **content,
    }


def write(content: Result, file: Path) -> None:
    """Write JSON, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def options(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny inputs: does it work? The figures mean nothing")
    parser.add_argument("--rounds", type=int, help="of each contest, instead of as many as a few seconds hold")
    return parser


def pace_of(arguments: argparse.Namespace, pace: Pace) -> Pace:
    """The pace that the options ask for, or `pace`."""
    chosen = QUICK if arguments.quick else pace
    return Pace(chosen.round_seconds, chosen.budget, chosen.most, arguments.rounds)
