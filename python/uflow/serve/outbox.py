"""Messages to sinks: kept from the verdict on until they are delivered."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from .database import Database
from .parts import Message

__all__ = ["Outbox", "Waiting"]


@dataclass(frozen=True)
class Waiting:
    """A message that is not yet delivered.

    Attributes:
        id: counts up, in the order of the verdicts.
        payload: JSON.
    """

    id: int
    payload: str


class Outbox:
    """The table of messages. They are put there in the transaction that stores the verdict: see `Store.settle`.

    What is removed does not wait for the disk: a power cut can bring a message back, which is then sent twice.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._arrived = threading.Condition()
        self._arrivals = 0

    @staticmethod
    def put(database: sqlite3.Connection, part: int, messages: Iterable[Message]) -> None:
        """Add messages of a part, in a transaction that is under way; `announce` follows it."""
        database.executemany(
            "INSERT INTO outbox (sink, part, payload) VALUES (?, ?, ?)",
            [(message.sink, part, message.payload) for message in messages],
        )

    def announce(self) -> None:
        """Wake those who wait for messages."""
        with self._arrived:
            self._arrivals += 1
            self._arrived.notify_all()

    def arrivals(self) -> int:
        """How often messages have been announced."""
        with self._arrived:
            return self._arrivals

    def wait(self, seen: int, seconds: float) -> None:
        """Wait for more messages than were announced when `arrivals` said `seen`, or so many seconds."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._arrivals > seen, seconds)

    def oldest(self, sink: str, limit: int = 100) -> list[Waiting]:
        """The first messages to a sink, oldest first."""
        query = "SELECT id, payload FROM outbox WHERE sink = ? ORDER BY id LIMIT ?"
        return [Waiting(**dict(row)) for row in self._database.read(query, (sink, limit))]

    def remove(self, sink: str, last: int) -> None:
        """Forget the messages to a sink up to one of them: they have arrived, or never will."""
        with self._database.write(durable=False) as database:
            database.execute("DELETE FROM outbox WHERE sink = ? AND id <= ?", (sink, last))

    def drop_beyond(self, sink: str, limit: int) -> int:
        """Forget the oldest messages to a sink where there are more than `limit`, and return how many those were."""
        query = "SELECT id FROM outbox WHERE sink = ? ORDER BY id DESC LIMIT 1 OFFSET ?"
        rows = self._database.read(query, (sink, limit))
        if not rows:
            return 0
        with self._database.write(durable=False) as database:
            return database.execute("DELETE FROM outbox WHERE sink = ? AND id <= ?", (sink, rows[0]["id"])).rowcount

    def waiting(self) -> dict[str, int]:
        """How many messages are not yet delivered, by sink."""
        rows = self._database.read("SELECT sink, count(*) AS n FROM outbox GROUP BY sink")
        return {row["sink"]: row["n"] for row in rows}
