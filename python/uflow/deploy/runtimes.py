"""What runs an exported network, and on which device: ONNX Runtime, OpenVINO, torch.

A device is named as for torch: "cpu", "cuda", "cuda:1". Other names are those of the runtime: ONNX Runtime's providers
("tensorrt", "dml", "coreml", ...) and OpenVINO's devices ("gpu", "npu", ...). "auto" is CUDA where the runtime has it,
else the CPU.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import one_line
from .torch_archive import check_archive

__all__ = ["OPEN", "Run"]

log = logging.getLogger("uflow")

Run = Callable[[NDArray[np.uint8]], list[NDArray[np.float32]]]

PROVIDER = "ExecutionProvider"  # what ONNX Runtime's names of providers end in
NO_DEVICES = ("azure",)  # providers that run nothing here
GPU_PROVIDERS = ("cuda", "rocm", "migraphx", "dml")  # what "gpu" is, the first that is there
FLOAT32_DEVICES = ("CPU", "GPU")  # of OpenVINO: those that can be told to compute in float32


def _onnxruntime(path: Path, outputs: int, threads: int | None, device: str) -> Run:
    import onnxruntime

    provider, wanted = _choose_provider(device, onnxruntime.get_available_providers())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others read and segment meanwhile
    options.add_session_config_entry("session.load_model_format", "ONNX")  # as `check_graph` has read it
    providers: list[Any] = ["CPUExecutionProvider"]  # it does what another one cannot
    if provider not in providers:
        providers.insert(0, (provider, wanted))
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # ONNX Runtime's own classes, which have no name in common
        raise RuntimeError(f"ONNX Runtime cannot run {path} on {device!r}: {one_line(error)}") from None
    if provider not in session.get_providers():  # it did not start, and ONNX Runtime goes on with the CPU
        if device != "auto":
            raise RuntimeError(f"ONNX Runtime has {provider} but cannot start it here: look at driver and libraries")
        log.warning("ONNX Runtime has %s but cannot start it here: %s runs on the CPU", provider, path)
    return lambda images: session.run(None, {"image": images})


def _choose_provider(device: str, available: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """ONNX Runtime's provider for a device, and the options it takes."""
    providers = {provider.removesuffix(PROVIDER).lower(): provider for provider in available}
    there = [name for name in providers if name not in NO_DEVICES]
    name, index = _parse(device)
    if name == "auto":
        name = "cuda" if "cuda" in there else "cpu"
    elif name == "gpu":
        name = next((gpu for gpu in GPU_PROVIDERS if gpu in there), name)
    if name not in there:
        raise _not_there("ONNX Runtime", device, there)
    options: dict[str, Any] = {} if index is None else {"device_id": index}
    if name == "cuda":
        options["use_tf32"] = 0  # its 10 bits would move the maps
    return providers[name], options


def _openvino(path: Path, outputs: int, threads: int | None, device: str) -> Run:
    import openvino

    core = openvino.Core()
    name, index = _parse(device)
    wanted = "CPU" if name == "auto" else name.upper() + ("" if index is None else f".{index}")
    there = core.available_devices
    # Where there is one, it is GPU, or GPU.0; where there are two, GPU is GPU.0.
    if not any(wanted in (one, one.partition(".")[0], f"{one}.0") for one in there):
        raise _not_there("OpenVINO", device, [one.lower().replace(".", ":") for one in there])
    kind = wanted.partition(".")[0]
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if kind in FLOAT32_DEVICES:
        config["INFERENCE_PRECISION_HINT"] = "f32"  # left alone, it is bfloat16 where the processor can
    else:
        log.warning("%s computes with less than 32 bits: calibrate the model on it before use", kind)
    if threads is not None and kind == "CPU":
        config["INFERENCE_NUM_THREADS"] = threads
    try:
        model = core.compile_model(path, wanted, config)
    except RuntimeError as error:
        raise RuntimeError(f"OpenVINO cannot run {path} on {device!r}: {one_line(error)}") from None
    lock = threading.Lock()  # one request, whose memory is used again and again

    def run(images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        with lock:
            found = model(images)
            return [found[i] for i in range(outputs)]

    return run


def _torch(path: Path, outputs: int, threads: int | None, device: str) -> Run:
    import torch

    name, index = _parse(device)
    there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if name == "auto":
        name = "cuda" if len(there) > 1 else "cpu"
    wanted = f"{'cuda' if name == 'gpu' else name}:{index or 0}"
    if wanted.removesuffix(":0") != "cpu" and wanted not in there:
        raise _not_there("torch", device, there)
    if threads is not None:
        torch.set_num_threads(threads)
    check_archive(path)
    with warnings.catch_warnings():  # torch 2.10 reads weights from memory that is not writable; nothing writes there
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        program = torch.export.load(path)
    if name != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, wanted)
    network = program.module()

    @torch.inference_mode()
    def run(images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        return [output.cpu().numpy() for output in network(torch.from_numpy(images).to(wanted))]

    return run


OPEN: dict[str, Callable[[Path, int, int | None, str], Run]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "torch": _torch,
}


def _parse(device: str) -> tuple[str, int | None]:
    """ "cuda:1" as ("cuda", 1)."""
    name, colon, index = device.lower().partition(":")
    if not name or (colon and not index.isdecimal()):
        raise ValueError(
            f"a device is a name, such as cpu or cuda, or one with a number, such as cuda:1; got {device!r}"
        )
    return name, int(index) if colon else None


def _not_there(runtime: str, device: str, there: Sequence[str]) -> ValueError:
    return ValueError(f"{runtime} has no device {device!r} here; it has {', '.join(there)}")
