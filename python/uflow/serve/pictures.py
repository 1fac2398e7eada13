"""The images of parts as files: written before a part is accepted, kept by the product's rules, pruned."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["PictureFolder"]

FOLDER_SIZE = 1000  # pictures in a folder
NAME = re.compile(r"(\d{9,})\.(?:png|jpg|bmp|tif|webp)")  # the part's id; nothing that a sender said


class PictureFolder:
    """A folder of images, named by the part's id: ``000000012/000012345.png``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, part: int, content: bytes, suffix: str) -> str:
        """Write an image, and return its name below the folder. It survives a kill, and after `sync` a power cut.

        Raises:
            OSError: it cannot be written; nothing is left of it.
        """
        name = f"{part // FOLDER_SIZE:09}/{part:09}{suffix}"
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        try:
            path.write_bytes(content)
        except OSError:
            self.remove(name)
            raise
        return name

    def sync(self, name: str) -> None:
        """Wait until an image is on the disk; all is well where it is gone."""
        with suppress(FileNotFoundError), (self.folder / name).open("rb+") as file:
            os.fsync(file.fileno())

    def read(self, name: str) -> bytes | None:
        """An image, whole; None where it is gone."""
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        """Remove an image, and its folder where that was the last one; all is well where it is gone already."""
        path = self.folder / name
        with suppress(OSError):
            path.unlink()
            path.parent.rmdir()

    def latest(self) -> Iterator[tuple[int, str]]:
        """The part and the name of each image in the last two folders: where a run that was killed left some."""
        folders = sorted(path for path in self.folder.iterdir() if path.is_dir())[-2:]
        for path in (path for folder in folders for path in folder.iterdir()):
            if found := NAME.fullmatch(path.name):
                yield int(found[1]), f"{path.parent.name}/{path.name}"
