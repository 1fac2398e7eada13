"""Several processes that train together: the losses of one, own shares only, and an end in one line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import train_tiny
import uflow
import uflow.cli
from conftest import one_line, wait_for
from uflow import distributed
from uflow.product import Product
from uflow.roi import RegionOfInterest
from uflow.training import TrainingError, TrainingSettings

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(sys.platform == "win32", reason="torch has no gloo there"),
]

HERE = Path(__file__).parent
TINY = ("--image-size", "64", "--epochs", "3", "--batch-size", "8", "--alpha", "0.3", "--device", "cpu")


@pytest.fixture
def good(dataset: Path) -> Path:
    return dataset / "train/good"


def start(*command: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", *map(str, command)]
    return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_features_are_streamed_by_each_process_its_share(good: Path, tmp_path: Path) -> None:
    """By torchrun; one of two processes has no image of every second batch."""
    alone = train_tiny.learn(good)
    process = start("torch.distributed.run", "--nproc-per-node", 2, HERE / "train_tiny.py", good, tmp_path / "found")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert err.count("they are computed anew in each epoch") == 1  # the first one's words
    found = json.loads((tmp_path / "found").read_text())
    for name in ("train", "held out", "shift"):
        assert found[name] == pytest.approx(alone[name], rel=1e-5)
    assert found["train"][2] < found["train"][0]
    stand_ins = 3  # for the image that there is not, one an epoch
    assert found["all reads"] == alone["reads"] + stand_ins
    assert found["all reads"] - found["reads"] < 0.55 * alone["reads"]


@pytest.mark.slow  # two trainings of two processes; those that stay here train as well
@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="finds the processes in /proc")
def test_a_killed_process_ends_all_and_the_same_command_goes_on(good: Path, tmp_path: Path) -> None:
    command = ("uflow", "train", good, "-o", tmp_path / "two.uflow", *TINY, "--devices", 2)
    state = tmp_path / "two.uflow.state.augmented"
    launcher = start(*command)
    wait_for(state.exists, seconds=300)
    (second,) = [pid for pid in children(launcher.pid) if b"\0RANK=1\0" in environment_of(pid)]
    os.kill(second, signal.SIGKILL)
    out, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    assert "Wrote" not in out
    told = [line for line in err.splitlines() if not line.startswith("INFO")]
    assert told == [
        "uflow: error: process 2 of 2 was ended by signal SIGKILL: out of memory? "
        "The same command goes on from the last whole epoch"
    ]
    wait_for(lambda: not children(launcher.pid), seconds=30)

    launcher = start(*command)
    out, err = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, err
    assert out.splitlines() == [
        f"Going on with the training that {tmp_path / 'two.uflow.state'} holds",
        f"Wrote {tmp_path / 'two.uflow'}: 3 epochs. Next: uflow predict {tmp_path / 'two.uflow'} IMAGES",
    ]
    assert len(re.findall(r"^INFO +held out: ", err, re.MULTILINE)) == 1  # the first one's words
    assert err.count("after epoch 3") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["two.uflow"]

    settings = TrainingSettings(epochs=3, batch_size=8)
    alone = uflow.Detector.fit(good, image_size=64, settings=settings, alpha=0.3, device="cpu", progress=False)
    found = uflow.load(tmp_path / "two.uflow", device="cpu")
    for name in ("train_nll", "held_out_nll", "learning_rate"):
        expected = [epoch[name] for epoch in alone.history]
        assert [epoch[name] for epoch in found.history] == pytest.approx(expected, rel=1e-5)
    parts = sorted((good.parent.parent / "test").rglob("*.png"))
    for one, two in zip(alone.predict(parts), found.predict(parts), strict=True):
        assert two.score == pytest.approx(one.score, abs=1e-4)
        assert two.verdict == one.verdict


@pytest.mark.slow
def test_a_region_of_interest_is_learnt_as_by_one_process(good: Path, tmp_path: Path) -> None:
    """Cells outside leave energies, moments, memory and calibration of every process."""
    left = RegionOfInterest((80, 96), polygons=(((0, 0), (50, 0), (44, 80), (0, 80)),))
    product = Product("two", tmp_path / "two.uflow", alpha=0.3, roi=left)
    (tmp_path / "product.toml").write_text(product.to_toml(tmp_path))
    settings = TrainingSettings(epochs=1, batch_size=8)
    options = ("--image-size", "64", "--epochs", "1", "--batch-size", "8", "--device", "cpu", "--devices", 2)
    process = start("uflow", "train", good, "--product", tmp_path / "product.toml", *options)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    found = uflow.load(tmp_path / "two.uflow", device="cpu")
    alone = uflow.Detector.fit(
        good, image_size=64, settings=settings, alpha=0.3, roi=left, device="cpu", progress=False
    )
    assert left.is_same(found.predictor.roi)
    for name in ("train_nll", "held_out_nll"):
        expected = [epoch[name] for epoch in alone.history]
        assert [epoch[name] for epoch in found.history] == pytest.approx(expected, rel=1e-5)
    assert found.threshold.minima == pytest.approx(alone.threshold.minima, abs=1e-3)
    ours, theirs = (each.network.memory.state_dict().values() for each in (found, alone))
    for vectors, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(vectors, expected)
    parts = sorted((good.parent.parent / "test").rglob("*.png"))
    for one, two in zip(alone.predict(parts), found.predict(parts), strict=True):
        assert two.score == pytest.approx(one.score, abs=1e-4)
        assert two.verdict == one.verdict


def children(parent: int) -> list[int]:
    """Processes of a process, and of theirs."""
    found = []
    for task in Path(f"/proc/{parent}/task").glob("*/children"):
        for pid in map(int, task.read_text().split()):
            found += [pid, *children(pid)]
    return found


def environment_of(pid: int) -> bytes:
    return b"\0" + Path(f"/proc/{pid}/environ").read_bytes()


def test_what_all_processes_find_wrong_is_one_line(good: Path, tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "good/one.png").write_bytes((good / "00.png").read_bytes())
    process = start("uflow", "train", tmp_path / "good", "-o", tmp_path / "new.uflow", *TINY, "--devices", 2)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (1, "")
    assert err == "uflow: error: training needs at least 2 good images, one of them to select by; got 1\n"


def test_a_process_alone_is_a_group_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with distributed.together():
        assert (distributed.processes(), distributed.is_first(), distributed.own_range(7)) == (1, True, range(7))
        assert distributed.own_device(torch.device("cuda")) == torch.device("cuda")
    values = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    assert distributed.batch_mean(values, 3) == values.mean()


@pytest.mark.parametrize(("rank", "items"), [(0, [0, 3]), (1, [1]), (2, [2])])
def test_shares_are_all_of_a_batch_once(rank: int, items: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "_rank", rank)
    monkeypatch.setattr(distributed, "_processes", 3)
    assert list(distributed.share([0, 1, 2, 3])) == items
    assert list(distributed.share([])) == []
    assert list(distributed.first_or_share([5, 6])) == [[5], [6], [5]][rank]
    assert list(distributed.own_range(4)) == [[0], [1], [2, 3]][rank]
    for device, why in (("mps", "not on 'mps'"), ("cuda:1", "not on 'cuda:1'")):
        with pytest.raises(ValueError, match=f"several processes train on 'cpu', or on 'cuda', .*{why}"):
            distributed.own_device(torch.device(device))
    monkeypatch.setenv("LOCAL_RANK", "99")
    with pytest.raises(ValueError, match="a process needs a GPU of its own, and there are"):
        distributed.own_device(torch.device("cuda"))


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (RuntimeError("[/pytorch/gloo/transport/tcp/pair.cc:534] Connection closed by peer"), True),
        (torch.distributed.DistBackendError("NCCL communicator was aborted"), True),
        (ValueError("cannot read igloo/00.png"), False),
        (TrainingError("the loss became nan in igloo"), False),
    ],
)
def test_another_process_is_not_blamed_for_what_is_wrong_here(error: Exception, is_lost: bool) -> None:
    assert distributed._is_of_another(error) is is_lost


@pytest.mark.parametrize("devices", [0, -1])
def test_no_process_is_no_training(devices: int, good: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["uflow", "train", str(good), "-o", "new.uflow", "--devices", str(devices)])
    with pytest.raises(SystemExit):
        uflow.cli.main()
    assert capsys.readouterr().err == f"uflow: error: --devices is at least 1, got {devices}\n"


@pytest.mark.parametrize(
    ("failures", "message"),
    [
        ({0: 1, 1: -signal.SIGKILL}, "process 2 of 2 was ended by signal SIGKILL: out of memory? The same command"),
        ({0: -signal.SIGTERM, 1: 2}, 2),  # that one has said why, and the other was ended for it
        (signal.SIGTERM, 143),
    ],
)
def test_what_became_of_the_processes_is_said_once(
    failures: Any, message: str | int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed.elastic.multiprocessing import api, errors
    from torch.distributed.launcher import api as launcher

    def end(*arguments: str) -> None:
        assert arguments == ("-m", "uflow", "train", "good")
        raise error

    if isinstance(failures, dict):
        found = {rank: SimpleNamespace(exitcode=code, timestamp=-code) for rank, code in failures.items()}
        monkeypatch.setattr(errors.ChildFailedError, "format_msg", lambda *_: "")
        error: Exception = errors.ChildFailedError("uflow", found)
    else:
        error = api.SignalException("ended", failures)
    monkeypatch.setattr(launcher, "elastic_launch", lambda config, program: end)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv(distributed.WATCHED, "0")
    with pytest.raises((RuntimeError, SystemExit)) as told:
        distributed.launch(2, ["train", "good"])
    assert told.value.code == message if isinstance(message, int) else one_line(told).startswith(message)
