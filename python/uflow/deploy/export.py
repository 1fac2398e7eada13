"""A detector's network as ONNX, OpenVINO or torch.export program, in a folder that `runtime` reads without torch."""

from __future__ import annotations

import copy
import io
import logging
import os
import secrets
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import __version__
from ..detector import Detector
from ..extras import pip_install
from ..fast.folded_flow import FoldedFlow
from ..files import sha256
from ..images import ImageLike, batches, list_good_sources, resize_image
from ..processes import remove_orphans
from ..scoring import MAP_ROUNDING, squash
from . import exported
from .runtimes import Run

__all__ = ["check_request", "export"]

log = logging.getLogger("uflow")

OPSET = 18
TOLERANCE = 1e-3


class _Network(nn.Module):
    """Images (B, H, W, 3) uint8 -> energies (B, h, w) of each scale, finest first, and the anomaly map (B, H, W)."""

    def __init__(self, detector: Detector, dynamic_size: bool) -> None:
        super().__init__()
        network = detector.network
        self.image_size, self.channels, self.dynamic_size = network.image_size, network.latent_channels, dynamic_size
        self.backbone = copy.deepcopy(network.backbone).cpu()
        self.flow = FoldedFlow(network.flow, winograd=False).cpu()
        self.memory = copy.deepcopy(network.memory)
        if self.memory is not None:
            self.memory.cpu()
        self.blend = detector.predictor.blend
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        x = image.permute(0, 3, 1, 2).float()
        size = x.shape[2:]
        if self.dynamic_size:
            # As Pillow does it: along the rows, then along the columns, each rounded to 8 bits.
            x = _rounded(x @ _resizing(x[0, 0, 0], self.image_size[1]).T)
            x = _rounded(_resizing(x[0, 0, :, 0], self.image_size[0]) @ x)
        x = (x / 255 - self.backbone.mean) / self.backbone.std
        features = self.backbone.extractor(x)
        energies = [z.square().sum(dim=1) for z in self.flow(self.backbone.normalised(features))]

        weights = None if self.blend is None else self.blend.weights
        means = self.channels if weights is None else weights.energy_means
        grid = size if weights is None else energies[0].shape[1:]
        each = [_resized_map(torch.exp(e * (-0.5 / mean)), grid) for e, mean in zip(energies, means, strict=True)]
        likely = torch.stack(each).mean(dim=0)
        if self.blend is None or weights is None:
            return (*energies, 1 - likely)
        # As `scoring.EvidenceWeights.field` has it.
        distances = [] if self.memory is None else self.memory(features)
        parts = [-2 * weights.latents * torch.log(likely.clamp(min=MAP_ROUNDING))]
        parts += [w * _resized_map(d, grid) for d, w in zip(distances, weights.distances, strict=True)]
        field = _resized_map(torch.stack(parts).sum(dim=0), size)
        return (*energies, *distances, squash(field, self.blend.reference))


def _resized_map(values: Tensor, size: Sequence[int]) -> Tensor:
    """A (B, h, w) map at another size, bilinearly."""
    return F.interpolate(values[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]


def _rounded(x: Tensor) -> Tensor:
    # Halves are frequent where sizes have a simple ratio: a hair more, and all runtimes round them up.
    return torch.floor(x + (0.5 + 2**-12))


def _resizing(line: Tensor, length: int) -> Tensor:
    """The matrix (length, len(line)) that resizes a line: antialiased bilinear interpolation, as Pillow's.

    A matrix product, because OpenVINO leaves out the antialiasing of ONNX's Resize without a word.
    """
    cells = torch.ones_like(line).cumsum(0) - 0.5
    scale = (cells[-1] + 0.5) / length
    centres = (torch.arange(length) + 0.5) * scale
    weights = (1 - (cells - centres[:, None]).abs() / scale.clamp(min=1)).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)


def export(
    detector: Detector,
    folder: str | Path,
    format: str = "onnx",
    *,
    dynamic_size: bool = False,
    int8: str | Path | Sequence[ImageLike] | None = None,
) -> None:
    """Write the detector's network and test to a folder, whole or not at all, that `exported.load` reads.

    The network takes `image`, uint8 (B, H, W, 3), B free, and gives `energy_0`, `energy_1`, ..., float32 (B, h, w)
    finest first: the sum of the squared latents of each cell; and `anomaly_map`, float32 (B, H, W) in [0, 1). All is
    inside: scaling, normalisation, backbone, flow. docs/guide/inspection-pc.md says what else is in the folder.

    Args:
        detector: fitted or loaded.
        folder: to write; an export that is there is replaced, anything else is refused.
        format: "onnx" (opset 18, for ONNX Runtime and OpenVINO), "openvino" (IR) or "torch" (a torch.export program).
        dynamic_size: H and W are free too: images are resized in the network. Otherwise they are
            ``detector.network.image_size``, and the caller resizes, as `Predictor` does.
        int8: good images (a folder, a pattern or a list; some tens) to find value ranges with: the flow's convolutions
            then compute in 8 bits, for ONNX and OpenVINO only. Not exact: see docs/notebook/performance.md.

    Raises:
        ValueError: an unknown format, a folder that is no export, or images that cannot be used.
        OSError: the folder cannot be written.
        ModuleNotFoundError: a package is missing; the message says how to install it.
        RuntimeError: what was written computes something else than the detector (maps differ by more than 1e-3).
    """
    check_request(folder, format, int8)
    folder = Path(folder)
    images = None if int8 is None else [_resized(detector, image) for image in list_good_sources(int8)]
    if images == []:
        raise ValueError("int8 needs good images to calibrate with: none given")
    network = _Network(detector, dynamic_size)
    outputs = _output_names(detector)
    with _replaced(folder) as temporary:
        quantised = _write_network(network, temporary, format, outputs, images)
        exported.write_metadata(temporary, _metadata(detector, temporary, format, outputs, quantised, dynamic_size))
    size = sum(part.stat().st_size for part in folder.iterdir()) / 1e6
    log.info("%s holds %s (%.1f MB)", folder, exported.FORMATS[format][0], size)


def check_request(folder: str | Path, format: str, int8: object) -> None:
    """Raise ValueError for what `export` cannot be asked for."""
    if format not in exported.FORMATS:
        raise ValueError(f"unknown export format {format!r}; known: {', '.join(exported.FORMATS)}")
    if int8 is not None and format == "torch":
        raise ValueError("int8 is for the formats onnx and openvino")
    if Path(folder).exists() and not _is_export(Path(folder)):
        raise ValueError(f"{folder} exists and is not an exported model: choose another folder, or remove it first")


def _output_names(detector: Detector) -> list[str]:
    network = detector.network
    energies = [f"energy_{i}" for i in range(len(network.strides))]
    distances = [] if network.memory is None else [f"distance_{i}" for i in range(network.memory.scales)]
    return [*energies, *distances, "anomaly_map"]


def _write_network(
    network: _Network,
    folder: Path,
    format: str,
    outputs: Sequence[str],
    images: Sequence[NDArray[np.uint8]] | None,
) -> dict[str, Any] | None:
    """Write the network's file, see that it computes what torch does, and quantise it; what quantising changed."""
    file, runtimes = exported.FORMATS[format]
    path, onnx = folder / file, folder / "network.onnx"
    program = _program(network)
    if format == "torch":
        buffer = io.BytesIO()  # on a full disk torch's own writer ends the process
        with _quiet():
            torch.export.save(program, buffer)
        path.write_bytes(buffer.getbuffer())
    else:
        _write_onnx(program, onnx, outputs)
    if format == "openvino":
        _convert(onnx, path)
    run = exported.open_network(path, exported.first_installed(runtimes), len(outputs))
    _verify(network, run)
    quantised = None
    if images is not None:
        float_maps = _maps(run, images)
        _quantise(onnx, images)
        if format == "openvino":
            _convert(onnx, path)
        run = exported.open_network(path, exported.first_installed(runtimes), len(outputs))
        quantised = {"images": len(images), "map_difference": float(np.abs(_maps(run, images) - float_maps).max())}
        log.warning("8 bits move the anomaly maps of %(images)d images by at most %(map_difference).3f", quantised)
    del run  # not every system lets go of a file that is open
    if format == "openvino":
        for part in folder.glob("network.onnx*"):
            part.unlink()
    return quantised


def _metadata(
    detector: Detector,
    folder: Path,
    format: str,
    outputs: Sequence[str],
    quantised: dict[str, Any] | None,
    dynamic_size: bool,
) -> dict[str, Any]:
    """The content of `model.json`; every other file of the folder is there by now."""
    backbone = detector.network.backbone
    return {
        "kind": "uflow export",
        "version": exported.FORMAT_VERSION,
        "uflow": __version__,
        "format": format,
        "opset": OPSET if format == "onnx" else None,
        "int8": quantised,
        "dynamic_size": dynamic_size,
        "input": "image",
        "outputs": list(outputs),
        "backbone": {
            "name": backbone.name,
            "weights_source": backbone.weights_source,
            "weights_sha256": backbone.weights_sha256,
        },
        "image_size": backbone.image_size,
        "strides": backbone.strides,
        "latent_channels": detector.network.latent_channels,
        "predictor": detector.predictor.to_dict(),
        "record": detector.record,
        "files": {part.name: sha256(part) for part in sorted(folder.iterdir())},
    }


def _is_export(folder: Path) -> bool:
    try:
        exported.read_metadata(folder)
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, put in its place at the end; if anything fails, all is as it was."""
    remove_orphans(folder.absolute().parent)
    token = secrets.token_hex(8)
    temporary, old = folder.with_name(f".uflow-{token}"), folder.with_name(f".uflow-{token}-old")
    try:
        temporary.mkdir()
        yield temporary
        for part in temporary.iterdir():
            with part.open("rb+") as file:
                os.fsync(file.fileno())  # else a power cut can leave the new name on an empty file
        if folder.exists():
            folder.rename(old)
        try:
            temporary.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise OSError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _resized(detector: Detector, image: ImageLike) -> NDArray[np.uint8]:
    return resize_image(detector.predictor.seen(detector.predictor.read(image)), detector.network.image_size)


# Formats --------------------------------------------------------------------------------------------------------------


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # exporters on their own way from torch: nothing a user can act on
        yield


def _program(network: _Network) -> torch.export.ExportedProgram:
    free = torch.export.Dim.DYNAMIC
    height, width = network.image_size
    image = torch.zeros(
        (2, height + 1, width + 2, 3) if network.dynamic_size else (2, height, width, 3), dtype=torch.uint8
    )
    dims = {0: free, 1: free, 2: free} if network.dynamic_size else {0: free}
    with _quiet():
        return torch.export.export(network, (image,), dynamic_shapes=(dims,))


def _write_onnx(program: torch.export.ExportedProgram, path: Path, outputs: Sequence[str]) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"export needs {error.name}: {pip_install('export')}", name=error.name) from None
    with _quiet():
        onnx_program = torch.onnx.export(
            program,
            input_names=["image"],
            output_names=outputs,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert onnx_program is not None
        onnx_program.save(path)  # weights beside it only where they exceed the 2 GB of a protobuf


def _convert(onnx: Path, path: Path) -> None:
    """ONNX to OpenVINO's own format, float32 as it is."""
    try:
        import openvino
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"export needs openvino: {pip_install('openvino')}", name="openvino") from None
    model = openvino.Core().read_model(onnx)
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # what becomes of a full disk
        raise OSError(str(error)) from error


def _verify(network: _Network, run: Run) -> None:
    """RuntimeError unless the written network gives what torch does, on a batch of random images."""
    height, width = network.image_size
    size = (height * 3 // 2, 2 * width) if network.dynamic_size else (height, width)
    images = np.random.default_rng(0).integers(0, 256, (3, *size, 3), np.uint8)
    with torch.inference_mode():
        wanted = [output.numpy() for output in network(torch.from_numpy(images))]
    found = run(images)
    errors = [np.abs(found[-1] - wanted[-1]).max()]
    for f, w, c in zip(found, wanted, network.channels, strict=False):
        # Energies far above normal hardly show in maps. Noise is so far from what was learnt that the couplings amplify
        # rounding to 1e-3 and more; a fault shows as 1.
        errors.append((np.abs(f - w) / (w + c)).max() / 10)
    if not max(errors) <= TOLERANCE:
        raise RuntimeError(f"the exported network differs from torch by {max(errors):.1e}, more than {TOLERANCE:g}")


class _Batches:
    """Images one at a time, as the quantisation asks for them."""

    def __init__(self, images: Sequence[NDArray[np.uint8]]) -> None:
        self.images = iter(images)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        image = next(self.images, None)
        return None if image is None else {"image": image[None]}


def _maps(run: Run, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    return np.concatenate([run(np.stack(batch))[-1] for batch in batches(images, 8)])


def _quantise(path: Path, images: Sequence[NDArray[np.uint8]], part: str = "flow.") -> None:
    """Post-training static quantisation of an ONNX file: the convolutions of a part, weights by output channel.

    The flow's: its subnets bear it well, as their outputs are scaled by 0.1. The backbone's do not: see
    docs/notebook/performance.md.
    """
    import onnx
    from onnxruntime import quantization

    with _quiet():
        quantization.quant_pre_process(path, path, skip_optimization=True, skip_symbolic_shape=True)
        model = onnx.load(path)
        nodes = [n.name for n in model.graph.node if n.op_type == "Conv" and n.input[1].startswith(part)]
        quantization.quantize_static(model, path, _Batches(images), per_channel=True, nodes_to_quantize=nodes)
