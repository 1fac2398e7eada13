"""Whom the service tells of parts: what is said, and one worker a sink that says it until it arrives."""

from __future__ import annotations

import logging
import random
import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..connections import SinkSettings
from ..files import one_line
from ..monitor import Alarm
from ..product import Product
from ..schema import read_json, write_json
from .database import STORE_ERRORS
from .metrics import Metrics
from .outbox import Outbox, Waiting
from .parts import Message, Part
from .senders import Refused, Undelivered, make_sender

__all__ = ["Sink", "Sinks", "check_sinks"]

log = logging.getLogger("uflow")

MAX_WAITING = 10_000  # messages to a sink; the oldest are dropped beyond
AT_ONCE = 20  # messages that are delivered before the data base is told
RETRY_FIRST_S, RETRY_MAX_S = 1.0, 30.0
MAX_REFUSALS = 5  # of one message: then the next is sent
LOOK_EVERY_S = 5.0  # for messages, should an announcement be missed
GOODBYE_S = 5.0  # for which a sink goes on at the end, as long as it succeeds


class Sink:
    """Sends the messages to one sink, in order, in a thread of its own: each until it arrives.

    Attributes:
        name: of product and sink.
        trouble: why the last message did not arrive, or that some were dropped; None where all is well.

    Args:
        name: of product and sink.
        settings: see `connections`.
        outbox: where messages wait.
        metrics: counts them.

    Raises:
        ValueError: a secret or a file of certificates that cannot be read.
    """

    def __init__(self, name: str, settings: SinkSettings, outbox: Outbox, metrics: Metrics) -> None:
        self.name, self.settings, self.outbox, self.metrics = name, settings, outbox, metrics
        self.trouble: str | None = None
        self._sender = make_sender(settings)
        self._failures = 0
        self._refusals = (0, 0)  # the message that was refused last, and how often
        self._dropped = 0
        self._ending = threading.Event()
        # A receiver that is silent is not waited for at the end: its messages are kept.
        self._thread = threading.Thread(target=self._work, name=f"uflow-sink-{name}", daemon=True)

    def start(self) -> None:
        """Begin with what was left over."""
        self._thread.start()

    def ask_to_end(self) -> None:
        """End when all is sent, or the next time that this fails; `join` follows."""
        self._ending.set()
        self.outbox.announce()

    def join(self, seconds: float) -> None:
        """Wait so long for the end."""
        self._thread.join(seconds)

    # The worker -------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        until = float("inf")
        while time.monotonic() < until:
            if self._ending.is_set():
                until = min(until, time.monotonic() + GOODBYE_S)
            seen = self.outbox.arrivals()
            count = self._try()
            if count is None:
                if self._ending.wait(self._pause_s()):
                    break
            elif count == 0:
                if self._ending.is_set():
                    break
                self.outbox.wait(seen, LOOK_EVERY_S)
        self._sender.close()

    def _try(self) -> int | None:
        """Send the oldest messages, and return how many have arrived; None where one has not."""
        try:
            self._drop()
            count = self._deliver()
        except STORE_ERRORS as error:
            self._fail(f"the outbox cannot be read or written: {one_line(error)}")
        except Undelivered as error:
            self._fail(str(error))
        except Exception as error:  # a mistake of ours: messages are kept, and judging goes on
            log.exception("%s: a message was not sent", self.name)
            self._fail(f"a mistake of the service: {one_line(error)}")
        else:
            self._succeed(count)
            return count
        return None

    def _deliver(self) -> int:
        messages = self.outbox.oldest(self.name, AT_ONCE)
        arrived = 0
        try:
            for message in messages:
                self._send(message)
                arrived += 1
        finally:
            if arrived:
                self.outbox.remove(self.name, messages[arrived - 1].id)
        return arrived

    def _send(self, message: Waiting) -> None:
        key = str(read_json(message.payload, "a message")["id"])
        try:
            self._sender.send(key, message.payload)
        except Refused as error:
            count = self._refusals[1] + 1 if self._refusals[0] == message.id else 1
            self._refusals = message.id, count
            if count < MAX_REFUSALS:
                raise
            log.error("%s: message %s was refused %d times and is dropped: %s", self.name, key, count, error)
            self._count_dropped(1)
        else:
            self.metrics.sent.labels(self.name).inc()

    def _drop(self) -> None:
        if count := self.outbox.drop_beyond(self.name, MAX_WAITING):
            log.error("%s: more than %d messages wait, %d old ones are dropped", self.name, MAX_WAITING, count)
            self._count_dropped(count)

    def _count_dropped(self, count: int) -> None:
        self._dropped += count
        self.metrics.dropped.labels(self.name).inc(count)

    def _fail(self, why: str) -> None:
        if self._failures == 0:
            log.error("%s: messages do not arrive, and are kept: %s", self.name, why)
        self._failures += 1
        self.metrics.send_failures.labels(self.name).inc()
        self.trouble = why if not self._dropped else f"{why}; {self._dropped} messages were dropped"

    def _succeed(self, count: int) -> None:
        if count > 0 and self._failures > 0:
            log.warning("%s: messages arrive again, after %d failures", self.name, self._failures)
        if count > 0:
            self._failures = 0
            self.trouble = f"{self._dropped} messages were dropped" if self._dropped else None
        if count < AT_ONCE:  # all that waited is sent
            self._failures, self._dropped, self.trouble = 0, 0, None

    def _pause_s(self) -> float:
        """How long to wait after so many failures: twice as long each time, and never two sinks in step."""
        longest: float = min(RETRY_MAX_S, RETRY_FIRST_S * 2 ** min(self._failures - 1, 30))
        return longest * random.uniform(0.5, 1)


class Sinks:
    """The sinks of all products.

    Attributes:
        sinks: by the name of product and sink, as the outbox has it.

    Args:
        products: see `check_sinks`.
        outbox: where messages wait.
        metrics: counts them.

    Raises:
        ValueError: a secret or certificates that cannot be read.
    """

    def __init__(self, products: Iterable[Product], outbox: Outbox, metrics: Metrics) -> None:
        self.sinks: dict[str, Sink] = {}
        self._outbox = outbox
        for product in products:
            for settings in product.sinks:
                name = f"{product.name}/{settings.name}"
                self.sinks[name] = Sink(name, settings, outbox, metrics)

    def start(self) -> None:
        """Send what was left over, and what comes."""
        if left := {name: count for name, count in self._outbox.waiting().items() if name not in self.sinks}:
            log.warning("messages wait for sinks that no product has now: %s", left)
        for sink in self.sinks.values():
            sink.start()

    def stop(self) -> None:
        """Send what waits as far as that succeeds at once; the rest is kept."""
        for sink in self.sinks.values():
            sink.ask_to_end()
        until = time.monotonic() + GOODBYE_S
        for sink in self.sinks.values():
            sink.join(max(until - time.monotonic(), 0))

    def troubles(self) -> dict[str, str]:
        """What is wrong, by sink; empty where all is well."""
        return {name: sink.trouble for name, sink in self.sinks.items() if sink.trouble is not None}

    def messages(self, part: Part, line: dict[str, Any], alarm: Alarm | None) -> tuple[Message, ...]:
        """What each sink of the part's product is to be sent.

        Args:
            part: as it was accepted.
            line: what is said of it, as `uflow predict` writes it.
            alarm: of the monitor, where this part has raised it.
        """
        chosen = {name: sink for name, sink in self.sinks.items() if name == f"{part.product}/{sink.settings.name}"}
        is_flagged = line.get("verdict") != "good"
        of_part = [name for name, sink in chosen.items() if is_flagged or sink.settings.only == "all"]
        return (
            *_to_each(of_part, part, "part", {"result": _without_contours(line)}),
            *_to_each(chosen if alarm is not None else (), part, "alarm", {"alarm": alarm and asdict(alarm)}),
        )


def check_sinks(file: Path, product: Product) -> None:
    """ValueError, one line that names the file, where a secret or certificates of its sinks cannot be read."""
    for settings in product.sinks:
        try:
            make_sender(settings)
        except ValueError as error:
            raise ValueError(f"{file}: {settings.name}: {error}") from None


def _to_each(names: Iterable[str], part: Part, kind: str, content: dict[str, Any]) -> tuple[Message, ...]:
    """One message to each sink, with an id by which the receiver knows it when it comes twice."""
    of_part = {"product": part.product, "part": part.id, "name": part.name, "received": part.received}
    names = list(names)
    if not names:
        return ()
    payload = write_json({"id": uuid.uuid4().hex, "kind": kind, **of_part, **content})
    return tuple(Message(name, payload) for name in names)


def _without_contours(line: dict[str, Any]) -> dict[str, Any]:
    """A line whose regions have a box only: contours can be long, and the service has them."""
    if "regions" not in line:
        return line
    return line | {"regions": [{k: v for k, v in region.items() if k != "contours"} for region in line["regions"]]}
