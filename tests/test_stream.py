"""The generic stream: order, bounds, errors, and threads that end, whatever the caller does."""

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from conftest import stream_threads, wait_for
from uflow.stream import LOOK_AROUND_S, Steps, ordered_stream

PATIENCE_S = 20.0  # that threads have to end


def double_all(values: Sequence[int]) -> list[int]:
    return [2 * value for value in values]


def double_slowly(values: Sequence[int]) -> list[int]:
    time.sleep(0.02)
    return double_all(values)


def keep(item: Any, value: Any, found: Any) -> tuple[Any, Any, Any]:
    return item, value, found


def stream_of(
    source: Any,
    work: Callable[[Sequence[int]], Sequence[int]] = double_all,
    *,
    read: Callable[[Any], int] = int,
    finish: Callable[[Any, Any, Any], Any] = keep,
    batch_size: int = 2,
    capacity: int = 5,
    max_weight: int = 0,
    **others: Any,
) -> Any:
    steps = Steps(read, work, finish, **others)
    return ordered_stream(source, steps, batch_size=batch_size, capacity=capacity, max_weight=max_weight)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    wait_for(lambda: not stream_threads(), PATIENCE_S)


# Order and batches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "capacity"), [(1, 1), (1, 3), (2, 2), (4, 9), (50, 101)])
def test_results_come_in_order_whatever_the_batch_and_the_capacity(batch_size: int, capacity: int) -> None:
    def read_early_ones_last(item: str) -> int:
        time.sleep(0.01 if int(item) % 4 == 0 else 0)
        return int(item)

    results = list(stream_of(map(str, range(20)), read=read_early_ones_last, batch_size=batch_size, capacity=capacity))
    assert results == [(str(i), i, 2 * i) for i in range(20)]


def test_finishing_out_of_order_does_not_change_the_order() -> None:
    def finish_even_ones_last(item: int, value: int, found: int) -> int:
        time.sleep(0.02 if item % 2 == 0 else 0)
        return found

    assert list(stream_of(range(12), finish=finish_even_ones_last)) == [2 * i for i in range(12)]


def test_an_empty_source_gives_nothing_and_asks_for_no_work() -> None:
    worked: list[Sequence[int]] = []
    assert list(stream_of([], work=lambda values: worked.append(values) or [])) == []
    assert worked == []


def test_what_is_ready_is_worked_on_together_up_to_the_batch_size() -> None:
    sizes: list[int] = []

    def work(values: Sequence[int]) -> list[int]:
        sizes.append(len(values))
        return double_slowly(values)

    assert len(list(stream_of(range(30), work, batch_size=4, capacity=9))) == 30
    assert sum(sizes) == 30
    assert max(sizes) == 4
    assert len(sizes) < 30


def test_a_slow_source_is_not_kept_waiting_for_a_full_batch() -> None:
    go_on = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        assert go_on.wait(20)
        yield 2

    results = stream_of(source(), batch_size=8, capacity=17)
    assert next(results) == (1, 1, 2)  # while the source has not given the second
    go_on.set()
    assert list(results) == [(2, 2, 4)]


def test_source_work_and_caller_overlap() -> None:
    """Three waits of 20 ms an item take 20 ms an item together."""

    def source() -> Iterator[int]:
        for i in range(25):
            time.sleep(0.02)
            yield i

    started = time.perf_counter()
    for _ in stream_of(source(), double_slowly, batch_size=1, capacity=3):
        time.sleep(0.02)
    assert time.perf_counter() - started < 0.8 * 25 * 0.06


# Bounds ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [1, 3, 9])
def test_no_more_than_the_capacity_are_held(capacity: int) -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        for i in itertools.count():
            taken += 1
            yield i

    results = stream_of(endless(), batch_size=4, capacity=capacity)
    for i in range(1, 20):
        assert next(results)[0] == i - 1
        assert taken <= i + capacity
    time.sleep(2 * LOOK_AROUND_S)  # the source goes no further while nobody takes results
    assert taken <= 19 + capacity
    results.close()


# Errors ---------------------------------------------------------------------------------------------------------------


def fail_at(bad: int, message: str) -> Callable[..., Any]:
    def work_or_read(values: Any) -> Any:
        if bad in (values if isinstance(values, list) else [values]):
            raise RuntimeError(message)
        return double_all(values) if isinstance(values, list) else values

    return work_or_read


def broken_source() -> Iterator[int]:
    yield from range(3)
    raise RuntimeError("the source broke off")


class BrokenFinish:
    def __call__(self, item: int, value: int, found: int) -> tuple[int, int, int]:
        if item == 3:
            raise RuntimeError("finishing broke off")
        return item, value, found


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("the source broke off", {"source": broken_source}),
        ("reading broke off", {"read": fail_at(3, "reading broke off")}),
        ("the work broke off", {"work": fail_at(3, "the work broke off")}),
        ("finishing broke off", {"finish": BrokenFinish()}),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_error_comes_after_the_results_before_it(message: str, options: dict[str, Any], batch_size: int) -> None:
    options = {"source": lambda: range(8), **options}
    results = stream_of(options.pop("source")(), batch_size=batch_size, capacity=9, **options)
    seen = []
    with pytest.raises(RuntimeError, match=message):
        seen += (item for item, _, _ in results)
    # The work fails for a batch: those before it in the same batch are lost with it.
    expected = [0, 1, 2]
    assert seen == (expected[: len(seen)] if message == "the work broke off" and batch_size > 1 else expected)
    with pytest.raises(StopIteration):
        next(results)


def test_work_that_gives_too_few_results_is_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        list(stream_of(range(3), work=lambda values: []))


def test_a_source_that_is_no_iterable_is_an_error_of_the_caller() -> None:
    with pytest.raises(TypeError, match="not iterable"):
        list(stream_of(7))


def test_an_interrupt_in_the_source_reaches_the_caller() -> None:
    def interrupted() -> Iterator[int]:
        yield 0
        raise KeyboardInterrupt

    results = stream_of(interrupted())
    assert next(results) == (0, 0, 0)
    with pytest.raises(KeyboardInterrupt):
        next(results)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_what_cannot_be_read_or_finished_is_recovered_in_its_place(batch_size: int) -> None:
    def read(item: int) -> int:
        if item % 3 == 1:
            raise ValueError(f"cannot read {item}")
        return item

    def finish(item: int, value: int, found: int) -> str:
        if item % 3 == 2:
            raise OSError(f"cannot finish {item}")
        return f"{found}"

    results = stream_of(
        range(9), read=read, finish=finish, batch_size=batch_size, recover=lambda item, error: f"{item}: {error}"
    )
    failed = [("0", "1: cannot read 1", "2: cannot finish 2"), ("6", "4: cannot read 4", "5: cannot finish 5")]
    assert list(results) == [*failed[0], *failed[1], "12", "7: cannot read 7", "8: cannot finish 8"]


def test_recovering_leaves_errors_of_the_source_and_of_the_work_alone() -> None:
    def broken() -> Iterator[int]:
        yield 0
        raise KeyError("the source broke off")

    with pytest.raises(KeyError, match="the source broke off"):
        list(stream_of(broken(), recover=lambda item, error: None))
    with pytest.raises(ZeroDivisionError):
        list(stream_of(range(3), work=lambda values: [1 // 0], recover=lambda item, error: None))


def test_no_more_weight_is_held_than_may_be() -> None:
    held, most = 0, 0
    lock = threading.Lock()

    def read(item: int) -> int:
        nonlocal held, most
        with lock:
            held += item
            most = max(most, held)
        return item

    weights = [3, 3, 30, 3, 3, 3, 1, 1, 1, 1, 1, 12]
    for item, _, _ in stream_of(weights, read=read, weigh=int, max_weight=10, capacity=9):
        with lock:
            held -= item
        time.sleep(0.01)
    assert held == 0
    assert most == 30  # alone, as it is heavier than all that may be held


# Ending ---------------------------------------------------------------------------------------------------------------


def test_nothing_starts_before_the_first_result_is_asked_for() -> None:
    results = stream_of(itertools.count())
    assert not stream_threads()
    results.close()


@pytest.mark.parametrize("taken", [1, 7])
def test_closing_early_ends_the_threads_and_stops_the_source(taken: int) -> None:
    source = itertools.count()
    results = stream_of(source)
    for _ in range(taken):
        next(results)
    assert stream_threads()
    results.close()
    wait_for(lambda: not stream_threads(), PATIENCE_S)
    at = next(source)
    time.sleep(0.05)
    assert next(source) == at + 1


def test_an_abandoned_stream_ends_its_threads() -> None:
    results = stream_of(itertools.count())
    next(results)
    assert stream_threads()
    del results
    wait_for(lambda: not stream_threads(), PATIENCE_S)


def test_closing_waits_for_the_work_at_hand() -> None:
    """The worker is inside a library that must not be left behind."""
    working, ended = threading.Event(), []

    def work(values: Sequence[int]) -> list[int]:
        if values[0] > 0:
            working.set()
            time.sleep(0.2)
            ended.append(values[0])
        return double_all(values)

    results = stream_of(itertools.count(), work, batch_size=1)
    next(results)
    assert working.wait(20)
    results.close()
    assert "uflow-work" not in stream_threads()
    assert ended


def test_an_error_in_the_callers_loop_ends_the_threads() -> None:
    with pytest.raises(ZeroDivisionError):
        sum(1 / (item - 3) for item, _, _ in stream_of(range(100)))
    wait_for(lambda: not stream_threads(), PATIENCE_S)


# A script that ends while it holds a live stream: the worker is inside torch, which must not be cut off. Each try is a
# process of its own, forked where torch is loaded: loading it takes seconds.
ENDING = """
import itertools, os, sys, time
import torch
from uflow.stream import Steps, ordered_stream

weight = torch.randn(400, 400)

def work_slowly(values):
    x = weight
    for _ in range(40):
        x = torch.tanh(weight @ x)
    return [float(x.sum())] * len(values)

def stream_of(source):
    return ordered_stream(source, Steps(int, work_slowly, lambda *parts: parts), batch_size=4, capacity=9)

def way_of_this_process(ways):
    for way in 2 * ways:
        child = os.fork()
        if child == 0:
            return way
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print("ended with", code, flush=True)
    sys.exit(0)

way = way_of_this_process(sys.argv[1:])
results = stream_of(itertools.count())
for _ in range(3):
    next(results)
exec(way)
"""
WAYS_TO_END = (
    "",  # it falls off its end
    "raise SystemExit(0)",
    "def main(held):\n    sys.exit(0)\nmain(results)",
    "waiting = stream_of(time.sleep(3600 * i) or i for i in range(9))\nnext(waiting)",  # the source never answers
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_script_that_holds_a_live_stream_ends_well() -> None:
    """Several times: a thread that is cut off inside a C++ library aborts the process now and then."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", ENDING, *WAYS_TO_END]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert "terminate called" not in run.stderr
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == "ended with 0\n" * 2 * len(WAYS_TO_END)
