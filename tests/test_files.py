"""Files are written whole or not at all, and told apart by their SHA-256."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from uflow.files import atomic_write, one_line, sha256, some_names


def says_one_line(error: pytest.ExceptionInfo[BaseException]) -> None:
    assert "\n" not in str(error.value)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path, content: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def test_atomic_write_replaces_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "model.uflow"
    path.write_text("old")
    with atomic_write(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == path.suffix
        temporary.write_text("new")
        reader = path.open()
    with reader:
        assert reader.read() == "old"  # who was reading it reads it to its end: the old file was not written over
    assert path.read_text() == "new"
    assert files_in(tmp_path) == ["model.uflow"]


@pytest.mark.parametrize("failure", [RuntimeError("no"), KeyboardInterrupt()])
def test_atomic_write_keeps_the_old_file_when_the_writer_fails(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "model.uflow"
    path.write_text("old")
    with pytest.raises(type(failure)), atomic_write(path) as temporary:  # noqa: PT012
        temporary.write_text("half of the n")
        raise failure
    assert path.read_text() == "old"
    assert files_in(tmp_path) == ["model.uflow"]


def test_atomic_write_on_a_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: the write really stops half-way."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "model.uflow"
    path.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match=rf"^cannot write {path}: File too large$") as error:
            write(path, bytes(20_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.EFBIG
    says_one_line(error)
    assert path.read_text() == "old"
    assert files_in(tmp_path) == ["model.uflow"]


def test_atomic_write_where_it_cannot(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"^cannot write .*x\.json: No such file or directory$"):
        write(tmp_path / "gone" / "x.json", b"{}")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"^cannot write .*folder: ") as error:
        write(tmp_path / "folder", b"{}")
    says_one_line(error)
    with pytest.raises(OSError, match=r"cannot write .*x\.txt: No such file"), atomic_write(tmp_path / "x.txt"):
        pass  # a writer that wrote nothing
    assert files_in(tmp_path) == ["folder"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_atomic_write_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OSError, match=r"cannot write .*x\.txt: Permission denied"):
            write(tmp_path / "x.txt", b"x")
    finally:
        tmp_path.chmod(0o700)


def test_one_line_of_an_error() -> None:
    assert one_line(OSError(errno.ENOSPC, "No space left on device", "x")) == "No space left on device"
    assert one_line(ValueError("two\n  lines")) == "two lines"
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_sha256_of_a_file_of_any_length(tmp_path: Path) -> None:
    for content in (b"", b"x", bytes(3 << 20)):
        (tmp_path / "x").write_bytes(content)
        assert sha256(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_some_names() -> None:
    assert some_names([]) == "nothing"
    assert some_names(["a", "b", "c"]) == "'a', 'b', 'c'"
    assert some_names("abcd") == "'a', 'b', 'c', ..."
