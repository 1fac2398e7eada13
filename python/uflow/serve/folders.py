"""A product's watched folder: files are judged when they are whole, each once, and moved or left."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent import futures
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from ..connections import WatchedFolder
from ..files import atomic_write, one_line
from ..images import open_image, read_image
from ..listing import is_image_name, is_result
from .database import STORE_ERRORS
from .inbox import SeenFile
from .judge import Busy, Job, Judge
from .parts import Part
from .store import Store
from .uploads import MAX_NAME, SUFFIXES

__all__ = ["FolderWatcher"]

log = logging.getLogger("uflow")

LOOK_EVERY_S = 0.5  # into the folder; a slow drive is looked at half the time at most
GIVE_UP_S = 10.0  # for which a file that is no whole image must not have changed: then it is broken
TRY_AGAIN_S = 5.0  # after which a file that could not be moved is, and the store that took none
ON_THEIR_WAY = 2  # files at a time: one is read while the other is judged, and other senders have room
WAIT_S = 0.2  # between looks at whether the service ends
SUFFIX_OF_NAME = {".jpeg": ".jpg", ".tiff": ".tif"}


@dataclass(frozen=True)
class _Look:
    """How a file was when it was first seen so, and when that was, of `time.monotonic`."""

    file: SeenFile
    since: float


class _NotNow(Exception):
    """A file has changed while it was read, or is gone."""


class FolderWatcher:
    """Watches a folder in a thread of its own.

    It looks again and again, which works on every drive. A file is a part as soon as the store has it, and what is
    still to be done with the file follows from there: a kill at any moment loses none, and judges none twice.

    Attributes:
        trouble: what keeps files from being judged or moved; None where all is well.
        waiting: files that are not yet judged.

    Args:
        settings: which folder, and what becomes of its files.
        judge: of the product.
        store: knows which files are parts already.
        max_bytes: of an image file.
    """

    def __init__(self, settings: WatchedFolder, judge: Judge, store: Store, max_bytes: int) -> None:
        self.settings, self.judge, self.store, self.max_bytes = settings, judge, store, max_bytes
        self.trouble: str | None = None
        self.waiting = 0
        self._targets = {_absolute(path) for path in (settings.move_to, settings.failed_to) if path is not None}
        self._looks: dict[str, _Look] = {}  # of files that are no parts yet
        self._done: dict[str, SeenFile] = {}  # files that stay where they are
        self._try_again: dict[str, float] = {}  # files that could not be moved
        self._on_way: deque[tuple[SeenFile, Job]] = deque()
        self._troubles: list[str] = []
        self._has_said_links = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"uflow-folder-{judge.name}")

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End when the files on their way are judged; the judge is to be stopped after this."""
        self._ending.set()
        self._thread.join()

    # The thread -------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        pause = 0.0
        while not self._ending.wait(pause):
            self._troubles = []
            began = time.monotonic()
            try:
                files = self._list()
                pause = max(LOOK_EVERY_S, time.monotonic() - began)
                self._take(files)
            except STORE_ERRORS as error:
                self._troubles.append(f"files wait until the disk takes them: {one_line(error)}")
                pause = TRY_AGAIN_S
            except Exception as error:  # nothing that lies in a folder ends the service
                log.exception("%s: a watched folder", self.judge.name)
                self._troubles.append(f"a mistake of the service: {one_line(error)}")
                pause = TRY_AGAIN_S
            self._say_troubles()
        with suppress(*STORE_ERRORS):
            self._finish_those_on_way(0)

    def _say_troubles(self) -> None:
        found = self._troubles
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        trouble = f"{found[0]}{more}" if found else None
        if trouble is not None and trouble != self.trouble:
            log.error("%s: the watched folder: %s", self.judge.name, trouble)
        self.trouble = trouble

    # What is there ----------------------------------------------------------------------------------------------------

    def _list(self) -> list[SeenFile]:
        """The files that may be images, in the order in which they were written."""
        found: list[SeenFile] = []
        folders = [self.settings.folder]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False) and self._is_to_be_watched(entry):
                            folders.append(Path(entry.path))
                        else:
                            found += self._look_at(entry)
            except OSError as error:
                if folder == self.settings.folder or not isinstance(error, FileNotFoundError):
                    self._troubles.append(f"{folder} cannot be read: {one_line(error)}")
        return sorted(found, key=lambda file: (file.mtime_ns, file.path))

    def _is_to_be_watched(self, folder: os.DirEntry[str]) -> bool:
        return not folder.name.startswith(".") and _absolute(Path(folder.path)) not in self._targets

    def _look_at(self, entry: os.DirEntry[str]) -> Iterator[SeenFile]:
        """A file as it is now, where it may be an image; links are not followed."""
        path = Path(entry.path)
        if not is_image_name(path) or is_result(self.settings.folder, path):
            return
        if entry.is_symlink():
            if not self._has_said_links:
                log.warning("%s: links in a watched folder, such as %s, are left out", self.judge.name, path)
            self._has_said_links = True
            return
        try:
            found = entry.stat(follow_symlinks=False)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                self._troubles.append(f"{path} cannot be read: {one_line(error)}")
            return
        if stat.S_ISREG(found.st_mode):
            yield SeenFile(os.fspath(path.relative_to(self.settings.folder)), found.st_size, found.st_mtime_ns)

    # What becomes of it -----------------------------------------------------------------------------------------------

    def _take(self, files: list[SeenFile]) -> None:
        """Judge files that are whole, and finish with those that are judged."""
        present = {file.path for file in files}
        for kept in (self._looks, self._done, self._try_again):
            for gone in kept.keys() - present:
                del kept[gone]
        files = [file for file in files if self._done.get(file.path) != file]
        self.waiting = len(files)
        for file in files:
            if self._ending.is_set():
                return
            known = self.store.inbox.find(self.judge.name, file)
            if known is None:
                if self._stands_still(file):
                    self._accept(file)
            elif known.done:
                self._done[file.path] = file
                self.waiting -= 1
            else:
                self._finish(file, known.part)
        self._finish_those_on_way(0)

    def _stands_still(self, file: SeenFile) -> bool:
        """Whether a file has not changed for as long as it takes to be believed whole."""
        look = self._looks.get(file.path)
        if look is None or look.file != file:
            look = self._looks[file.path] = _Look(file, time.monotonic())
            return False
        return time.monotonic() - look.since >= self.settings.settle_s

    def _accept(self, file: SeenFile) -> None:
        """Make a file a part, as soon as there is room; one that is not whole may be so later."""
        self._finish_those_on_way(ON_THEIR_WAY - 1)
        if self.judge.serving is None or not self._enter():
            return
        with ExitStack() as undone:
            undone.callback(self.judge.leave)
            try:
                content, suffix, refused = self._read_image(file)
            except _NotNow:
                return
            except OSError as error:
                self._troubles.append(f"{_shown(file)} cannot be read: {one_line(error)}")
                return
            stood_s = time.monotonic() - self._looks[file.path].since
            if refused is not None and stood_s < max(GIVE_UP_S, self.settings.settle_s):
                return
            job = self.judge.submit_file(_shown(file), content, suffix, file, refused)
            undone.pop_all()
        del self._looks[file.path]
        self._on_way.append((file, job))

    def _enter(self) -> bool:
        """Wait for room in the judge's queue; False where the service ends before there is some."""
        while not self._ending.is_set():
            with suppress(Busy):
                self.judge.enter(WAIT_S)
                return True
        return False

    def _read_image(self, file: SeenFile) -> tuple[bytes, str, Exception | None]:
        """The content of a file, the suffix of its format, and why it is no whole image; None where it is one.

        Raises:
            OSError: it cannot be read.
            _NotNow: it has changed, or is gone.
        """
        suffix = Path(file.path).suffix.lower()
        suffix = SUFFIX_OF_NAME.get(suffix, suffix)
        if file.size > self.max_bytes:
            return b"", suffix, ValueError(f"the file has {file.size} bytes, and {self.max_bytes} is the limit")
        content = _read(self.settings.folder / file.path, file)
        try:
            with open_image(content) as image:
                suffix = SUFFIXES[image.format or ""]
            read_image(content)
        except Exception as error:  # whatever is wrong with it, the next file is judged
            return content, suffix, error
        return content, suffix, None

    def _finish_those_on_way(self, left: int) -> None:
        """Wait until no more than some files are on their way, and finish with the others."""
        while len(self._on_way) > left:
            file, job = self._on_way.popleft()
            futures.wait([job.done])
            assert job.part is not None
            self._finish(file, job.part.id)

    def _finish(self, file: SeenFile, number: int) -> None:
        """Write what became of a file, and move it, where that is asked; nothing as long as it is not judged."""
        if self._try_again.get(file.path, 0.0) > time.monotonic():
            return
        part = self.store.part(number)
        if part is None or part.state == "accepted":
            return
        target = self.settings.failed_to if part.state == "failed" else self.settings.move_to
        try:
            if _is_still(self.settings.folder / file.path, file):
                self._write_and_move(file, part, target)
        except OSError as error:
            self._try_again[file.path] = time.monotonic() + TRY_AGAIN_S
            self._troubles.append(f"{_shown(file)} is judged, and cannot be finished with: {one_line(error)}")
            return
        if target is None:
            self.store.inbox.set_done(self.judge.name, file)
            self._done[file.path] = file
        else:
            self.store.inbox.forget(self.judge.name, file)
        self.waiting -= 1

    def _write_and_move(self, file: SeenFile, part: Part, target: Path | None) -> None:
        source = self.settings.folder / file.path
        goal = source if target is None else _free(target / file.path, part.id)
        goal.parent.mkdir(parents=True, exist_ok=True)
        if self.settings.results:
            with atomic_write(goal.with_name(f"{goal.name}.json")) as temporary:
                temporary.write_text(f"{part.line}\n")
        if goal != source:
            _move(source, goal)


def _absolute(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 (takes out .., and does not ask the disk)


def _shown(file: SeenFile) -> str:
    """The name of a file as a part's: one line, of as many characters as a name may have."""
    text = Path(file.path).as_posix()
    text = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    return text if len(text) <= MAX_NAME else f"...{text[-(MAX_NAME - 3) :]}"


def _is_still(path: Path, file: SeenFile) -> bool:
    """Whether a file is there, and is as it was."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return (found.st_size, found.st_mtime_ns) == (file.size, file.mtime_ns)


def _read(path: Path, file: SeenFile) -> bytes:
    """The content of a file as it was; `_NotNow` where it has changed. What is no regular file is not waited for."""
    flags = [getattr(os, name, 0) for name in ("O_RDONLY", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")]
    try:
        descriptor = os.open(path, sum(flags))
    except FileNotFoundError:
        raise _NotNow from None
    with os.fdopen(descriptor, "rb") as opened:
        before = os.fstat(descriptor)
        content = opened.read(file.size + 1) if stat.S_ISREG(before.st_mode) else b""
        after = os.fstat(descriptor)
    for found in (before, after):
        if (found.st_size, found.st_mtime_ns) != (file.size, file.mtime_ns) or len(content) != file.size:
            raise _NotNow
    return content


def _free(path: Path, part: int) -> Path:
    """A path, or where something lies there one with the part's number in it."""
    return path.with_name(f"{path.stem}.{part}{path.suffix}") if os.path.lexists(path) else path


def _move(source: Path, goal: Path) -> None:
    """Move a file, also to another drive: there it is whole or not at all."""
    try:
        source.rename(goal)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with atomic_write(goal) as temporary:
            shutil.copy2(source, temporary)
        try:
            source.unlink()
        except OSError:
            goal.unlink()
            raise
