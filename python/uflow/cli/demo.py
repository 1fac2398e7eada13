"""`uflow demo`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ..extras import require
from .app import app
from .common import check_output_folder, check_seed, note, say, shows_bars
from .options import DeviceOption


@app.command(epilog="Example: uflow demo --output demo")
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for images, models and pictures")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option(help="of the crops, the defects and the training")] = 0,
    device: DeviceOption = "auto",
) -> None:
    """Train and evaluate on real textures with made defects; needs no data and no internet."""
    require("demo", "torch", "skimage", "matplotlib")
    from .. import demo as demonstration
    from ..evaluate.tables import evaluations_table

    check_seed(seed)
    check_output_folder(output)
    started = time.perf_counter()
    evaluations = demonstration.run(output, seed=seed, device=device, progress=shows_bars())
    say(evaluations_table(evaluations).to_text() + "\n", kept=True)
    pictures = sorted(str(path) for path in output.glob("*.png"))
    note(f"Done in {time.perf_counter() - started:.0f} s. Pictures: {', '.join(pictures)}")
