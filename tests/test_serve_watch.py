"""A watched folder: what appears is judged when it is whole, each file once, and nothing that lies there stops it."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from conftest import wait_for
from receiving import serve_brightness
from serve_brightness import make_predictor, noise
from serving import png, write_product
from uflow.predictor import Predictor
from uflow.serve import folders
from uflow.serve.judge import Judge
from uflow.serve.parts import Part
from uflow.serve.service import Limits, Service
from uflow.serve.store import Store

SOON_S = 15
SETTLE_S = 0.15

GOOD, BAD = (png(*noise(1, 5, least)) for least in (0, 150))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that a test can wait for."""
    monkeypatch.setattr(folders, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(folders, "GIVE_UP_S", 1.2)
    monkeypatch.setattr(folders, "TRY_AGAIN_S", 0.1)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return make_predictor()


class Line:
    """A service of one product with a watched folder, in this process."""

    def __init__(self, root: Path, predictor: Predictor | None, more: str, **limits: int) -> None:
        self.folder, self.judged, self.failed = root / "incoming", root / "judged", root / "judged/failed"
        text = f'[watch]\nfolder = "../incoming"\nsettle_s = {SETTLE_S}\n{more}'
        file = write_product(root / "products", "tile", root / "none.uflow", text)
        self.folder.mkdir(exist_ok=True)
        self.service = Service([file], root / "data", Limits(**limits), poll_s=60)
        self.judge.live.predictor = predictor

    @property
    def judge(self) -> Judge:
        return self.service.judges["tile"]

    @property
    def trouble(self) -> str:
        return self.service.watchers["tile"].trouble or ""

    def parts(self) -> list[Part]:
        """All parts that are judged, the first one first."""
        return [part for part in self.service.store.parts("tile", limit=1000)[::-1] if part.state != "accepted"]

    def names(self) -> list[str | None]:
        return [part.name for part in self.parts()]

    def waits_for(self, *names: str) -> None:
        """Fail unless these parts, and no others, are judged in time, and finished with."""
        wait_for(lambda: sorted(map(str, self.names())) == sorted(names), SOON_S)
        wait_for(lambda: self.service.watchers["tile"].waiting == 0, SOON_S)


MOVE = 'move_to = "../judged"\n'


@pytest.fixture
def run(tmp_path: Path, predictor: Predictor) -> Callable[..., Any]:
    @contextmanager
    def start(more: str = MOVE, has_model: bool = True, **limits: int) -> Iterator[Line]:
        line = Line(tmp_path, predictor if has_model else None, more, **limits)
        line.service.start()
        try:
            yield line
        finally:
            line.service.stop()

    return start


Run = Callable[..., Any]


def files(folder: Path) -> set[str]:
    """All files below a folder, by their paths in it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


# What becomes of files ------------------------------------------------------------------------------------------------


def test_files_are_judged_and_moved_with_their_results(run: Run) -> None:
    with run(MOVE + "results = true\n") as line:
        (line.folder / "day 1").mkdir()
        (line.folder / "good.png").write_bytes(GOOD)
        (line.folder / "day 1/bad.png").write_bytes(BAD)
        (line.folder / "broken.jpeg").write_bytes(GOOD[:-200])
        (line.folder / "empty.png").touch()
        (line.folder / "notes.txt").write_text("no image")
        line.waits_for("good.png", "day 1/bad.png", "broken.jpeg", "empty.png")
        verdicts = {part.name: part.verdict or part.state for part in line.parts()}
    assert verdicts == {"good.png": "good", "day 1/bad.png": "reject", "broken.jpeg": "failed", "empty.png": "failed"}
    assert files(line.folder) == {"notes.txt"}
    images = {"good.png", "day 1/bad.png", "failed/broken.jpeg", "failed/empty.png"}
    assert files(line.judged) == images | {f"{name}.json" for name in images}
    result = json.loads((line.judged / "day 1/bad.png.json").read_text())
    assert (result["image"], result["verdict"]) == ("day 1/bad.png", "reject")
    assert "truncated" in json.loads((line.failed / "broken.jpeg.json").read_text())["error"]
    assert (line.judged / "good.png").read_bytes() == GOOD


def test_files_that_stay_are_judged_once_also_after_a_restart(run: Run) -> None:
    with run("results = true\n") as line:
        (line.folder / "a.png").write_bytes(GOOD)
        (line.folder / "broken.png").write_bytes(b"no image")
        line.waits_for("a.png", "broken.png")
        (line.folder / "b.png").write_bytes(BAD)
        line.waits_for("a.png", "b.png", "broken.png")
    with run("results = true\n") as line:
        (line.folder / "c.png").write_bytes(GOOD)
        line.waits_for("a.png", "b.png", "broken.png", "c.png")
        (line.folder / "a.png").write_bytes(BAD)
        line.waits_for("a.png", "a.png", "b.png", "broken.png", "c.png")
        assert [part.verdict for part in line.parts() if part.name == "a.png"] == ["good", "reject"]
    images = {"a.png", "b.png", "broken.png", "c.png"}
    assert files(line.folder) == images | {f"{name}.json" for name in images}


def test_a_file_is_judged_when_it_is_whole(run: Run) -> None:
    with run() as line:
        path = line.folder / "slow.png"
        with path.open("wb", buffering=0) as file:
            for start in range(0, 2000, 400):
                file.write(GOOD[start : start + 400])
                time.sleep(SETTLE_S / 2)
            assert line.names() == []
            file.write(GOOD[2000:])
        with (line.folder / "paused.png").open("wb", buffering=0) as file:
            file.write(GOOD[:500])
            time.sleep(2 * SETTLE_S)  # stands still for longer than a whole one needs to, and can be read to no end
            file.write(GOOD[500:])
        (line.folder / ".renamed.png.part").write_bytes(GOOD)
        (line.folder / ".renamed.png.part").rename(line.folder / "renamed.png")
        line.waits_for("slow.png", "paused.png", "renamed.png")
        assert {part.verdict for part in line.parts()} == {"good"}


def test_a_name_that_comes_again_is_another_part_and_overwrites_nothing(run: Run) -> None:
    with run() as line:
        for content in (GOOD, BAD, GOOD):
            (line.folder / "part.png").write_bytes(content)
            wait_for(lambda: not (line.folder / "part.png").exists(), SOON_S)
        assert line.names() == ["part.png"] * 3
    assert files(line.judged) == {"part.png", "part.2.png", "part.3.png"}
    assert (line.judged / "part.2.png").read_bytes() == BAD


def test_only_regular_images_of_any_name_are_judged(run: Run, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/outside.png").write_bytes(BAD)
    named = ["-rf *.png", "ü 部品.PNG", "a\nb.png", "%s{0}'\".png", "x" * 240 + ".png"]
    with run("results = true\n") as line:
        for name in named:
            (line.folder / name).write_bytes(GOOD)
        (line.folder / "link.png").symlink_to(tmp_path / "elsewhere/outside.png")
        (line.folder / "nowhere.png").symlink_to(tmp_path / "none")
        (line.folder / "linked").symlink_to(tmp_path / "elsewhere")
        (line.folder / "circle").symlink_to(line.folder)
        (line.folder / "folder.png").mkdir()
        (line.folder / ".hidden.png").write_bytes(GOOD)
        os.mkfifo(line.folder / "pipe.png")
        (line.folder / "predicted").mkdir()
        (line.folder / "predicted/predictions.jsonl").touch()
        (line.folder / "predicted/a_map.png").write_bytes(GOOD)
        (line.folder / "predicted/a.png").write_bytes(GOOD)
        shown = [*named[:2], r"a\nb.png", named[3], "..." + "x" * 193 + ".png", "predicted/a.png"]
        line.waits_for(*shown)
        assert line.trouble == ""


@pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
def test_a_name_that_is_no_text_is_judged_too(run: Run) -> None:
    with run() as line:
        (line.folder / os.fsdecode(b"caf\xe9.png")).write_bytes(GOOD)
        line.waits_for(r"caf\udce9.png")
    assert [os.fsencode(name) for name in os.listdir(line.judged)] == [b"caf\xe9.png"]  # noqa: PTH208


def test_a_file_too_large_is_set_aside_unread(run: Run) -> None:
    with run(upload_bytes=len(GOOD) + 10) as line:
        (line.folder / "a.png").write_bytes(GOOD)
        (line.folder / "large.png").write_bytes(GOOD + bytes(11))
        line.waits_for("a.png", "large.png")
        assert "is the limit" in str(line.parts()[-1].line)
    assert files(line.judged) == {"a.png", "failed/large.png"}


# Faults ---------------------------------------------------------------------------------------------------------------


def test_a_queue_that_is_full_is_waited_for(run: Run, predictor: Predictor) -> None:
    with run(queue=1) as line:
        line.judge.enter()  # others have all the room
        for i in range(8):
            (line.folder / f"{i}.png").write_bytes(GOOD)
        time.sleep(3 * SETTLE_S)
        assert line.names() == []
        line.judge.leave()
        line.waits_for(*(f"{i}.png" for i in range(8)))


def test_files_wait_for_a_model_and_for_their_folder(tmp_path: Path, predictor: Predictor, run: Run) -> None:
    with run(has_model=False) as line:
        (line.folder / "a.png").write_bytes(GOOD)
        time.sleep(3 * SETTLE_S)
        assert files(line.folder) == {"a.png"}
        line.folder.rename(tmp_path / "away")  # as a network drive does
        wait_for(lambda: "cannot be read: No such file" in line.trouble, SOON_S)
        assert "folder tile" in line.service.troubles()
        line.judge.live.predictor = predictor
        line.judge.model_changed()
        (tmp_path / "away").rename(line.folder)
        line.waits_for("a.png")
        wait_for(lambda: line.trouble == "", SOON_S)


def test_a_disk_that_is_full_loses_no_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with run() as line:
        with monkeypatch.context() as patch:
            patch.setattr(Store, "accept", refuse)
            (line.folder / "a.png").write_bytes(GOOD)
            wait_for(lambda: "No space left on device" in line.trouble, SOON_S)
            assert line.service.troubles().keys() >= {"store", "folder tile"}
        line.waits_for("a.png")
        wait_for(lambda: line.trouble == "", SOON_S)
    assert files(line.judged) == {"a.png"}


def test_a_file_that_cannot_be_moved_is_judged_once_and_moved_later(run: Run, tmp_path: Path) -> None:
    with run() as line:
        line.judged.write_text("no folder")
        (line.folder / "a.png").write_bytes(GOOD)
        wait_for(lambda: "a.png is judged, and cannot be finished with" in line.trouble, SOON_S)
        line.judged.unlink()
        wait_for(lambda: files(line.judged) == {"a.png"}, SOON_S)
        wait_for(lambda: line.trouble == "", SOON_S)
        assert line.names() == ["a.png"]


def test_files_move_to_another_drive(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name == "a.png":
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with run() as line:
        (line.folder / "a.png").write_bytes(GOOD)
        line.waits_for("a.png")
    assert files(line.folder) == set()
    assert files(line.judged) == {"a.png"}
    assert (line.judged / "a.png").read_bytes() == GOOD


def test_a_file_that_breaks_its_reader_does_not_hold_up_others(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    read = folders.read_image

    def fail(content: bytes) -> Any:
        if content == BAD:
            raise MemoryError
        return read(content)

    monkeypatch.setattr(folders, "read_image", fail)
    with run(queue=1) as line:
        (line.folder / "a.png").write_bytes(BAD)
        (line.folder / "b.png").write_bytes(GOOD)
        wait_for(lambda: line.names() == ["b.png"], SOON_S)
        line.waits_for("a.png", "b.png")
    assert files(line.judged) == {"b.png", "failed/a.png"}


def test_a_file_that_may_not_be_read_is_said_and_waited_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with run(queue=1) as line:
        with monkeypatch.context() as patch:
            patch.setattr(folders, "_read", refuse)
            (line.folder / "a.png").write_bytes(GOOD)
            wait_for(lambda: "a.png cannot be read: Permission denied" in line.trouble, SOON_S)
        line.waits_for("a.png")


def test_folders_that_lie_in_one_another_are_refused(tmp_path: Path, predictor: Predictor) -> None:
    (tmp_path / "incoming").mkdir()
    one = write_product(tmp_path / "products", "tile", tmp_path / "none", '[watch]\nfolder = "../incoming"\n')
    for name, watch in (("lid", 'folder = "../incoming/lid"\n'), ("cap", 'folder = "../x"\nmove_to = "../incoming"\n')):
        other = write_product(tmp_path / "products", name, tmp_path / "none", f"[watch]\n{watch}")
        with pytest.raises(ValueError, match=r"tile\.toml: the watched folder .* lie in one another"):
            Service([one, other], tmp_path / "data")
    with pytest.raises(ValueError, match="the service's own folder"):
        Service([one], tmp_path / "incoming/data")


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_each_file_is_judged_once_whatever_kills_the_service(tmp_path: Path) -> None:
    watch = f'[watch]\nfolder = "../incoming"\nmove_to = "../judged"\nsettle_s = {SETTLE_S}\n'
    product = write_product(tmp_path / "products", "tile", tmp_path / "none", watch)
    (tmp_path / "incoming").mkdir()
    count = 100
    for i in range(count):
        (tmp_path / f"incoming/{i:03}.png").write_bytes(GOOD)
    for least in (5, 35):
        with serve_brightness(tmp_path / "data", product) as process:
            wait_for(lambda wanted=least: len(files(tmp_path / "judged")) >= wanted, SOON_S)  # type: ignore[misc]
            process.kill()
    assert len(files(tmp_path / "judged")) < count, "they came while there was more to do"
    with serve_brightness(tmp_path / "data", product) as process:
        wait_for(lambda: not files(tmp_path / "incoming"), 3 * SOON_S)
        assert process.communicate()[0] == "Ended\n"
    names = [f"{i:03}.png" for i in range(count)]
    assert sorted(files(tmp_path / "judged")) == names
    store = Store(tmp_path / "data")
    parts = store.parts("tile", limit=1000)
    store.close()
    assert sorted(str(part.name) for part in parts) == names
    assert {part.state for part in parts} == {"judged"}
