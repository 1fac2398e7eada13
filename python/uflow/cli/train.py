"""`uflow train`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .app import app
from .common import check_new_file, next_arguments, note, number_of, shows_bars
from .options import DeviceOption, ProductOption, WeightsOption, with_recipe

if TYPE_CHECKING:
    from .options import RecipeOf


@app.command(epilog="Example: uflow train data/tile/train/good --output tile.uflow")
@with_recipe
def train(
    images: Annotated[str, typer.Argument(help="folder or pattern of good images")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="model file (default: CATEGORY.uflow)")] = None,
    *,
    recipe: RecipeOf,
    product: ProductOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    devices: Annotated[
        int, typer.Option(help="processes that share each batch, a GPU each where there are any; or use torchrun")
    ] = 1,
) -> None:
    """Learn from a folder of good images; writes a model file.

    Killed half-way, the same command goes on from the last whole epoch.
    """
    from .. import distributed
    from ..detector import Detector
    from ..product import read_product

    if devices < 1:
        raise ValueError(f"--devices is at least 1, got {devices}")
    if devices > 1 and not distributed.is_started():
        distributed.launch(devices, sys.argv[1:])
        return
    category = category_of(images)
    asked, own = recipe(category), Path(f"{category}.uflow")
    if product is not None:
        found = read_product(product)
        asked, own = replace(asked, roi=found.roi, gain=found.gain or 1), found.model
    file = output or own
    check_new_file(file)
    state_file = file.with_name(file.name + ".state")
    with distributed.together():
        if state_file.exists() and distributed.is_first():
            note(f"Going on with the training that {state_file} holds")
        detector = Detector.fit_recipe(
            images, asked, weights=weights, device=device, state_file=state_file, progress=shows_bars()
        )
        if distributed.is_first():
            detector.save(file)
            state_file.unlink(missing_ok=True)
            epochs = number_of(len(detector.history), "epoch")
            note(f"Wrote {file}: {epochs}. Next: uflow predict {next_arguments(product, output, file)}")


def category_of(images: str) -> str:
    """ "data/tile/train/good" is of the category tile; any other folder or pattern is called by its last name."""
    parts = [part for part in Path(images).resolve().parts if not set(part) & set("*?[")]
    return parts[-3] if len(parts) > 3 and parts[-2:] == ["train", "good"] else parts[-1]
