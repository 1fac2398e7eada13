"""Studies and comparisons as tasks of Ray: the tables of a run without, on after a kill, failures by their names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from conftest import call_command, wait_for
from test_study import make_data

ray = pytest.importorskip("ray", reason='needs Ray: pip install "uflow-ad[ray]"')
from uflow.interop.cluster import Needs, run_tasks  # noqa: E402 (it needs Ray)

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_thread", "ray_cluster")]  # Ray's own

TINY = ("--image-size", "64", "--epochs", "1", "--alpha", "0.3", "--paper-map")


@pytest.fixture
def data(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_data(dataset, tmp_path / "data")
    return Path("data")


@pytest.fixture
def uflow_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    return partial(call_command, monkeypatch, capsys)


def without_cost(table: str) -> str:
    """A table without seconds, milliseconds and megabytes, which differ from run to run, and the folder's name."""
    return re.sub(r" *\d+ (s|ms|MB) ", "", re.sub(r"(here|ray)(?=/)", "FOLDER", table))


def test_a_study_has_the_tables_of_one_without(
    data: Path, uflow_command: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (data / "tile/train/good/00.png").write_bytes(b"no image at all")  # that category fails, and the other does not
    found = {}
    for engine in ("here", "ray"):
        code, out, err = uflow_command("study", data, "-o", engine, "--engine", engine, *TINY)
        assert code == 1  # a category failed
        assert re.search(r"^grating: trained, evaluated; pixel AUROC ", err, re.MULTILINE)
        (failure,) = re.findall("^tile: failed: .*", err, re.MULTILINE)
        assert "data/tile/train/good/00.png" in failure
        found[engine] = without_cost(out), failure
    assert found["here"] == found["ray"]
    logged = [message for message in caplog.messages if "held out: images at random" in message]
    assert logged[1] == f"grating: {logged[0]}"  # what the task has logged
    again = uflow_command("study", data, "-o", "ray", "--engine", "ray", "--categories", "grating", *TINY)
    assert "grating: already evaluated" in again[2]
    assert uflow_command("study", data, "-o", "here", "--categories", "grating", *TINY)[1] == again[1].replace(
        "ray/", "here/"
    )


@pytest.mark.slow
def test_a_killed_study_goes_on(data: Path, uflow_command: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The command is killed while its trainings are at work on a cluster that stays."""
    options = [*map(str, ("study", data, "-o", "out", "--engine", "ray", *TINY)), "--epochs", "4"]
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    process = subprocess.Popen([sys.executable, "-m", "uflow", *options], env=environment)
    try:
        wait_for(lambda: any(Path("out").glob("models/*.uflow.state")), seconds=300)
    finally:
        process.kill()
        process.wait()
    assert not Path("out/results.txt").exists()
    code, _, err = uflow_command(*options)
    assert code == 0, err
    assert re.search(r"(grating|tile)\.uflow\.state after epoch \d+$", caplog.text, re.MULTILINE)
    assert not list(Path("out").rglob("*.uflow.state*"))


MADE = """
import os

def bright(images, settings, seed):
    return (32, 48), lambda batch: (batch.mean(1), batch.mean(1).amax((1, 2)))

def killed(images, settings, seed):
    os.kill(os.getpid(), 9)
"""


@pytest.mark.slow  # the study before it takes the same way
def test_a_comparison_has_the_tables_of_one_without(data: Path, uflow_command: Any) -> None:
    Path("made.py").write_text(MADE)
    options = ("compare", data, "--categories", "tile", "--backbone", "resnet18")
    found = {}
    for engine, methods in (("here", "made:bright,made:killed"), ("ray", "made:killed,made:bright")):
        code, out, _ = uflow_command(*options, "--methods", methods, "-o", engine, "--engine", engine)
        assert code == 1
        found[engine] = sorted(line for line in without_cost(out).splitlines() if "seed 0" not in line)
    assert found["here"] == found["ray"]
    assert "failed: its process was ended by signal SIGKILL: out of memory? (logs/tile-made.killed-0.log)" in out
    assert "1/2 tile, made:killed, seed 0: its process was ended" in out
    assert "2/2 tile, made:bright, seed 0: done" in out
    code, again, _ = uflow_command(*options, "--methods", "made:bright", "-o", "ray", "--engine", "ray")
    assert code == 0
    assert "seed 0" not in again  # nothing is measured again
    rows = [line for line in again.splitlines() if "made:bright" in line]
    assert rows == [line for line in out.splitlines() if "made:bright" in line and "seed 0" not in line]


DIE = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
DIE_ONCE = f"""
from pathlib import Path
if not Path("was here").exists():
    Path("was here").touch()
    {DIE}
"""
WARN = "import logging, torch; logging.getLogger('uflow').warning('%d threads', torch.get_num_threads())"


def test_each_task_ends_by_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tasks = {"wrong": partial(int, "seven"), "dies once": partial(exec, DIE_ONCE), "dies": partial(exec, DIE)}
    found = {done.name: done for done in run_tasks({**tasks, "warns": partial(exec, WARN)}, Needs(threads=2))}
    assert found["wrong"].error == "ValueError: invalid literal for int() with base 10: 'seven'"
    assert found["dies once"].error == ""
    assert found["dies"].error == "its process was killed, 3 times: out of memory?"
    assert caplog.messages == ["warns: 2 threads"]


@pytest.mark.parametrize("needs", [("--threads", 3), ("--gpus", 1), ("--threads", 0)])
def test_what_no_machine_has_is_said_before_the_work(needs: tuple[str, int], data: Path, uflow_command: Any) -> None:
    code, _, err = uflow_command("study", data, "-o", "out", "--engine", "ray", *TINY, *needs)
    assert (code, err.count("\n")) == (1, 1)
    assert "a task needs " in err
    assert not any(Path("out").rglob("*"))
    code, _, err = uflow_command("study", data, "-o", "out", *TINY, *needs)
    assert (code, err) == (1, "uflow: error: --threads and --gpus are of tasks of ray: add --engine ray\n")
