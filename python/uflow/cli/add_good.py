"""`uflow add-good`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import app
from .common import check_new_file, note, number_of, split_arguments
from .options import DeviceOption, ModelArgument, ProductOption, WeightsOption


@app.command(epilog="Example: uflow add-good tile.uflow false_alarms/ --output tile_new.uflow")
def add_good(
    model: ModelArgument,
    images: Annotated[list[str], typer.Argument(help="good images that were flagged: files, folders, patterns")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="model file to write (default: MODEL_added.uflow; a folder and a product take it themselves)",
        ),
    ] = None,
    product: ProductOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Good parts that were flagged join what the model knows as good, without training.

    The promise of alpha holds whatever is added; the more is added, the fewer defects are found. An exported folder
    learns in its calibration alone: its memory is fixed.
    """
    from .. import load
    from ..deploy.exported import save_threshold
    from ..images import list_good_images
    from ..predictor import Predictor

    asked, model, images = split_arguments(product, model, images)
    if model.is_dir() and output is not None:
        raise ValueError(f"{model} is an exported folder, which takes its new threshold itself: leave --output out")
    output = output or (model if model.is_dir() or asked is not None else Path(f"{model.stem}_added.uflow"))
    if not model.is_dir():
        check_new_file(output)
    paths = list_good_images(images)
    loaded = load(model, device, weights)
    if asked is not None:
        asked.prepare(loaded if isinstance(loaded, Predictor) else loaded.predictor)
    known = len(getattr(loaded.threshold, "added", ()))
    loaded.add_good(paths)
    new = number_of(len(getattr(loaded.threshold, "added", ())) - known, "good image")
    if isinstance(loaded, Predictor):
        save_threshold(loaded)
        note(f"Wrote {output}: {new} joined its calibration; the memory of an export is fixed")
    else:
        loaded.save(output)
        note(f"Wrote {output}: {new} joined its memory and its calibration")
