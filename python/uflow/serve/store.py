"""Parts, verdicts and answers, kept on the disk: what was accepted survives a kill, and is judged."""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .database import Database
from .inbox import Inbox, SeenFile
from .outbox import Outbox
from .parts import Answer, Filter, Outcome, Part
from .pictures import PictureFolder

__all__ = ["Counts", "Store"]

DATABASE = "service.sqlite"
PICTURES = "pictures"
MAX_ID = (1 << 63) - 1  # of SQLite
PRUNED_AT_ONCE = 500  # pictures in one transaction
TICK_S = 1e-6  # by which parts that come at the same time are told apart

SET_WATCH = """
INSERT INTO watches VALUES (?, ?, ?, ?) ON CONFLICT (product) DO UPDATE SET state = excluded.state,
first_part = iif(model = excluded.model, first_part, excluded.first_part), model = excluded.model
"""
SELECT = "SELECT parts.*, answers.answer FROM parts LEFT JOIN answers ON answers.part = parts.id"
# CROSS is SQLite's word for: begin with the answers, which are few.
SELECT_ANSWERED = "SELECT parts.*, answers.answer FROM answers CROSS JOIN parts ON parts.id = answers.part"


@dataclass(frozen=True)
class Counts:
    """How many parts of a product there are in some time, by what became of them."""

    good: int = 0
    look: int = 0
    reject: int = 0
    failed: int = 0
    accepted: int = 0


class Store:
    """A folder that holds the service's data base and its pictures.

    Every method may be called from any thread. Each raises `database.STORE_ERRORS` where the disk fails; then nothing
    has changed.

    Attributes:
        folder: where all lies.
        pictures: the images of parts.
        outbox: messages to sinks.
        inbox: files of watched folders.

    Args:
        folder: made where it is not there.

    Raises:
        ValueError: a data base that is not the service's.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._database = Database(folder / DATABASE)
        self.pictures = PictureFolder(folder / PICTURES)
        self.outbox, self.inbox = Outbox(self._database), Inbox(self._database)
        self._naming = threading.Lock()
        self._dropped: queue.SimpleQueue[str] = queue.SimpleQueue()
        last = self._database.read("SELECT id, received FROM parts ORDER BY id DESC LIMIT 1")
        self._last_id: int = last[0]["id"] if last else 0
        self._last_time: float = last[0]["received"] if last else 0.0
        self._remove_orphans()

    def close(self) -> None:
        """Close the data base; nobody may use the store any longer."""
        self.tidy()
        self._database.close()

    # Accepting and settling -------------------------------------------------------------------------------------------

    def accept(self, product: str, name: str | None, content: bytes, suffix: str, file: SeenFile | None = None) -> Part:
        """Store a part, its image first: when this returns, it will be judged even if the service is killed.

        The disk is not waited for: `settle` does, before anybody is told of a verdict.

        Args:
            product: name of its product.
            name: as the sender calls it.
            content: its image, as it came.
            suffix: of a file of this format: .png, .jpg, ...
            file: of a watched folder, that it came from.
        """
        digest = hashlib.sha256(content).hexdigest()
        part, received = self._next()
        picture = self.pictures.write(part, content, suffix)
        values = (part, product, name, digest, received, picture, len(content))
        try:
            with self._database.write(durable=False) as database:
                database.execute(
                    "INSERT INTO parts (id, product, name, sha256, received, state, picture, picture_bytes) "
                    "VALUES (?, ?, ?, ?, ?, 'accepted', ?, ?)",
                    values,
                )
                if file is not None:
                    Inbox.put(database, product, part, file)
        except BaseException:
            self.pictures.remove(picture)
            raise
        return Part(part, product, name, digest, received, "accepted", None, None, None, None, picture, None)

    def _next(self) -> tuple[int, float]:
        """The id of the next part, and when it was received: no two the same, so that pages can go on from a time."""
        with self._naming:
            now = time.time()
            if self._last_time - 1 < now <= self._last_time:
                now = self._last_time + TICK_S
            self._last_id, self._last_time = self._last_id + 1, now
            return self._last_id, now

    def settle(self, outcome: Outcome) -> None:
        """Put a verdict on the disk, with the messages that tell of it.

        An image that is not kept is dropped from the table; `tidy`, or the next start, removes its file.
        """
        values = (outcome.state, outcome.verdict, outcome.p_value, outcome.score, outcome.line)
        if outcome.keep_picture and (part := self.part(outcome.part)) is not None and part.picture is not None:
            self.pictures.sync(part.picture)
        dropped = "" if outcome.keep_picture else ", picture = NULL, picture_bytes = NULL"
        with self._database.write() as database:
            (row,) = database.execute("SELECT product, picture FROM parts WHERE id = ?", (outcome.part,))
            database.execute(
                f"UPDATE parts SET state = ?, verdict = ?, p_value = ?, score = ?, line = ?{dropped} WHERE id = ?",
                (*values, outcome.part),
            )
            Outbox.put(database, outcome.part, outcome.messages)
            if outcome.watch is not None:
                database.execute(SET_WATCH, (row["product"], outcome.watch[0], outcome.part, outcome.watch[1]))
        if outcome.messages:
            self.outbox.announce()
        if row["picture"] is not None and not outcome.keep_picture:
            self._dropped.put(row["picture"])

    def tidy(self) -> None:
        """Remove the images that `settle` has dropped: whoever waits for a verdict need not wait for this."""
        with suppress(queue.Empty):
            while True:
                self.pictures.remove(self._dropped.get_nowait())

    def waiting(self, product: str) -> list[int]:
        """The parts of a product that are accepted and not yet judged, first come first."""
        query = "SELECT id FROM parts WHERE product = ? AND state = 'accepted' ORDER BY id"
        return [row["id"] for row in self._database.read(query, (product,))]

    def try_again(self, part: int) -> int:
        """Note that a restart begins to judge a part, and return how often that was so, this time included."""
        with self._database.write() as database:
            database.execute("UPDATE parts SET attempts = attempts + 1 WHERE id = ?", (part,))
            (row,) = database.execute("SELECT attempts FROM parts WHERE id = ?", (part,))
            return int(row["attempts"])

    # Reading ----------------------------------------------------------------------------------------------------------

    def part(self, number: int) -> Part | None:
        """A part by its id; None where there is none."""
        if number > MAX_ID:
            return None
        rows = self._database.read(f"{SELECT} WHERE parts.id = ?", (number,))
        return Part.from_row(rows[0]) if rows else None

    def image(self, part: Part) -> bytes | None:
        """The image of a part as it came; None where it is not kept."""
        return None if part.picture is None else self.pictures.read(part.picture)

    def parts(
        self,
        product: str,
        chosen: Filter | None = None,
        before: float | None = None,
        limit: int = 50,
        *,
        after: float | None = None,
    ) -> list[Part]:
        """Parts of a product, the last received first.

        Args:
            product: its name.
            chosen: which of them.
            before: those received before this, seconds since 1970: `Part.received` of the last one of the page before.
            limit: as many at most.
            after: those received after this, and of these the first ones received.
        """
        conditions, values = _conditions(chosen or Filter())
        if before is not None:
            conditions, values = [*conditions, "received < ?"], [*values, before]
        if after is not None:
            conditions, values = [*conditions, "received > ?"], [*values, after]
        where, order = " AND ".join(["product = ?", *conditions]), "DESC" if after is None else "ASC"
        select = SELECT if chosen is None or chosen.answer is None else SELECT_ANSWERED
        query = f"{select} WHERE {where} ORDER BY received {order} LIMIT ?"
        found = [Part.from_row(row) for row in self._database.read(query, (product, *values, limit))]
        return found if after is None else found[::-1]

    def counts(self, product: str, since: float, until: float | None = None) -> Counts:
        """How many parts were received in some time, such as a shift; seconds since 1970."""
        query = (
            "SELECT verdict, count(*) AS n FROM parts INDEXED BY parts_by_time "
            "WHERE product = ? AND received >= ? AND received < ? GROUP BY verdict"
        )
        upper = 1e18 if until is None else until
        by_verdict = {row["verdict"]: row["n"] for row in self._database.read(query, (product, since, upper))}
        unsettled = by_verdict.pop(None, 0)
        query = (
            "SELECT count(*) AS n FROM parts WHERE product = ? AND state = 'failed' AND received >= ? AND received < ?"
        )
        failed = self._database.read(query, (product, since, upper))[0]["n"]
        return Counts(**by_verdict, failed=failed, accepted=unsettled - failed)

    def p_values(self, product: str, since: float = 0, limit: int = 1000) -> list[tuple[float, float]]:
        """When the last parts were received, and their p-values, oldest first: (seconds since 1970, p-value)."""
        query = (
            "SELECT received, p_value FROM parts WHERE product = ? AND received >= ? AND p_value IS NOT NULL "
            "ORDER BY received DESC LIMIT ?"
        )
        rows = self._database.read(query, (product, since, limit))
        return [(row["received"], row["p_value"]) for row in reversed(rows)]

    def flagged_at(self, product: str, alpha: float, since: float) -> tuple[int, int]:
        """How many parts another alpha would have flagged since then, and of how many."""
        query = (
            "SELECT count(*) AS n, total(p_value <= ?) AS flagged FROM parts "
            "WHERE product = ? AND received >= ? AND p_value IS NOT NULL"
        )
        (row,) = self._database.read(query, (alpha, product, since))
        return int(row["flagged"]), int(row["n"])

    # Answers, monitors ------------------------------------------------------------------------------------------------

    def set_answer(self, part: int, answer: Answer | None, operator: str) -> None:
        """Keep what an operator says of a part; None takes it back.

        Raises:
            KeyError: there is no such part.
        """
        with self._database.write() as database:
            if not database.execute("SELECT 1 FROM parts WHERE id = ?", (part,)).fetchone():
                raise KeyError(part)
            database.execute("DELETE FROM answers WHERE part = ?", (part,))
            if answer is not None:
                database.execute(
                    "INSERT INTO answers (part, answer, operator, time) VALUES (?, ?, ?, ?)",
                    (part, answer, operator, time.time()),
                )

    def good_after_all(self, product: str) -> list[Part]:
        """Parts that operators called good, that the calibration has not been fed with, and whose image is kept."""
        query = (
            f"{SELECT_ANSWERED} WHERE product = ? AND answers.answer = 'good' AND answers.used IS NULL "
            "AND picture IS NOT NULL ORDER BY parts.id"
        )
        return [Part.from_row(row) for row in self._database.read(query, (product,))]

    def mark_used(self, parts: Sequence[int]) -> None:
        """Note that the calibration was fed with these parts."""
        with self._database.write() as database:
            now = time.time()
            database.executemany("UPDATE answers SET used = ? WHERE part = ?", [(now, part) for part in parts])

    def watch(self, product: str) -> tuple[str, int, str] | None:
        """The monitor of a product: its model's SHA-256, the first part it saw, its state in JSON; or None."""
        rows = self._database.read("SELECT model, first_part, state FROM watches WHERE product = ?", (product,))
        return (rows[0]["model"], rows[0]["first_part"], rows[0]["state"]) if rows else None

    def forget_watch(self, product: str) -> None:
        """Forget the monitor of a product: the next part begins a new one."""
        with self._database.write() as database:
            database.execute("DELETE FROM watches WHERE product = ?", (product,))

    # Pictures ---------------------------------------------------------------------------------------------------------

    def pictures_size(self) -> int:
        """Bytes of all pictures that are kept."""
        query = "SELECT total(picture_bytes) AS size FROM parts WHERE picture IS NOT NULL"
        return int(self._database.read(query)[0]["size"])

    def prune(self, max_bytes: int, keep_since: dict[str, float]) -> int:
        """Remove pictures of judged parts: of each product those received before `keep_since`, then the oldest.

        Args:
            max_bytes: what is left is no larger than this.
            keep_since: by product, seconds since 1970.

        Returns:
            How many were removed.
        """
        removed = 0
        for product, since in keep_since.items():
            while count := self._remove_pictures("product = ? AND received < ?", (product, since)):
                removed += count
        while (excess := self.pictures_size() - max_bytes) > 0:
            if (count := self._remove_pictures("TRUE", (), excess)) == 0:
                break
            removed += count
        return removed

    def _remove_pictures(self, condition: str, values: tuple[Any, ...], excess: float = float("inf")) -> int:
        """Remove some pictures of judged parts, oldest first, until `excess` bytes are gone; how many that were."""
        query = (
            "SELECT id, picture, picture_bytes FROM parts INDEXED BY parts_with_picture "
            f"WHERE picture IS NOT NULL AND state != 'accepted' AND {condition} ORDER BY id LIMIT ?"
        )
        removed: list[tuple[int]] = []
        for row in self._database.read(query, (*values, PRUNED_AT_ONCE)):
            if excess <= 0:
                break
            self.pictures.remove(row["picture"])
            removed.append((row["id"],))
            excess -= row["picture_bytes"]
        if removed:
            with self._database.write() as database:
                database.executemany("UPDATE parts SET picture = NULL, picture_bytes = NULL WHERE id = ?", removed)
        return len(removed)

    def _remove_orphans(self) -> None:
        """Remove what a kill left between an image and its row: images that no row names."""
        for number, name in list(self.pictures.latest()):
            rows = self._database.read("SELECT picture FROM parts WHERE id = ?", (number,))
            if not rows or rows[0]["picture"] != name:
                self.pictures.remove(name)


def _conditions(chosen: Filter) -> tuple[list[str], list[Any]]:
    """A filter as conditions of SQL and their values."""
    found: list[tuple[str, Iterable[Any]]] = []
    if chosen.verdict == "failed":
        found.append(("state = 'failed'", ()))
    elif chosen.verdict is not None:
        found.append(("verdict = ?", (chosen.verdict,)))
    if chosen.answer is not None:
        found.append(("answers.answer = ?", (chosen.answer,)))
    if chosen.name is not None and chosen.name.endswith("*"):
        found.append(("name >= ? AND name < ?", (chosen.name[:-1], chosen.name[:-1] + "\U0010ffff")))
    elif chosen.name is not None:
        found.append(("name = ?", (chosen.name,)))
    if chosen.since is not None:
        found.append(("received >= ?", (chosen.since,)))
    if chosen.until is not None:
        found.append(("received < ?", (chosen.until,)))
    return [condition for condition, _ in found], [value for _, values in found for value in values]
