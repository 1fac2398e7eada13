"""`uflow export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..extras import require
from .app import app
from .common import check_new_folder, note
from .options import WeightsOption


@app.command(epilog="Example: uflow export tile.uflow --format onnx --output tile_onnx")
def export(
    model: Annotated[Path, typer.Argument(help="model file")],
    format: Annotated[str, typer.Option(help="onnx, openvino or torch")] = "onnx",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="folder (default: MODEL_FORMAT)")] = None,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="the network takes images of any size and resizes them itself")
    ] = False,
    int8: Annotated[
        list[str] | None, typer.Option(help="good images (folder or pattern) to quantise the flow with: not exact")
    ] = None,
    weights: WeightsOption = None,
) -> None:
    """Write a model for an inspection PC without torch: a folder for ONNX Runtime, OpenVINO or torch.

    uflow predict, evaluate and benchmark, and uflow.load, take the folder in place of the model file.
    """
    require("export", "torch")
    from ..deploy.export import check_request
    from ..deploy.export import export as write_export
    from ..detector import load
    from ..images import list_images

    folder = output or Path(f"{model.stem}_{format}")
    check_new_folder(folder)
    images = list_images(int8) if int8 else None
    check_request(folder, format, images)
    detector = load(model, device="cpu", weights=weights)
    write_export(detector, folder, format, dynamic_size=dynamic_size, int8=images)
    names = ", ".join(sorted(path.name for path in folder.iterdir()))
    note(f"Wrote {folder}: {names}. Next: uflow predict {folder} IMAGES")
