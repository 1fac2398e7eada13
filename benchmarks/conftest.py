"""What all benchmarks share: `race`, which times ours and an alternative in turns, and the claims that it decides."""

from __future__ import annotations

import gc
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # the slow twin, tests/reference.py

Function = Callable[[], object]
CORES: set[int] = getattr(os, "sched_getaffinity", lambda _: set())(0)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="tiny inputs and few rounds: does the suite itself work?")


@dataclass(frozen=True)
class Claim:
    """A target: a ratio of times is at least, or at most, `bound`. Races with the same text are one row of the table.

    ">=": the time of the alternative over ours; "<=": our time over that of the alternative.
    """

    text: str
    sense: str
    bound: float


def at_least(bound: float, text: str) -> Claim:
    return Claim(text, ">=", bound)


def at_most(bound: float, text: str) -> Claim:
    return Claim(text, "<=", bound)


def spread(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = np.percentile(values, (25, 50, 75)).tolist()
    return {"median": middle, "low": low, "high": high}


class Race:
    """Times an alternative (kept by pytest-benchmark) and ours (kept in its extra_info).

    A round is some milliseconds long. After each round of the alternative comes one of ours, so that whatever else the
    machine does falls on both. The ratio is that of two neighbouring rounds; its median and quartiles are over all
    rounds. Times are seconds a call: of the processor, which other processes on the core do not change, except where
    the benchmark has threads and its marker says `timer=time.perf_counter`.
    """

    def __init__(self, benchmark: Any, timer: Callable[[], float], quick: bool) -> None:
        self.benchmark = benchmark
        self.timer = timer
        self.round_seconds, self.budget, self.most = (0.0005, 0.02, 5) if quick else (0.002, 1.2, 101)

    def alone(self, function: Function, group: str, **info: object) -> None:
        """Time one function; `info`, such as library and side, goes to the results."""
        calls, seconds = self._warm_up(function)
        self._measure(function, calls, seconds, None, {"group": group, **info})

    def __call__(
        self,
        ours: Function,
        other: Function,
        *claims: Claim,
        group: str,
        scale: float = 1.0,
        per: str = "call",
        **info: object,
    ) -> None:
        """Time both. Where one call does more, `scale` is the other's number of `per` (values, pixels) over ours."""
        calls, seconds = self._warm_up(other)
        own_calls, own_seconds = self._warm_up(ours)
        own: list[float] = []

        def turn() -> None:
            start = self.timer()
            for _ in range(own_calls):
                ours()
            own.append((self.timer() - start) / own_calls)

        times = self._measure(other, calls, seconds + own_seconds, turn, {"group": group, "per": per, **info})
        own = own[1 : 1 + len(times)]  # before is the warm-up round; after may be one more call, not measured either
        faster = [b / (a * scale) for a, b in zip(own, times, strict=True)]
        ratio = {">=": spread(faster), "<=": spread([1 / f for f in faster])}
        self.benchmark.extra_info["ours"] = spread(own)
        self.benchmark.extra_info["faster"] = ratio[">="]
        self.benchmark.extra_info["claims"] = [{**asdict(claim), "ratio": ratio[claim.sense]} for claim in claims]

    def _warm_up(self, function: Function) -> tuple[int, float]:
        """Calls that fill a round, and the round's seconds, from the fastest of a few calls."""
        times: list[float] = []
        while sum(times) < self.round_seconds or (len(times) < 3 and sum(times) < 20 * self.round_seconds):
            start = self.timer()
            function()
            times.append(self.timer() - start)
        calls = max(1, math.ceil(self.round_seconds / min(times)))
        return calls, calls * min(times)

    def _measure(
        self, function: Function, calls: int, seconds: float, turn: Function | None, info: dict[str, object]
    ) -> list[float]:
        rounds = min(max(int(self.budget / seconds), 3 if seconds > self.budget / 2 else 5), self.most)
        self.benchmark.group = str(info["group"])
        self.benchmark.extra_info.update(info)
        # pytest-benchmark allows several calls a round with a teardown, not with a setup.
        self.benchmark.pedantic(function, rounds=rounds, warmup_rounds=1, iterations=calls, teardown=turn)
        times: list[float] = self.benchmark.stats.stats.data
        self.benchmark.extra_info["time"] = spread(times)
        return times


@pytest.fixture
def quick(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--quick"))


@pytest.fixture
def race(request: pytest.FixtureRequest, benchmark: Any, quick: bool) -> Race:
    marker = request.node.get_closest_marker("benchmark")
    return Race(benchmark, marker.kwargs["timer"] if marker else time.process_time, quick)


@pytest.fixture(autouse=True, scope="session")
def _no_garbage_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(autouse=True)
def _one_core() -> None:
    """One thread on one core."""
    torch.set_num_threads(1)
    if CORES:
        os.sched_setaffinity(0, {min(CORES)})


@pytest.fixture
def all_cores(_one_core: None) -> int:
    """Take the pin away; returns the number of cores."""
    if CORES:
        os.sched_setaffinity(0, CORES)
    return len(CORES) or os.cpu_count() or 1
