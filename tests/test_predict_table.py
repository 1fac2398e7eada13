"""What `uflow predict` prints: a table for a terminal, JSON lines for a pipe, and bars in the way of neither."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from uflow import cli
from uflow.cli.table import TABLE_HEADER
from uflow.predictor import Predictor
from uflow.scoring import Evidence

Run = Callable[..., tuple[int, str, str]]


class Brightness:
    """A network whose energies are those of normal latents where an image is dark."""

    image_size, strides, latent_channels = (32, 32), (4, 8), (8, 8)

    def evidence(self, images: NDArray[np.uint8]) -> Evidence:
        maps = [images[:, ::stride, ::stride, 0].astype(np.float32) for stride in self.strides]
        return Evidence(maps)

    def phases(self) -> list[tuple[str, Callable[[Any], Any]]]:
        return [("network", self.evidence)]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Predict a dark image and one with a bright square, with standard output and error as terminals or not."""
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "COLUMNS"):
        monkeypatch.setenv(name, str(tmp_path) if name == "HOME" else "200")
    monkeypatch.setattr(cli.predict, "load_model", lambda *_: (None, Predictor(Brightness())))
    (tmp_path / "parts").mkdir()
    dark = np.full((32, 32, 3), 8, np.uint8)
    Image.fromarray(dark).save(tmp_path / "parts/dark.png")
    dark[8:20, 8:20] = 250
    Image.fromarray(dark).save(tmp_path / "parts/square.png")

    def call(*arguments: object, out: bool, err: bool = False) -> tuple[int, str, str]:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: out)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: err)
        monkeypatch.setattr(sys, "argv", ["uflow", "predict", "tile.uflow", "~/parts", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return (end.value.code or 0, *capsys.readouterr())

    yield call
    cli.common.set_quiet(False)


class LeavingReader(io.StringIO):
    """A pipe whose reader takes some lines and goes."""

    def __init__(self, lines: int) -> None:
        super().__init__()
        self.lines = lines

    def flush(self) -> None:
        if self.getvalue().count("\n") > self.lines:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def images_of(lines: str) -> list[tuple[str, bool]]:
    return [(Path(each["image"]).name, each["is_anomalous"]) for each in map(json.loads, lines.splitlines())]


BOTH = [("dark.png", False), ("square.png", True)]


def test_a_pipe_is_given_json(run: Run) -> None:
    code, out, err = run(out=False)
    assert (code, images_of(out)) == (0, BOTH)
    assert "1 of 2 images have a detected region" in err
    assert "Predicting" not in err  # no bar where there is no terminal


def test_a_terminal_is_given_a_table(run: Run, tmp_path: Path) -> None:
    code, out, _ = run(out=True)
    assert code == 0
    header, dark, square = out.splitlines()
    assert header == TABLE_HEADER
    assert (dark.split()[0], square.split()[0]) == ("no", "yes")
    assert square.split()[2:] == ["-", square.split()[3], "1", str(tmp_path / "parts/square.png")]
    assert len(square) == len(header) - len("image") + len(str(tmp_path / "parts/square.png"))


def test_an_image_that_is_skipped_has_a_line_and_an_exit_code(run: Run, tmp_path: Path) -> None:
    (tmp_path / "parts/torn.png").write_bytes(b"no image")
    code, out, err = run("--on-error", "skip", out=True)
    assert code == 3
    assert [line.split()[0] for line in out.splitlines()] == ["flagged", "no", "yes", "error"]
    assert "torn.png" in out.splitlines()[-1]
    assert "1 could not be judged" in err
    code, out, err = run("--on-error", "skip", out=False)
    assert (code, len(out.splitlines())) == (3, 3)
    assert "torn.png" in json.loads(out.splitlines()[-1])["error"]
    assert run(out=True)[0] == 1


def test_json_on_a_terminal_too(run: Run) -> None:
    code, out, _ = run("--json", out=True)
    assert (code, images_of(out)) == (0, BOTH)


def test_bars_leave_a_pipe_alone(run: Run) -> None:
    """Bars take what is printed on standard output, to show it above them: not what a pipe is to have."""
    code, out, err = run(out=False, err=True)
    assert (code, images_of(out)) == (0, BOTH)
    assert "Predicting" in err


def test_quiet(run: Run) -> None:
    code, out, err = run("--quiet", out=False, err=True)
    assert (code, images_of(out), err) == (0, BOTH, "")


def test_the_folder_has_json_whatever_is_printed(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("--output", "results", out=True)
    assert (code, out.splitlines()[0]) == (0, TABLE_HEADER)
    assert images_of((tmp_path / "results/predictions.jsonl").read_text()) == BOTH


# An output that takes nothing -----------------------------------------------------------------------------------------


def test_results_that_nobody_takes_are_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a program behind the pipe dies: who judges parts by the lines must not read "all is well"."""
    monkeypatch.setattr(sys, "stdout", pipe := LeavingReader(1))
    code, _, err = run(out=False)
    assert code == 1
    assert pipe.getvalue().count("\n") == 2  # the second went nowhere
    assert "standard output took the results of 1 of 2 images, then nothing: Broken pipe" in err
    monkeypatch.setattr(sys, "stdout", LeavingReader(2))
    assert run(out=False)[0] == 0
    monkeypatch.setattr(sys, "stdout", LeavingReader(0))
    assert run(out=True)[0] == 1


@pytest.mark.parametrize("lines", [0, 1])
def test_what_goes_into_files_is_finished(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: int
) -> None:
    monkeypatch.setattr(sys, "stdout", LeavingReader(lines))
    code, _, err = run("--output", "results", "--report", "page.html", out=False)
    assert code == 1
    assert err.splitlines()[-1] == "uflow: error: standard output did not take all results: Broken pipe"
    assert images_of((tmp_path / "results/predictions.jsonl").read_text()) == BOTH
    assert (tmp_path / "results/square_mask.png").is_file()
    assert (tmp_path / "page.html").is_file()


def test_messages_that_nobody_takes_are_no_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", LeavingReader(0))
    code, out, _ = run(out=False)
    assert (code, images_of(out)) == (0, BOTH)


def test_the_exit_code_of_a_true_pipe() -> None:
    """The end of a program flushes once more what a pipe did not take: that must say nothing, and change no code."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "uflow", "weights", "list", "--json"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    said = "uflow: error: standard output did not take all results: Broken pipe\n"
    assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    """What a library prints must not go into the next file that was opened."""
    code = (
        "import os; from contextlib import ExitStack; from uflow.cli.app import _prepare_streams\n"
        "with ExitStack() as stack:\n"
        " _prepare_streams(stack)\n"
        " file = open('results', 'w')\n"
        " os.write(1, b'noise'); os.write(2, b'noise')\n"
        " file.write('results')"
    )
    command = 'exec "$0" -c "$1" <&- >&- 2>&-'
    subprocess.run(["sh", "-c", command, sys.executable, code], check=True, cwd=tmp_path)
    assert (tmp_path / "results").read_text() == "results"


def test_a_failed_image_is_shown_once_on_a_terminal(run: Run, tmp_path: Path) -> None:
    (tmp_path / "parts/torn.png").write_bytes(b"no image")
    for form in ((), ("--json",)):
        _, out, err = run("--quiet", "--on-error", "skip", *form, out=True, err=True)
        assert (out + err).count("its content is no known image format") == 1
        assert "torn.png" in out  # in its place among the others
        _, out, err = run("--quiet", *form, out=True, err=True)
        assert (out + err).count("its content is no known image format") == 1
        assert "uflow: error: cannot read" in err
    _, out, err = run("--quiet", "--on-error", "skip", out=True, err=False)  # messages into a file
    assert "skipped: cannot read" in err
