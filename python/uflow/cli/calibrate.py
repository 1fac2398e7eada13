"""`uflow calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .app import app
from .common import check_new_file, next_arguments, note, split_arguments
from .options import AlphaOption, DeviceOption, LookAlphaOption, ModelArgument, ProductOption, WeightsOption


@app.command(epilog="Example: uflow calibrate tile.uflow good_parts/ --alpha 0.02 --output tile_line2.uflow")
def calibrate(
    model: ModelArgument,
    images: Annotated[
        list[str], typer.Argument(help="good images that it was not trained on: files, folders, patterns")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="model file to write (default: MODEL_calibrated.uflow; a folder and a product take it themselves)",
        ),
    ] = None,
    alpha: AlphaOption = 0.05,
    look_alpha: LookAlphaOption = None,
    product: ProductOption = None,
    soft_clamp: Annotated[
        str | None, typer.Option(help="of a .ckpt: tanh(r) or tanh(r/clamp), see docs/guide/checkpoints.md")
    ] = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Learn the threshold anew from good images, without training: another camera, a model made elsewhere."""
    from .. import load
    from ..deploy.exported import save_threshold
    from ..images import list_good_images
    from ..predictor import Predictor

    asked, model, images = split_arguments(product, model, images)
    if model.is_dir() and output is not None:
        raise ValueError(f"{model} is an exported folder, which takes its new threshold itself: leave --output out")
    file = output or (model if model.is_dir() or asked is not None else Path(f"{model.stem}_calibrated.uflow"))
    if not model.is_dir():
        check_new_file(file)
    loaded = load(model, device, weights, soft_clamp=soft_clamp)  # type: ignore[arg-type]  # load checks it
    if asked is not None:
        asked.prepare(loaded if isinstance(loaded, Predictor) else loaded.predictor)
    loaded.calibrate(list_good_images(images), alpha, look_alpha=look_alpha, roi=None if asked is None else asked.roi)
    if isinstance(loaded, Predictor):
        save_threshold(loaded)
    else:
        loaded.save(file)
    next_command = f"uflow predict {next_arguments(product, output, file)}"
    note(f"Wrote {file}: calibrated for alpha {alpha:g}. Next: {next_command}")
