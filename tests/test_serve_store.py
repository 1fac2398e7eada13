"""What the service keeps: on the disk before it is said, found quickly among many, removed by rule."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from uflow.serve.database import Database
from uflow.serve.parts import Filter, Message, Outcome, Part
from uflow.serve.store import Counts, Store

IMAGE = b"an image"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store(tmp_path / "data")
    yield found
    found.close()


def add(
    store: Store, verdict: str | None = "good", p_value: float = 0.5, product: str = "tile", **more: object
) -> Part:
    """A part that was accepted and judged; `verdict` None leaves it accepted, "failed" fails it."""
    part = store.accept(product, more.pop("name", None), IMAGE, ".png")  # type: ignore[arg-type]
    if verdict == "failed":
        store.settle(Outcome(part.id, "failed", '{"error": "cut"}'))
    elif verdict is not None:
        store.settle(Outcome(part.id, "judged", "{}", verdict, p_value, 0.1, **more))  # type: ignore[arg-type]
    found = store.part(part.id)
    assert found is not None
    return found


def test_a_part_is_on_the_disk_before_it_is_judged(store: Store) -> None:
    part = add(store, None, name="a.png")
    other = Store(store.folder)  # as after a kill: nothing was closed
    assert other.part(part.id) == part
    assert other.image(part) == IMAGE
    assert other.waiting("tile") == [part.id]
    assert other.waiting("lid") == []
    assert [other.try_again(part.id) for _ in range(2)] == [1, 2]
    other.settle(Outcome(part.id, "judged", "{}", "good", 0.5, 0.1, keep_picture=False))
    assert other.waiting("tile") == []
    settled = other.part(part.id)
    assert settled is not None
    assert (settled.state, settled.verdict, settled.picture) == ("judged", "good", None)
    other.tidy()
    assert not list(store.pictures.folder.rglob("*.png"))
    other.close()


def test_an_image_without_a_row_is_removed_and_its_number_used_again(store: Store) -> None:
    kept = add(store)
    store.pictures.write(kept.id + 1, b"a kill came before its row", ".jpg")
    other = Store(store.folder)
    assert [path.name for path in store.pictures.folder.rglob("*.*")] == ["000000001.png"]
    assert add(other).id == kept.id + 1
    other.close()


def test_a_verdict_its_messages_and_the_monitor_are_stored_together_or_not_at_all(store: Store) -> None:
    part = add(store, None)
    outcome = Outcome(part.id, "judged", "{}", "good", messages=(Message("plc", "1"),), watch=("model", "state"))
    bad = Outcome(part.id, "judged", "{}", "good", messages=(Message("plc", None),))  # type: ignore[arg-type]
    with pytest.raises(sqlite3.IntegrityError):
        store.settle(bad)
    assert store.waiting("tile") == [part.id]
    assert store.outbox.waiting() == {}
    store.settle(outcome)
    assert store.outbox.waiting() == {"plc": 1}
    assert store.watch("tile") == ("model", part.id, "state")


def test_a_watch_keeps_its_first_part_until_another_model_serves(store: Store) -> None:
    first = add(store, watch=("a", "1"))
    add(store, watch=("a", "2"))
    assert store.watch("tile") == ("a", first.id, "2")
    third = add(store, watch=("b", "1"))
    assert store.watch("tile") == ("b", third.id, "1")
    store.forget_watch("tile")
    assert store.watch("tile") is None


def test_pages_go_on_where_the_last_one_ended(store: Store) -> None:
    numbers = [add(store, name=f"{i}").id for i in range(25)]
    add(store, product="lid")
    seen: list[int] = []
    before = None
    while page := store.parts("tile", before=before, limit=10):
        seen += [part.id for part in page]
        before = page[-1].received
    assert seen == numbers[::-1]


def test_filters(store: Store) -> None:
    good, look, reject, failed = (add(store, verdict, name=f"{verdict}.png") for verdict in VERDICTS)
    store.set_answer(reject.id, "good", "anna")
    for chosen, wanted in (
        (Filter(verdict="look"), [look]),
        (Filter(verdict="failed"), [failed]),
        (Filter(name="good.png"), [good]),
        (Filter(name="*"), [failed, reject, look, good]),
        (Filter(name="re*"), [reject]),
        (Filter(answer="good"), [reject]),
        (Filter(since=look.received, until=failed.received), [reject, look]),
    ):
        assert [part.id for part in store.parts("tile", chosen)] == [part.id for part in wanted], chosen
    assert store.counts("tile", 0) == Counts(1, 1, 1, 1, 0)
    assert store.counts("tile", look.received, failed.received) == Counts(0, 1, 1, 0, 0)


VERDICTS = ("good", "look", "reject", "failed")


def test_p_values_and_another_alpha(store: Store) -> None:
    for p_value in (0.01, 0.03, 0.2, 0.9):
        add(store, p_value=p_value)
    add(store, "failed")
    assert [p for _, p in store.p_values("tile", limit=3)] == [0.03, 0.2, 0.9]
    assert store.flagged_at("tile", 0.05, since=0) == (2, 4)
    assert store.flagged_at("tile", 0.05, since=time.time() + 9) == (0, 0)


def test_answers_are_kept_and_used_once(store: Store) -> None:
    part = add(store, "reject")
    gone = add(store, "reject", keep_picture=False)
    for each in (part, gone):
        store.set_answer(each.id, "good", "anna")
    assert [found.id for found in store.good_after_all("tile")] == [part.id]
    assert store.good_after_all("tile")[0].answer == "good"
    store.mark_used([part.id])
    assert store.good_after_all("tile") == []
    store.set_answer(gone.id, None, "anna")
    found = store.part(gone.id)
    assert found is not None
    assert found.answer is None
    with pytest.raises(KeyError):
        store.set_answer(999, "good", "anna")


def test_messages_wait_until_they_are_delivered(store: Store) -> None:
    add(store, messages=(Message("plc", "1"), Message("mes", "2")))
    add(store, messages=(Message("plc", "3"),))
    first, second = store.outbox.oldest("plc")
    assert (first.payload, second.payload) == ("1", "3")
    assert [message.id for message in store.outbox.oldest("plc", 1)] == [first.id]
    store.outbox.remove("plc", first.id)
    assert store.outbox.waiting() == {"mes": 1, "plc": 1}
    for _ in range(3):
        add(store, messages=(Message("plc", "more"),))
    assert [store.outbox.drop_beyond("plc", limit) for limit in (4, 3, 3)] == [0, 1, 0]
    assert store.outbox.waiting() == {"mes": 1, "plc": 3}


def test_old_pictures_go_by_days_then_by_size_the_oldest_first(store: Store) -> None:
    parts = [add(store, "reject") for _ in range(6)]
    waiting = add(store, None)
    lid = add(store, "reject", product="lid")
    assert store.pictures_size() == 8 * len(IMAGE)
    assert store.prune(1000, {"tile": parts[2].received}) == 2
    assert store.prune(4 * len(IMAGE), {}) == 2
    left = {path.name for path in store.pictures.folder.rglob("*.png")}
    assert left == {f"{part.id:09}.png" for part in (*parts[4:], waiting, lid)}
    assert store.prune(0, {}) == 3, "what is not yet judged keeps its image"
    assert store.image(waiting) == IMAGE
    emptied = store.part(parts[0].id)
    assert emptied is not None
    assert (emptied.picture, store.image(parts[0])) == (None, None)


def test_times_of_parts_differ_whatever_the_clock_does(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 100.0, 99.9, 50.0, 200.0])
    monkeypatch.setattr(time, "time", lambda: next(clock))
    times = [store.accept("tile", None, IMAGE, ".png").received for _ in range(5)]
    assert times[0] < times[1] < times[2] < 100.1
    assert times[3:] == [50.0, 200.0]  # a clock that was set right is believed


def test_readers_do_not_wait_for_a_writer(store: Store) -> None:
    part = add(store)
    found: list[Part | None] = []
    with store._database.write() as database:
        database.execute("UPDATE parts SET verdict = 'reject'")
        reader = threading.Thread(target=lambda: found.append(store.part(part.id)))
        reader.start()
        reader.join(5)
    assert found == [part]


@contextmanager
def asked_queries() -> Iterator[list[tuple[str, object]]]:
    """What is asked of the data base meanwhile."""
    queries: list[tuple[str, object]] = []
    read = Database.read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Database,
            "read",
            lambda self, query, values=(): queries.append((query, values)) or read(self, query, values),
        )
        yield queries


def test_many_parts_are_found_by_an_index(store: Store) -> None:
    """No list, count or chart of the page walks over all parts: SQLite's plans say so."""
    with asked_queries() as queries:
        for chosen in (
            None,
            *(Filter(verdict=verdict) for verdict in VERDICTS),
            Filter(since=1, until=2),
            Filter(name="a"),
        ):  # type: ignore[arg-type]
            store.parts("tile", chosen, before=9e9)
        store.counts("tile", 0)
        store.p_values("tile")
        store.flagged_at("tile", 0.1, 0)
        store.waiting("tile")
        store.prune(0, {"tile": 1})
    for query, values in queries:
        plan = [row["detail"] for row in store._database.read(f"EXPLAIN QUERY PLAN {query}", values)]  # type: ignore[arg-type]
        if "count(*)" in query and "failed" not in query:
            assert any("received>" in step for step in plan), (query, plan)
        assert not any("TEMP B-TREE FOR ORDER BY" in step for step in plan), (query, plan)
        assert all("INDEX" in step or "PRIMARY KEY" in step or "TEMP" in step for step in plan), (query, plan)


def test_answers_are_found_from_their_own_table(store: Store) -> None:
    """They are few: no list of them reads all parts."""
    parts = [add(store, "reject") for _ in range(6)]
    for part in parts[::2]:
        store.set_answer(part.id, "good", "anna")
    with asked_queries() as queries:
        assert store.parts("tile", Filter(answer="good")) == store.good_after_all("tile")[::-1]
        assert [part.id for part in store.parts("tile", Filter(answer="good"))] == [parts[i].id for i in (4, 2, 0)]
    for query, values in queries:
        first = store._database.read(f"EXPLAIN QUERY PLAN {query}", values)[0]["detail"]  # type: ignore[arg-type]
        assert "answers" in first, query


def test_parts_after_a_time_are_the_next_ones(store: Store) -> None:
    parts = [add(store, "reject" if i % 2 else "good") for i in range(6)]
    asked = parts[1].received
    assert [part.id for part in store.parts("tile", after=asked, limit=2)] == [parts[3].id, parts[2].id]
    assert [part.id for part in store.parts("tile", Filter(verdict="reject"), after=asked, limit=1)] == [parts[3].id]
    assert store.parts("tile", after=parts[5].received) == []


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "service.sqlite").write_bytes(b"no data base" * 100)
    with pytest.raises(ValueError, match="is no data base"):
        Store(tmp_path)
    with sqlite3.connect(tmp_path / "new.sqlite") as other:
        other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(ValueError, match="version 99"):
        Database(tmp_path / "new.sqlite")
