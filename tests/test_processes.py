"""What killed runs leave behind, locks, SIGTERM and forks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from uflow import files, processes
from uflow.detector import Detector
from uflow.files import atomic_write
from uflow.processes import LOCK, claim, exit_on_terminate, only_one, remove_orphans, remove_unclaimed

HOLD = "import sys, time; from pathlib import Path; from uflow.processes import claim; lock = claim(Path(sys.argv[1]))"


def make_old(path: Path, days: float = 2) -> Path:
    then = time.time() - days * 24 * 3600
    os.utime(path, (then, then))
    return path


def test_only_temporary_files_of_yesterday_are_removed(tmp_path: Path) -> None:
    token = ".uflow-0123456789abcdef"
    for name in (token, f"{token}.png", f"{token}-old", ".uflow-notes", "part.png"):
        make_old(tmp_path / name if (tmp_path / name).write_bytes(b"x") else tmp_path)
    (tmp_path / f"{token[:-1]}0.png").write_bytes(b"being written")
    folder = tmp_path / f"{token[:-1]}1"
    folder.mkdir()
    (folder / "network.onnx").write_bytes(b"x")
    make_old(folder)
    outside = tmp_path / "user.txt"
    outside.write_text("kept")
    (tmp_path / f"{token[:-1]}2").symlink_to(outside)
    os.utime(tmp_path / f"{token[:-1]}2", (0, 0), follow_symlinks=False)
    remove_orphans(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"{token}-old", ".uflow-notes", "part.png", f"{token[:-1]}0.png", "user.txt"}
    remove_orphans(tmp_path / "absent")


def test_writing_into_a_folder_removes_what_a_killed_run_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_swept", set())
    orphan = tmp_path / ".uflow-0123456789abcdef.json"
    orphan.write_bytes(b"half")
    make_old(orphan)
    with atomic_write(tmp_path / "a.json") as temporary:
        temporary.write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_folders_of_dead_processes_are_removed_and_no_others(tmp_path: Path) -> None:
    for name in ("dead", "alive", "young", "unclaimed"):
        (tmp_path / f"uflow-features-{name}").mkdir()
        (tmp_path / f"uflow-features-{name}/scale0.npy").write_bytes(b"x")
    dead, alive, young = (tmp_path / f"uflow-features-{name}" for name in ("dead", "alive", "young"))
    subprocess.run([sys.executable, "-c", f"{HOLD}; import os; os._exit(9)", dead / LOCK], check=False, timeout=60)
    held = claim(alive / LOCK)
    claim(young / LOCK).release()
    (young / LOCK).touch()
    (dead / LOCK).touch()
    for folder in (dead, alive, tmp_path / "uflow-features-unclaimed"):
        make_old(folder)
    others = tmp_path / "elsewhere"
    others.mkdir()
    (others / LOCK).touch()
    (tmp_path / "uflow-features-link").symlink_to(others)
    remove_unclaimed(tmp_path, "uflow-features-")
    held.release()
    left = {path.name.removeprefix("uflow-features-") for path in tmp_path.iterdir()}
    assert left == {"alive", "young", "unclaimed", "link", "elsewhere"}


def test_the_second_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    lock = tmp_path / "model.state.lock"
    code = [sys.executable, "-c", f"{HOLD}; print(flush=True); time.sleep(60)", lock]
    with subprocess.Popen(code, stdout=subprocess.PIPE) as first:
        try:
            assert first.stdout is not None
            first.stdout.readline()
            with pytest.raises(RuntimeError, match=r"a training is at work already, .* \(.*\.lock\): wait for it"):
                only_one(lock, "a training").__enter__()
        finally:
            first.kill()
    lock.touch()  # what a killed process leaves holds nobody up
    with only_one(lock, "a training"), pytest.raises(RuntimeError):
        only_one(lock, "a training").__enter__()
    assert not lock.exists()


def write_and_be_terminated(folder: Path) -> None:
    with exit_on_terminate(), atomic_write(folder / "model.uflow") as temporary:
        temporary.write_bytes(b"half")
        signal.raise_signal(signal.SIGTERM)


def test_terminated_it_removes_what_is_half_written(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        write_and_be_terminated(tmp_path)
    assert ended.value.code == 143
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before


def test_only_a_forked_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_loaded_in", {})
    processes.check_not_forked("onnxruntime")
    processes.check_not_forked("onnxruntime")
    monkeypatch.setattr(os, "getpid", lambda: -1)
    processes.check_not_forked("openvino")  # first run here
    with pytest.raises(RuntimeError, match="onnxruntime's threads did not come along"):
        processes.check_not_forked("onnxruntime")


LEFT_BEHIND = """
import os, sys, time, torch, uflow
from uflow import detector
torch.set_num_threads(4)
count = lambda: len(os.listdir("/proc/self/task"))
before = count()
uflow.load(sys.argv[1], "cpu")
end = time.monotonic() + 20
while count() > before and time.monotonic() < end:  # they end a moment later
    time.sleep(0.01)
loaded = count()
detector.load(sys.argv[1], "cpu")
print(before, loaded, count())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the threads of a process are counted in /proc")
def test_loading_a_model_leaves_no_thread_behind(tmp_path: Path, detector: Detector) -> None:
    """A team of torch's threads that idles slows down the one that runs the network, in whatever thread that is."""
    detector.save(tmp_path / "model.uflow")
    command = [sys.executable, "-c", LEFT_BEHIND, str(tmp_path / "model.uflow")]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    before, loaded, loaded_here = map(int, found.split())
    assert loaded == before < loaded_here
