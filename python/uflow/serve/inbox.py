"""Files of watched folders that are parts already: so that each is judged once, also over restarts."""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass

from .database import Database

__all__ = ["Inbox", "KnownFile", "SeenFile"]


@dataclass(frozen=True)
class SeenFile:
    """A file in a watched folder, as it was when it was looked at.

    Attributes:
        path: below the folder, as the system has it.
        size: in bytes.
        mtime_ns: when it was last written, in nanoseconds.
    """

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class KnownFile:
    """A file that is a part.

    Attributes:
        part: its id.
        done: whether there is no more to do with it, and it stays where it is.
    """

    part: int
    done: bool


class Inbox:
    """The table of files. They are put there in the transaction that accepts the part: see `Store.accept`.

    What is noted later does not wait for the disk: after a power cut it is done once more.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @staticmethod
    def put(database: sqlite3.Connection, product: str, part: int, file: SeenFile) -> None:
        """Note that a file is a part, in a transaction that is under way; what was there of its name is forgotten."""
        values = (product, os.fsencode(file.path), file.size, file.mtime_ns, part)
        database.execute(
            "INSERT OR REPLACE INTO files (product, path, size, mtime_ns, part) VALUES (?, ?, ?, ?, ?)", values
        )

    def find(self, product: str, file: SeenFile) -> KnownFile | None:
        """The part that a file is; None where it is none, or was another when it became one."""
        query = "SELECT part, done FROM files WHERE product = ? AND path = ? AND size = ? AND mtime_ns = ?"
        rows = self._database.read(query, (product, os.fsencode(file.path), file.size, file.mtime_ns))
        return KnownFile(rows[0]["part"], bool(rows[0]["done"])) if rows else None

    def set_done(self, product: str, file: SeenFile) -> None:
        """Note that there is no more to do with a file, which stays where it is."""
        with self._database.write(durable=False) as database:
            values = (product, os.fsencode(file.path))
            database.execute("UPDATE files SET done = 1 WHERE product = ? AND path = ?", values)

    def forget(self, product: str, file: SeenFile) -> None:
        """Forget a file that is no longer there: the next one of its name is another part."""
        with self._database.write(durable=False) as database:
            database.execute("DELETE FROM files WHERE product = ? AND path = ?", (product, os.fsencode(file.path)))
