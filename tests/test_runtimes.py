"""Devices of exported networks: what reaches ONNX Runtime, OpenVINO and torch; what is said of one not there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from conftest import one_line
from uflow.deploy import exported, runtimes

IMAGES = np.zeros((1, 4, 4, 3), np.uint8)
NETWORK = Path("network")


class Session:
    """What ONNX Runtime gives, of a machine with the providers `there`, of which those in `broken` do not start."""

    there = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "AzureExecutionProvider", "CPUExecutionProvider")
    broken: tuple[str, ...] = ()
    asked: list[Any]

    def __init__(self, path: Path, options: Any, providers: list[Any]) -> None:
        type(self).asked = providers

    def get_providers(self) -> list[str]:
        names = [provider if isinstance(provider, str) else provider[0] for provider in self.asked]
        return [name for name in names if name not in self.broken]

    def run(self, outputs: None, feed: dict[str, Any]) -> list[Any]:
        return [feed["image"]]


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> type[Session]:
    onnxruntime = pytest.importorskip("onnxruntime")
    made = type("Made", (Session,), {})
    monkeypatch.setattr(onnxruntime, "InferenceSession", made)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(made.there))
    return made


CUDA = "CUDAExecutionProvider"


@pytest.mark.parametrize(
    ("device", "asked"),
    [
        ("cpu", []),
        ("auto", [(CUDA, {"use_tf32": 0})]),
        ("cuda", [(CUDA, {"use_tf32": 0})]),
        ("cuda:1", [(CUDA, {"device_id": 1, "use_tf32": 0})]),
        ("gpu", [(CUDA, {"use_tf32": 0})]),
        ("TensorRT:1", [("TensorrtExecutionProvider", {"device_id": 1})]),
    ],
)
def test_providers_of_onnx_runtime(session: type[Session], device: str, asked: list[Any]) -> None:
    run = exported.open_network(NETWORK, "onnxruntime", 1, None, device)
    assert session.asked == [*asked, "CPUExecutionProvider"]
    assert run(IMAGES) == [IMAGES]


def test_a_gpu_of_another_maker(session: type[Session]) -> None:
    session.there = ("DmlExecutionProvider", "CPUExecutionProvider")
    exported.open_network(NETWORK, "onnxruntime", 1, None, "gpu")
    assert session.asked[0] == ("DmlExecutionProvider", {})


@pytest.mark.parametrize("device", ["npu", "rocm", "azure", "mps"])
def test_a_provider_that_is_not_there(session: type[Session], device: str) -> None:
    with pytest.raises(ValueError, match="device") as error:
        exported.open_network(NETWORK, "onnxruntime", 1, None, device)
    assert one_line(error) == f"ONNX Runtime has no device '{device}' here; it has tensorrt, cuda, cpu"


def test_a_provider_that_does_not_start(session: type[Session], caplog: pytest.LogCaptureFixture) -> None:
    session.broken = (CUDA,)
    with pytest.raises(RuntimeError, match="driver") as error:
        exported.open_network(NETWORK, "onnxruntime", 1, None, "cuda")
    assert one_line(error).startswith(f"ONNX Runtime has {CUDA} but cannot start it here")
    assert exported.open_network(NETWORK, "onnxruntime", 1, None, "auto")(IMAGES) == [IMAGES]
    assert f"cannot start it here: {NETWORK} runs on the CPU" in caplog.text


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """OpenVINO on a machine with two GPUs and an NPU; `asked` is what it was to compile for."""
    openvino = pytest.importorskip("openvino")
    made = SimpleNamespace(available_devices=["CPU", "GPU.0", "GPU.1", "NPU"], asked=None)

    def compile_model(path: Path, device: str, config: dict[str, Any]) -> Any:
        made.asked = device, config
        return lambda images: {0: images}

    made.compile_model = compile_model
    monkeypatch.setattr(openvino, "Core", lambda: made)
    return made


FLOAT32 = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}


@pytest.mark.parametrize(
    ("device", "asked"),
    [
        ("auto", ("CPU", {**FLOAT32, "INFERENCE_NUM_THREADS": 2})),
        ("cpu", ("CPU", {**FLOAT32, "INFERENCE_NUM_THREADS": 2})),
        ("gpu", ("GPU", FLOAT32)),
        ("gpu:1", ("GPU.1", FLOAT32)),
        ("NPU", ("NPU", {"PERFORMANCE_HINT": "LATENCY"})),
    ],
)
def test_devices_of_openvino(
    core: SimpleNamespace, device: str, asked: tuple[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert exported.open_network(NETWORK, "openvino", 1, 2, device)(IMAGES) == [IMAGES]
    assert core.asked == asked
    assert ("calibrate the model on it" in caplog.text) == (device == "NPU")


def test_a_device_that_openvino_does_not_have(core: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    for device in ("cuda", "gpu:2", "npu:1"):
        with pytest.raises(ValueError, match="device") as error:
            exported.open_network(NETWORK, "openvino", 1, None, device)
        assert one_line(error) == f"OpenVINO has no device '{device}' here; it has cpu, gpu:0, gpu:1, npu"

    def fail(*_: Any) -> None:
        raise RuntimeError("Exception from core.cpp:1\nno\ndriver")

    core.compile_model = fail
    with pytest.raises(RuntimeError, match="driver") as failure:
        exported.open_network(NETWORK, "openvino", 1, None, "npu")
    assert one_line(failure) == "OpenVINO cannot run network on 'npu': Exception from core.cpp:1 no driver"


def test_one_gpu_has_two_names(core: SimpleNamespace) -> None:
    core.available_devices = ["CPU", "GPU"]
    exported.open_network(NETWORK, "openvino", 1, None, "gpu:0")
    assert core.asked[0] == "GPU.0"


@pytest.mark.parametrize("runtime", list(runtimes.OPEN))
@pytest.mark.parametrize("device", ["", ":1", "cuda:", "cuda:one", "cuda:-1"])
def test_no_device_at_all(runtime: str, device: str) -> None:
    pytest.importorskip(runtime)
    with pytest.raises(ValueError, match="a device is a name, such as cpu") as error:
        exported.open_network(NETWORK, runtime, 1, None, device)
    assert repr(device) in one_line(error)


def test_torch_moves_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    passes = pytest.importorskip("torch.export.passes")
    moved: list[Any] = []
    network = SimpleNamespace(module=lambda: lambda images: [images])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.export, "load", lambda path: network)
    monkeypatch.setattr(runtimes, "check_archive", lambda path: None)
    monkeypatch.setattr(passes, "move_to_device_pass", lambda program, to: moved.append(to) or program)
    for device in ("cpu", "auto", "cuda:1", "gpu"):
        exported.open_network(NETWORK, "torch", 1, None, device)
    assert moved == ["cuda:0", "cuda:1", "cuda:0"]
    for device in ("cuda:2", "mps", "cpu:1"):
        with pytest.raises(ValueError, match="device") as error:
            exported.open_network(NETWORK, "torch", 1, None, device)
        assert one_line(error) == f"torch has no device '{device}' here; it has cpu, cuda:0, cuda:1"
