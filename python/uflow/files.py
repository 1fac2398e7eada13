"""Files: written whole or not at all, told apart by their SHA-256."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .processes import remove_orphans

__all__ = ["BoundedReader", "FileStamp", "PathLike", "atomic_write", "one_line", "read_toml", "sha256", "some_names"]

PathLike = str | os.PathLike[str]

_swept: set[Path] = set()


def one_line(error: BaseException) -> str:
    """The error's own words on one line, without the path and the number that OSError adds."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def read_toml(path: Path) -> dict[str, Any]:
    """What a TOML file holds.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no TOML; one line that begins with its name.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors of Windows begin with a mark
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not TOML: {' '.join(str(error).split())}") from None


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    import hashlib  # a hundredth of a second, that --help need not wait for

    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


class BoundedReader(io.BufferedReader):
    """A file of which no more is asked for than it has: whoever believes a length in it makes room for that."""

    def read(self, size: int | None = -1) -> bytes:
        """Up to `size` bytes; all where it is negative or None."""
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, max(os.fstat(self.fileno()).st_size - self.tell(), 0))
        return super().read(size)


@dataclass(frozen=True)
class FileStamp:
    """A file as it was at one time: whether it is still the same can be told later without having read it.

    Attributes:
        path: where it lies.
        size: in bytes.
        mtime_ns: when it was last written, in nanoseconds.
    """

    path: Path
    size: int
    mtime_ns: int

    @classmethod
    def now(cls, path: Path) -> FileStamp | None:
        """The file as it is now; None where it is not there."""
        try:
            found = path.expanduser().stat()
        except OSError:
            return None
        return cls(path, found.st_size, found.st_mtime_ns)

    def sha256(self) -> str | None:
        """SHA-256 of the file, in hexadecimal; None where it has changed since, or is gone."""
        try:
            digest = sha256(self.path.expanduser())
        except OSError:
            return None
        return digest if FileStamp.now(self.path) == self else None


def some_names(names: Collection[object]) -> str:
    """The first names, for messages."""
    return ", ".join([repr(name) for name in names][:3]) + (", ..." if len(names) > 3 else "") if names else "nothing"


def _sweep(folder: Path) -> None:
    """Remove what killed runs left in a folder, once a process."""
    if folder not in _swept:
        _swept.add(folder)
        remove_orphans(folder)


@contextmanager
def atomic_write(path: PathLike) -> Iterator[Path]:
    """Write a file whole or not at all: yields a temporary path in the same folder and moves it to `path` at the end.

    The temporary name keeps the suffix, for writers that look at it. If anything fails, it is removed and a file
    that was there before stays as it was. Raises OSError, one line with the path and the reason (no permission, disk
    full, no such folder), for every OSError; other errors pass unchanged.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with atomic_write(folder / "model.json") as temporary:
    ...     _ = temporary.write_text("{}")
    >>> [file.name for file in folder.iterdir()]
    ['model.json']
    """
    path = Path(path)
    _sweep(path.absolute().parent)
    temporary = path.with_name(f".uflow-{os.urandom(8).hex()}{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # else a power cut can leave the new name on an empty file
        temporary.replace(path)
    except OSError as error:
        failure = OSError(f"cannot write {path}: {one_line(error)}")
        failure.errno = error.errno
        raise failure from error
    finally:
        with suppress(OSError):  # gone already when all went well
            temporary.unlink()
