"""The service's SQLite file: its tables, one writer at a time, readers that never wait for it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["STORE_ERRORS", "Database"]

STORE_ERRORS = (OSError, sqlite3.Error)  # what a full or broken disk raises

VERSION = 1  # of the tables
WAIT_FOR_LOCK_S = 10

TABLES = """
CREATE TABLE parts (
    id INTEGER PRIMARY KEY,
    product TEXT NOT NULL,
    name TEXT,                     -- as the sender calls it
    sha256 TEXT NOT NULL,          -- of the image as it came
    received REAL NOT NULL,        -- seconds since 1970
    state TEXT NOT NULL CHECK (state IN ('accepted', 'judged', 'failed')),
    attempts INTEGER NOT NULL DEFAULT 0,  -- how often a restart has begun to judge it
    verdict TEXT,
    p_value REAL,
    score REAL,
    line TEXT,                     -- JSON, as uflow predict writes it
    picture TEXT,                  -- file below the folder of pictures; NULL where it is not kept
    picture_bytes INTEGER
);
-- The last parts and the counts of a shift; the history of one verdict; what a restart has to judge; what is pruned.
CREATE INDEX parts_by_time ON parts (product, received, verdict, p_value);
CREATE INDEX parts_by_verdict ON parts (product, verdict, received);
CREATE INDEX parts_by_name ON parts (product, name, received);
CREATE INDEX parts_failed ON parts (product, received) WHERE state = 'failed';
CREATE INDEX parts_waiting ON parts (product, id) WHERE state = 'accepted';
CREATE INDEX parts_with_picture ON parts (id, picture_bytes) WHERE picture IS NOT NULL;

-- What an operator said of a part; the last word counts.
CREATE TABLE answers (
    part INTEGER PRIMARY KEY REFERENCES parts,
    answer TEXT NOT NULL CHECK (answer IN ('good', 'defective')),
    operator TEXT NOT NULL,
    time REAL NOT NULL,
    used REAL                      -- when it was fed to the calibration; NULL where it was not
);
CREATE INDEX answers_by_time ON answers (answer, time);

-- Messages to sinks that are not yet delivered.
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    sink TEXT NOT NULL,
    part INTEGER NOT NULL REFERENCES parts,
    payload TEXT NOT NULL
);
CREATE INDEX outbox_by_sink ON outbox (sink, id);

-- Files of watched folders that are parts already: a file is one by its name, size and time.
CREATE TABLE files (
    product TEXT NOT NULL,
    path BLOB NOT NULL,            -- below the folder, as the system has it
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    part INTEGER NOT NULL REFERENCES parts,
    done INTEGER NOT NULL DEFAULT 0,  -- 1 where what became of it has been written, and it stays where it is
    PRIMARY KEY (product, path)
) WITHOUT ROWID;

-- The monitor of each product: what it knows, of which model, and the part it began with.
CREATE TABLE watches (
    product TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    first_part INTEGER NOT NULL,
    state TEXT NOT NULL
);
"""


class Database:
    """A file of SQLite in WAL mode: readers see the last commit, and wait for nobody.

    A commit survives kill -9. One that is `durable` is on the disk when `write` returns, with all that were before:
    then a power cut does not take it back either.

    Args:
        path: the file; it is made where it is not there.

    Raises:
        ValueError: a file that is no data base of this service, or of a later version.
        OSError: it cannot be opened, which takes 32 kB of the disk where it was closed before.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._connections: list[sqlite3.Connection] = []
        self._local = threading.local()
        self._writer = self._connect()
        try:
            self._prepare()
        except sqlite3.DatabaseError as error:
            self.close()
            if "not a database" in str(error):
                raise ValueError(f"{path} is no data base: move it elsewhere") from None
            raise OSError(f"cannot open {path}: {error}; look whether its disk is full, and make room") from error
        except ValueError:
            self.close()
            raise

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=WAIT_FOR_LOCK_S, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        connection.row_factory = sqlite3.Row
        self._connections.append(connection)
        return connection

    def _prepare(self) -> None:
        self._writer.execute("PRAGMA journal_mode = WAL")
        self._writer.execute("PRAGMA foreign_keys = ON")
        (version,) = self._writer.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._writer.executescript(f"BEGIN; {TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
        elif version != VERSION:
            raise ValueError(
                f"{self.path} is of version {version}, and this uflow reads {VERSION}: name another --data"
            )

    @contextmanager
    def write(self, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it is committed at the end, or nothing; `durable` waits for the disk."""
        with self._lock:
            self._writer.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    def read(self, query: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """The rows of a query, as of the last commit; each thread reads through a connection of its own."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connect()
            connection.execute("PRAGMA query_only = ON")
        return connection.execute(query, values).fetchall()

    def close(self) -> None:
        """Close the connections of all threads; nobody may read or write any longer."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()
