"""How the service ends: on SIGTERM when all is stored, and by kill -9 at any moment without loss."""

from __future__ import annotations

import errno
import hashlib
import json
import random
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from serving import (
    Served,
    defective_part,
    fill_disk,
    good_part,
    mount_small_disk,
    result,
    serve,
    write_product,
)
from uflow.cli.serve import check_data
from uflow.serve.database import Database
from uflow.serve.judge import MAX_ATTEMPTS
from uflow.serve.parts import Part
from uflow.serve.store import Store

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are those of POSIX")

SENDERS = 4


@dataclass
class Senders:
    """Threads that send one image after another, and what they were answered."""

    served: Served
    first: int
    answered: dict[str, dict[str, object]] = field(default_factory=dict)
    sent: dict[str, str] = field(default_factory=dict)  # name -> SHA-256
    stopped: threading.Event = field(default_factory=threading.Event)

    def send_all(self, sender: int) -> None:
        """Send until the service is gone; every second image is defective."""
        with httpx2.Client(base_url=self.served.client.base_url, timeout=30) as client:
            for number in range(self.first + sender, self.first + 10_000, SENDERS):
                if self.stopped.is_set():
                    return
                content = (defective_part if number % 2 else good_part)(number % 50)
                name = str(number)
                self.sent[name] = hashlib.sha256(content).hexdigest()
                try:
                    answer = client.post("/v1/products/tile/predict", content=content, params={"name": name})
                except httpx2.TransportError:
                    return
                if answer.status_code == 200:
                    assert answer.headers["uflow-stored"] == "yes"
                    self.answered[name] = answer.json()


def kept_parts(data: Path) -> dict[str | None, Part]:
    store = Store(data)
    try:
        return {part.name: part for part in store.parts("tile", limit=100_000)}
    finally:
        store.close()


def check_kept(data: Path, senders: list[Senders]) -> int:
    """Every answer is on the disk as it was given, and every part that was accepted is judged; how many there are."""
    parts = kept_parts(data)
    for group in senders:
        for name, line in group.answered.items():
            assert json.loads(parts[name].line or "") == line
        for name in parts.keys() & group.sent.keys():
            assert parts[name].sha256 == group.sent[str(name)]
    assert {part.state for part in parts.values()} == {"judged"}
    assert all(json.loads(part.line or "")["sha256"] == part.sha256 for part in parts.values())
    with sqlite3.connect(data / "service.sqlite") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
    return len(parts)


def kill_again_and_again(model: Path, root: Path, times: int) -> int:
    """Kill a service under load at random moments; how many parts it has kept in the end."""
    write_product(root / "products", "tile", model, "[pictures]\nkeep_every = 1\n")
    rng, groups = random.Random(times), []
    for _ in range(times):
        with serve(root / "products", root / "data") as served, ThreadPoolExecutor(SENDERS) as pool:
            groups.append(Senders(served, first=100_000 * len(groups)))
            done = [pool.submit(groups[-1].send_all, sender) for sender in range(SENDERS)]
            time.sleep(rng.uniform(0.2, 2.5))
            served.end(signal.SIGKILL)
            for each in done:
                each.result()
    with serve(root / "products", root / "data") as served:
        assert served.end() == 0, served.log.read_text()  # what was left over is judged before it ends
    assert sum(len(group.answered) for group in groups) > times, "hardly anything was sent"
    return check_kept(root / "data", groups)


def test_a_kill_loses_no_part_and_no_verdict(served_model: Path, tmp_path: Path) -> None:
    assert kill_again_and_again(served_model, tmp_path, times=2)


@pytest.mark.slow
def test_fifty_kills_lose_no_part_and_no_verdict(served_model: Path, tmp_path: Path) -> None:
    count = kill_again_and_again(served_model, tmp_path, times=50)
    print(f"50 kills, {count} parts kept")


def test_sigterm_answers_and_stores_what_was_accepted(served_model: Path, tmp_path: Path) -> None:
    write_product(tmp_path / "products", "tile", served_model)
    with serve(tmp_path / "products", tmp_path / "data") as served, ThreadPoolExecutor(SENDERS) as pool:
        group = Senders(served, 0)
        done = [pool.submit(group.send_all, sender) for sender in range(SENDERS)]
        while len(group.answered) < 5:
            time.sleep(0.01)
        assert served.end() == 0, served.log.read_text()
        for each in done:
            each.result()
        assert "all that was accepted is judged and stored" in served.log.read_text()
    assert check_kept(tmp_path / "data", [group]) == len(group.answered), "each part that was accepted was answered"


def test_one_service_a_folder(served_model: Path, tmp_path: Path) -> None:
    products = tmp_path / "products"
    write_product(products, "tile", served_model)
    with serve(products, tmp_path / "data") as served:
        second = serve(products, tmp_path / "other/../data")
        with pytest.raises(AssertionError, match="is at work already"), second:
            pass
        assert result(served.predict(good_part()))
        assert served.end(signal.SIGINT) == 0


def test_an_image_that_ends_the_service_again_and_again_is_given_up(served_model: Path, tmp_path: Path) -> None:
    write_product(tmp_path / "products", "tile", served_model)
    store = Store(tmp_path / "data")
    part = store.accept("tile", "trap", good_part(), ".png")
    other = store.accept("tile", "other", good_part(), ".png")
    for _ in range(MAX_ATTEMPTS):
        store.try_again(part.id)
    store.close()
    with serve(tmp_path / "products", tmp_path / "data") as served:
        assert served.end() == 0
    parts = kept_parts(tmp_path / "data")
    assert (parts["trap"].state, parts["trap"].verdict) == ("failed", None)
    assert f"ended {MAX_ATTEMPTS} times" in (parts["trap"].line or "")
    assert parts["other"].id == other.id
    assert parts["other"].state == "judged"


# A full disk ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mount_small_disk(tmp_path / "small") as folder:
        yield folder


def test_a_service_that_was_killed_starts_again_on_a_full_disk(
    served_model: Path, tmp_path: Path, small_disk: Path
) -> None:
    """It judges and says that nothing is stored, until there is room; a first start on a full disk is an error."""
    products, data, log = tmp_path / "products", tmp_path / "data", tmp_path / "data.log"
    write_product(products, "tile", served_model)
    (small_disk / "data").mkdir()
    data.symlink_to(small_disk / "data")  # whose log lies beside it, on a disk with room
    fill_disk(small_disk)
    with pytest.raises(AssertionError, match="data: No space left on device"), serve(products, data):
        pass
    assert "Traceback" not in log.read_text()
    (small_disk / "ballast").unlink()
    with serve(products, data) as served:
        assert served.predict(good_part(), name="first").headers["uflow-stored"] == "yes"
        fill_disk(small_disk)
        served.end(signal.SIGKILL)
    fill_disk(small_disk)
    with serve(products, data) as served:
        answers = [served.predict(defective_part(), name="x" * 190) for _ in range(20)]
        assert {result(answer)["verdict"] for answer in answers} == {"reject"}
        assert answers[-1].headers["uflow-stored"] == "no"
        assert served.client.get("/health").json()["troubles"] == ["store"]
        (small_disk / "ballast").unlink()
        assert served.predict(good_part(), name="last").headers["uflow-stored"] == "yes"
        assert served.end() == 0, served.log.read_text()
    assert {"first", "last"} <= kept_parts(data).keys()


@pytest.fixture
def full_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be mounted: the file that tries the disk finds it full."""

    def fail(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)


@pytest.mark.usefixtures("full_probe")
def test_a_full_disk_is_an_error_before_there_is_a_data_base_only(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left on device"):
        check_data(tmp_path / "data")
    Store(tmp_path / "data").close()
    check_data(tmp_path / "data")


def test_a_data_base_that_cannot_be_opened_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Database) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(Database, "_prepare", fail)
    with pytest.raises(OSError, match=r"cannot open .*service\.sqlite: disk I/O error; look whether its disk is full"):
        Store(tmp_path)
