"""One product's worker: a bounded queue of parts that are accepted, judged one after another, and stored."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ..conformal import Verdict
from ..files import one_line
from ..monitor import Alarm
from ..prediction import FailedImage, Prediction
from ..predictor import Predictor
from ..schema import write_json
from .database import STORE_ERRORS
from .drift import Watch
from .inbox import SeenFile
from .metrics import Metrics
from .model import LiveModel
from .parts import Message, Outcome, Part
from .recent import Recent
from .store import Store

__all__ = ["Busy", "Job", "Judge", "Judged", "Messages"]

log = logging.getLogger("uflow")

Draw = Callable[[Prediction], bytes]
Messages = Callable[[Part, dict[str, Any], Alarm | None], tuple[Message, ...]]

MAX_UNSETTLED = 1000  # verdicts that wait for room on the disk; a restart judges those parts anew
MAX_ATTEMPTS = 5  # of restarts: an image that ends the process each time is given up, one that was unlucky is not


class Busy(Exception):
    """No room for one more part now."""


@dataclass(frozen=True)
class Judged:
    """What became of a part.

    Attributes:
        line: as `uflow predict` writes it, ready for JSON.
        verdict: None where the part could not be judged.
        error: why it could not be; None where it was.
        stored: whether part and verdict are on the disk.
        picture: the file of it that was asked for; None where none was, or the part could not be judged.
    """

    line: dict[str, Any]
    verdict: Verdict | None
    error: Exception | None
    stored: bool
    picture: bytes | None


@dataclass(eq=False)
class Job:
    """A part on its way.

    Attributes:
        name: as the sender calls it.
        part: as it was accepted; None where the disk did not take it, or where it is only looked at.
        content: its image; None where it is read from the disk.
        counts: whether it is a part of the line, which is stored, counted and watched.
        refused: why it cannot be judged, where that is known already.
        draw: makes the file of a picture of it; None where none is asked for.
        began: when it was accepted, of `time.monotonic`.
        done: what became of it.
    """

    name: str | None
    part: Part | None
    content: bytes | None
    counts: bool = True
    refused: Exception | None = None
    draw: Draw | None = None
    began: float = field(default_factory=time.monotonic)
    done: Future[Judged] = field(default_factory=Future)


class Judge:
    """Accepts and judges the parts of one product, in a thread of its own.

    Attributes:
        live: the product's model.
        serving: the predictor that judges the next part, and the monitor of its p-values; None where no model serves.
        store_trouble: why the disk did not take the last part; None where it did.
        recent: images of the last parts.

    Args:
        live: the product and its model.
        store: where parts are kept.
        metrics: counts them.
        capacity: parts that are on their way at most.
        messages: what sinks are to be sent of a part, see `sinks.Sinks.messages`.
    """

    def __init__(
        self,
        live: LiveModel,
        store: Store,
        metrics: Metrics,
        capacity: int = 32,
        messages: Messages = lambda part, line, alarm: (),
    ) -> None:
        self.live, self.store, self.metrics, self.messages = live, store, metrics, messages
        self.name = live.product.name
        self.serving: tuple[Predictor, Watch] | None = None
        self.store_trouble: str | None = None
        self.recent = Recent()
        self._room = threading.BoundedSemaphore(capacity)
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._unsettled: list[Outcome] = []
        self._settling = threading.Lock()
        self._number = 0
        self._busy_since: float | None = None
        self._may_begin = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"uflow-judge-{self.name}")

    # Called by anybody ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin with what was accepted before and not judged, as soon as a model serves."""
        self._left_over = self.store.waiting(self.name)
        self.model_changed()
        self._thread.start()

    def stop(self) -> None:
        """Judge and store what was accepted, and end; without a model it waits for the next start."""
        self._jobs.put(None)
        self._may_begin.set()
        self._thread.join()
        self.flush()

    def model_changed(self) -> None:
        """Let the model that was read last judge from now on, under a monitor of its own, where it does not already."""
        latest, current = self.live.predictor, None if self.serving is None else self.serving[0]
        if latest is not None and latest is not current:
            self.serving = latest, Watch(self.name, latest, self.store)
            self._may_begin.set()

    @property
    def watch(self) -> Watch | None:
        """The monitor of its p-values; None where no model serves."""
        return None if self.serving is None else self.serving[1]

    @property
    def is_full(self) -> bool:
        """Whether there is no room for one more part now."""
        if self._room.acquire(blocking=False):
            self._room.release()
            return False
        return True

    def enter(self, wait_s: float = 0) -> None:
        """Take room for one part; `submit` or `leave` follows.

        Raises:
            Busy: there is none for so long.
        """
        if not self._room.acquire(timeout=wait_s or None, blocking=wait_s > 0):
            raise Busy(f"{self.name} has as many parts waiting as it may")

    def leave(self) -> None:
        """Give room back."""
        with suppress(ValueError):  # twice, where the service ends in a hurry
            self._room.release()

    def submit(self, name: str | None, content: bytes, suffix: str, draw: Draw | None = None) -> Job:
        """Accept a part, for which there is room: it is on the disk when this returns, and will be judged.

        Where the disk does not take it, it is judged all the same, and `Judged.stored` says so. What `draw` makes of
        the prediction is `Judged.picture`.
        """
        part = None
        try:
            part = self.store.accept(self.name, name, content, suffix)
            self.store_trouble = None
        except STORE_ERRORS as error:
            self._say_trouble(error)
        job = Job(name, part, None if part is not None else content, draw=draw)
        self._jobs.put(job)
        return job

    def submit_file(
        self, name: str, content: bytes, suffix: str, file: SeenFile, refused: Exception | None = None
    ) -> Job:
        """Accept a file of a watched folder, for which there is room; where `refused` says why, as one that failed.

        Raises:
            STORE_ERRORS: the disk does not take it; the file still lies where it is.
        """
        try:
            part = self.store.accept(self.name, name, content, suffix, file)
            self.store_trouble = None
        except STORE_ERRORS as error:
            self._say_trouble(error)
            raise
        job = Job(name, part, None, refused=refused)
        self._jobs.put(job)
        return job

    def look(self, name: str | None, content: bytes, draw: Draw) -> Job:
        """Draw an image, for which there is room, that is no part of the line: nothing is stored or counted."""
        job = Job(name, None, content, counts=False, draw=draw)
        self._jobs.put(job)
        return job

    def flush(self) -> None:
        """Try again to store verdicts that the disk did not take."""
        with self._settling:
            while self._unsettled:
                try:
                    self.store.settle(self._unsettled[0])
                except STORE_ERRORS as error:
                    self._say_trouble(error)
                    return
                del self._unsettled[0]
                self.store_trouble = None

    def stuck(self, seconds: float) -> str | None:
        """What is wrong where one part has been judged for longer than this; None where all goes on."""
        since = self._busy_since
        if since is None or time.monotonic() - since < seconds:
            return None
        return f"one part has been judged for {time.monotonic() - since:.0f} s"

    @property
    def waiting(self) -> int:
        """Parts that wait."""
        return self._jobs.qsize()

    # The worker -------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        self._may_begin.wait()
        if self.serving is None:
            return
        for number in self._left_over:
            self._judge_left_over(number)
        while (job := self._jobs.get()) is not None:
            try:
                job.done.set_result(self._judge(job))
            except Exception as error:  # a mistake of ours: whoever waits is told, and the next part is judged
                log.exception("%s: %s was not judged", self.name, job.name)
                job.done.set_exception(error)
            finally:
                self.leave()
                self.store.tidy()

    def _judge_left_over(self, number: int) -> None:
        """Judge a part that was accepted before the service was ended."""
        try:
            part = self.store.part(number)
            if part is None:
                return
            if self._count_attempt(number) > MAX_ATTEMPTS:
                error = RuntimeError(f"the service was ended {MAX_ATTEMPTS} times while it judged this image")
                self._settle(part, self._line_of(part.name, error), None, None)
            else:
                self._judge(Job(part.name, part, None))
        except Exception:
            log.exception("%s: part %d was not judged", self.name, number)

    def _count_attempt(self, number: int) -> int:
        """How often a restart has begun to judge a part; 0 where the disk does not take it, which stops nothing."""
        try:
            return self.store.try_again(number)
        except STORE_ERRORS as error:
            self._say_trouble(error)
            return 0

    def _judge(self, job: Job) -> Judged:
        assert self.serving is not None
        began = self._busy_since = time.monotonic()
        prediction, error = None, None
        predictor, watch = self.serving  # both of one model, whatever changes meanwhile
        try:
            prediction = self._predict(job, predictor)
            line = prediction.to_dict() | {"image": job.name}
        except Exception as raised:
            error = raised
            line = self._line_of(job.name, raised)
            log.warning("%s: %r could not be judged: %s", self.name, job.name, one_line(raised))
        finally:
            self._busy_since = None
        stored = job.counts and self._take_note(job, began, line, prediction, watch)
        if prediction is None:
            return Judged(line, None, error, stored, None)
        # Drawn here, one after another: maps of large images that wait to be drawn would fill the memory.
        picture = None if job.draw is None else job.draw(prediction)
        return Judged(line, prediction.verdict, None, stored, picture)

    def _take_note(
        self, job: Job, began: float, line: dict[str, Any], prediction: Prediction | None, watch: Watch
    ) -> bool:
        """Store and count what became of a part; False where the disk did not take it."""
        stored = job.part is not None and self._settle(job.part, line, prediction, watch)
        verdict = "failed" if prediction is None else prediction.verdict
        self.metrics.parts.labels(self.name, verdict).inc()
        self.metrics.judging.labels(self.name).observe(time.monotonic() - began)
        self.metrics.latency.labels(self.name).observe(time.monotonic() - job.began)
        if not stored:
            self.metrics.not_stored.labels(self.name).inc()
        return stored

    def _predict(self, job: Job, predictor: Predictor) -> Prediction:
        if job.refused is not None:
            raise job.refused
        content = job.content
        if content is None and job.part is not None:
            content = self.store.image(job.part)
        if content is None:
            raise ValueError("its image is gone")
        if job.part is not None:
            self.recent.put(job.part.id, content)
        prediction = predictor.predict(content)
        assert isinstance(prediction, Prediction)
        return prediction

    @staticmethod
    def _line_of(name: str | None, error: Exception) -> dict[str, Any]:
        return FailedImage(None, error).to_dict() | {"image": name}

    def _settle(self, part: Part, line: dict[str, Any], prediction: Prediction | None, watch: Watch | None) -> bool:
        """Store what became of a part; False where the disk did not take it, and it is tried again later."""
        self._number += 1
        rules = self.live.product.pictures
        is_good = prediction is not None and prediction.verdict == "good"
        keep = (rules.keep_flagged and not is_good) or (rules.keep_every > 0 and self._number % rules.keep_every == 0)
        text = write_json(line)
        if prediction is None:
            outcome = Outcome(part.id, "failed", text, keep_picture=keep, messages=self.messages(part, line, None))
        else:
            numbers = (prediction.verdict, prediction.p_value, prediction.score)
            watched, alarm = (None, None) if watch is None else watch.add(prediction.p_value)
            messages = self.messages(part, line, alarm)
            outcome = Outcome(part.id, "judged", text, *numbers, keep, messages, watched)
        with self._settling:
            self._unsettled.append(outcome)
            del self._unsettled[:-MAX_UNSETTLED]
        self.flush()
        return not self._unsettled

    def _say_trouble(self, error: Exception) -> None:
        if self.store_trouble is None:
            log.error("%s: the disk does not take what is judged, and judging goes on: %s", self.name, one_line(error))
        self.store_trouble = one_line(error)
