"""A stream of work in three stages that overlap: read ahead, work in batches, finish. Ordered, bounded, generic.

This room knows no image and no network: `Predictor` tells it how to read, what the work is and how to finish.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

__all__ = ["ordered_stream"]

Item = TypeVar("Item")  # what the source gives, such as a file's name
Value = TypeVar("Value")  # what is read from it
Found = TypeVar("Found")  # what the work makes of a value
Result = TypeVar("Result")  # what the caller gets

READERS = min(4, os.cpu_count() or 1)  # threads that read and finish
LOOK_AROUND_S = 0.2  # seconds that a waiting thread sleeps before it looks whether the program is ending


def ordered_stream(
    source: Iterable[Item],
    read: Callable[[Item], Value],
    work: Callable[[Sequence[Value]], Sequence[Found]],
    finish: Callable[[Item, Value, Found], Result],
    *,
    batch_size: int,
    capacity: int,
) -> Iterator[Result]:
    """Yield ``finish(item, value, found)`` of each item of `source`, in order, while later ones are read and worked on.

    Reading and finishing run in a small pool of threads, the work in a thread of its own. What is ready is worked on
    together, at most `batch_size` at a time: a slow source is not kept waiting for a batch to fill. Closing the
    iterator ends all threads, but one that waits for the source itself.

    Args:
        source: any iterable, an endless one too; it is iterated in another thread.
        read: makes a value of an item.
        work: makes as many results of up to `batch_size` values.
        finish: makes what is yielded.
        batch_size: values that are worked on together, at most.
        capacity: items held at a time, at most, from before one is taken out of the source until its result is taken.

    Raises:
        What `source`, `read`, `work` or `finish` raise, after the results of the items before.

    >>> list(ordered_stream("ab", str.upper, lambda values: [v * 2 for v in values], "{}{}{}".format,
    ...                     batch_size=2, capacity=4))
    ['aAAA', 'bBBB']
    """
    stages = _Stages(source, read, work, finish, batch_size, capacity)
    try:
        while (result := stages.results.get()) is not None:
            value = result.result()
            stages.slots.release()
            yield value
    finally:
        stages.close()


class _Stages(Generic[Item, Value, Found, Result]):
    """The threads of one stream, and the queues between them."""

    def __init__(
        self,
        source: Iterable[Item],
        read: Callable[[Item], Value],
        work: Callable[[Sequence[Value]], Sequence[Found]],
        finish: Callable[[Item, Value, Found], Result],
        batch_size: int,
        capacity: int,
    ) -> None:
        self.source, self.read, self.work, self.finish = source, read, work, finish
        self.batch_size = batch_size
        self.slots = threading.Semaphore(capacity)
        self.waiting: queue.SimpleQueue[tuple[Item | None, Future[Value]] | None] = queue.SimpleQueue()
        self.results: queue.SimpleQueue[Future[Result] | None] = queue.SimpleQueue()
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
        self.slots.release()
        self.waiting.put(None)
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.worker.join()

    def _ending(self) -> bool:
        return self.stopped.is_set() or not threading.main_thread().is_alive()

    def _take(self) -> None:
        """Take items out of the source as slots become free, and have them read."""
        try:
            iterator = iter(self.source)
            while self._wait_for_slot():
                try:
                    item = next(iterator)
                except StopIteration:
                    break
                self.waiting.put((item, self.pool.submit(self.read, item)))
        except BaseException as error:  # whatever the caller's iterator raises goes to the caller
            self.waiting.put((None, _failed(error)))
        self.waiting.put(None)

    def _wait_for_slot(self) -> bool:
        while not self.slots.acquire(timeout=LOOK_AROUND_S):
            if self._ending():
                return False
        return not self._ending()

    def _work_all(self) -> None:
        """Work on what has been read, batch by batch, and have it finished."""
        try:
            more = True
            while more:
                batch, error, more = self._next_batch()
                if batch:
                    found = self.work([value for _, value in batch])
                    for (item, value), one in zip(batch, found, strict=True):
                        self.results.put(self.pool.submit(self.finish, item, value, one))
                if error is not None:
                    self.results.put(_failed(error))
        except BaseException as error:  # it belongs to the caller, who waits for a result
            self.results.put(_failed(error))
        self.results.put(None)

    def _next_batch(self) -> tuple[list[tuple[Any, Value]], BaseException | None, bool]:
        """What is ready, at least one value, then an error that came instead of one, and whether to go on."""
        batch: list[tuple[Any, Value]] = []
        while not batch or (len(batch) < self.batch_size and not self.waiting.empty()):
            try:
                read = self.waiting.get(timeout=LOOK_AROUND_S)
            except queue.Empty:
                if self._ending():
                    return batch, None, False
                continue
            if read is None or self._ending():
                return batch, None, False
            item, future = read
            if (error := future.exception()) is not None:
                return batch, error, False
            batch.append((item, future.result()))
        return batch, None, True


def _failed(error: BaseException) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future
