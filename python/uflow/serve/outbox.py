"""Messages to sinks: kept from the verdict on until they are delivered."""

from __future__ import annotations

import sqlite3
import time
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
        sink: name of the sink.
        part: id of the part that it tells of.
        payload: JSON.
        attempts: how often it was tried.
    """

    id: int
    sink: str
    part: int
    payload: str
    attempts: int


class Outbox:
    """The table of messages. They are put there in the transaction that stores the verdict: see `Store.settle`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @staticmethod
    def put(database: sqlite3.Connection, part: int, messages: Iterable[Message]) -> None:
        """Add messages of a part, in a transaction that is under way."""
        now = time.time()
        database.executemany(
            "INSERT INTO outbox (sink, part, payload, next_try) VALUES (?, ?, ?, ?)",
            [(message.sink, part, message.payload, now) for message in messages],
        )

    def due(self, sink: str, limit: int = 100) -> list[Waiting]:
        """Messages to a sink whose time has come, oldest first."""
        query = (
            "SELECT id, sink, part, payload, attempts FROM outbox WHERE sink = ? AND next_try <= ? ORDER BY id LIMIT ?"
        )
        return [Waiting(**dict(row)) for row in self._database.read(query, (sink, time.time(), limit))]

    def delivered(self, message: int) -> None:
        """Forget a message that has arrived."""
        with self._database.write() as database:
            database.execute("DELETE FROM outbox WHERE id = ?", (message,))

    def put_off(self, message: int, seconds: float) -> None:
        """Note that a message could not be delivered, and is to be tried again after some seconds."""
        with self._database.write() as database:
            database.execute(
                "UPDATE outbox SET attempts = attempts + 1, next_try = ? WHERE id = ?", (time.time() + seconds, message)
            )

    def waiting(self) -> dict[str, int]:
        """How many messages are not yet delivered, by sink."""
        rows = self._database.read("SELECT sink, count(*) AS n FROM outbox GROUP BY sink")
        return {row["sink"]: row["n"] for row in rows}
