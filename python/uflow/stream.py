"""A stream of work in three stages that overlap: read ahead, work in batches, finish. Ordered, bounded, generic.

This room knows no image and no network: `Predictor` tells it how to read, what the work is and how to finish.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

__all__ = ["Steps", "ordered_stream"]

Item = TypeVar("Item")  # what the source gives, such as a file's name
Value = TypeVar("Value")  # what is read from it
Found = TypeVar("Found")  # what the work makes of a value
Result = TypeVar("Result")  # what the caller gets

READERS = min(4, os.cpu_count() or 1)  # threads that read and finish
LOOK_AROUND_S = 0.2  # seconds that a waiting thread sleeps before it looks whether the program is ending


@dataclass(frozen=True)
class Steps(Generic[Item, Value, Found, Result]):
    """What a stream does with each item.

    Attributes:
        read: makes a value of an item.
        work: makes as many results of up to `batch_size` values.
        finish: makes what is yielded.
        weigh: how much an item weighs, such as bytes, from before it is read until its result is taken.
        recover: makes what is yielded of an item that `read` or `finish` failed with; None ends the stream there.
    """

    read: Callable[[Item], Value]
    work: Callable[[Sequence[Value]], Sequence[Found]]
    finish: Callable[[Item, Value, Found], Result]
    weigh: Callable[[Item], int] | None = None
    recover: Callable[[Item, Exception], Result] | None = None

    def finish_or_recover(self, item: Item, value: Value, found: Found) -> Result:
        """What is yielded of an item that was worked on."""
        try:
            return self.finish(item, value, found)
        except Exception as error:
            if self.recover is None:
                raise
            return self.recover(item, error)


def ordered_stream(
    source: Iterable[Item],
    steps: Steps[Item, Value, Found, Result],
    *,
    batch_size: int,
    capacity: int,
    max_weight: int = 0,
) -> Generator[Result, None, None]:
    """Yield ``finish(item, value, found)`` of each item of `source`, in order, while later ones are read and worked on.

    Reading and finishing run in a small pool of threads, the work in a thread of its own. What is ready is worked on
    together, at most `batch_size` at a time: a slow source is not kept waiting for a batch to fill. Closing the
    iterator ends all threads, but one that waits for the source itself.

    Args:
        source: any iterable, an endless one too; it is iterated in another thread.
        steps: what is done with each item.
        batch_size: values that are worked on together, at most.
        capacity: items held at a time, at most, from before one is taken out of the source until its result is taken.
        max_weight: what all that are held may weigh together; an item that weighs more is held alone.

    Raises:
        What `source` and `work` raise, and `read` and `finish` where nothing recovers from it, after the results of the
        items before.

    >>> steps = Steps(str.upper, lambda values: [v * 2 for v in values], "{}{}{}".format)
    >>> list(ordered_stream("ab", steps, batch_size=2, capacity=4))
    ['aAAA', 'bBBB']
    """
    stages = _Stages(source, steps, batch_size, _Room(capacity, max_weight))
    try:
        while (item := stages.results.get()) is not None:
            value = item.result.result()
            stages.room.leave(item.weight)
            yield value
    finally:
        stages.close()


@dataclass
class _Held(Generic[Item, Value, Result]):
    """An item on its way, and what is made of it; the item is None where the source failed."""

    item: Item | None
    weight: int
    value: Future[Value]
    result: Future[Result] = field(default_factory=Future)


class _Room:
    """How much is held: items, and their weight."""

    def __init__(self, capacity: int, max_weight: int) -> None:
        self.capacity, self.max_weight = capacity, max_weight
        self.items, self.weight = 0, 0
        self.changed = threading.Condition()

    def enter(self, is_ending: Callable[[], bool]) -> bool:
        """Wait until one more item may be held; False where the stream ends meanwhile."""
        with self.changed:
            while self.items >= self.capacity and not is_ending():
                self.changed.wait(LOOK_AROUND_S)
            self.items += 1
        return not is_ending()

    def load(self, weight: int, is_ending: Callable[[], bool]) -> bool:
        """Wait until an item that is held may weigh something; False where the stream ends meanwhile."""
        with self.changed:
            while self.weight > 0 and self.weight + weight > self.max_weight and not is_ending():
                self.changed.wait(LOOK_AROUND_S)
            self.weight += weight
        return not is_ending()

    def leave(self, weight: int) -> None:
        """Make room: an item's result was taken."""
        with self.changed:
            self.items -= 1
            self.weight -= weight
            self.changed.notify_all()


class _Stages(Generic[Item, Value, Found, Result]):
    """The threads of one stream, and the queues between them."""

    def __init__(
        self, source: Iterable[Item], steps: Steps[Item, Value, Found, Result], batch_size: int, room: _Room
    ) -> None:
        self.source, self.steps, self.batch_size, self.room = source, steps, batch_size, room
        self.waiting: queue.SimpleQueue[_Held[Item, Value, Result] | None] = queue.SimpleQueue()
        self.results: queue.SimpleQueue[_Held[Item, Value, Result] | None] = queue.SimpleQueue()
        self.stopped = threading.Event()
        self.pool = ThreadPoolExecutor(max_workers=READERS, thread_name_prefix="uflow")
        # A camera that never answers does not keep the program from ending. The worker must not be cut off instead: it
        # is inside a C++ library, which aborts the whole process when its thread vanishes.
        threading.Thread(target=self._take, daemon=True, name="uflow-take").start()
        self.worker = threading.Thread(target=self._work_all, daemon=False, name="uflow-work")
        self.worker.start()

    def close(self) -> None:
        """End the threads; what is being worked on is finished first."""
        self.stopped.set()
        self.room.leave(0)
        self.waiting.put(None)
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.worker.join()

    def _is_ending(self) -> bool:
        return self.stopped.is_set() or not threading.main_thread().is_alive()

    def _take(self) -> None:
        """Take items out of the source as there is room, and have them read."""
        try:
            iterator = iter(self.source)
            while self.room.enter(self._is_ending):
                try:
                    item = next(iterator)
                except StopIteration:
                    break
                weight = 0 if self.steps.weigh is None else self.steps.weigh(item)
                if not self.room.load(weight, self._is_ending):
                    break
                self.waiting.put(_Held(item, weight, self.pool.submit(self.steps.read, item)))
        except BaseException as error:  # whatever the caller's iterator raises goes to the caller
            self.waiting.put(_Held(None, 0, _failed(error)))
        self.waiting.put(None)

    def _work_all(self) -> None:
        """Work on what has been read, batch by batch, and have it finished."""
        try:
            more = True
            while more:
                batch, failed, more = self._next_batch()
                if batch:
                    found = self.steps.work([held.value.result() for held in batch])
                    for held, one in zip(batch, found, strict=True):
                        held.result = self.pool.submit(
                            self.steps.finish_or_recover, cast(Item, held.item), held.value.result(), one
                        )
                        held.value = Future()  # what was read is not kept until the result is taken
                        self.results.put(held)
                if failed is not None:
                    self.results.put(failed)
        except BaseException as error:  # it belongs to the caller, who waits for a result
            self.results.put(_Held(None, 0, Future(), _failed(error)))
        self.results.put(None)

    def _next_batch(
        self,
    ) -> tuple[list[_Held[Item, Value, Result]], _Held[Item, Value, Result] | None, bool]:
        """What is ready, at least one, then one that failed instead, and whether to go on."""
        batch: list[_Held[Item, Value, Result]] = []
        while not batch or (len(batch) < self.batch_size and not self.waiting.empty()):
            try:
                held = self.waiting.get(timeout=LOOK_AROUND_S)
            except queue.Empty:
                if self._is_ending():
                    return batch, None, False
                continue
            if held is None or self._is_ending():
                return batch, None, False
            if (error := held.value.exception()) is not None:
                return batch, held, self._recovers(held, error)
            batch.append(held)
        return batch, None, True

    def _recovers(self, held: _Held[Item, Value, Result], error: BaseException) -> bool:
        """Give an item that could not be read a result, which is what is made of the error, or raises it."""
        held.result = _failed(error)
        if self.steps.recover is None or held.item is None or not isinstance(error, Exception):
            return False
        held.result = Future()
        held.result.set_result(self.steps.recover(held.item, error))
        return True


def _failed(error: BaseException) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future
