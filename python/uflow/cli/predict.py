"""`uflow predict`."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .app import app
from .common import check_output_folder, load_model, say
from .options import DeviceOption, ModelArgument, RuntimeOption, TileOption, WeightsOption

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..prediction import Prediction


@app.command(epilog="Example: uflow predict tile.uflow new_parts/ --output results")
def predict(
    model: ModelArgument,
    images: Annotated[list[str], typer.Argument(help="files, folders or patterns")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="folder for masks, maps and overlays")] = None,
    arrays: Annotated[bool, typer.Option("--npy", help="also write the maps as .npy, float32")] = False,
    batch_size: Annotated[int, typer.Option(help="images, or tiles, at once")] = 8,
    tile: TileOption = None,
    runtime: RuntimeOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Anomaly map, mask and regions of new images; one line of JSON an image on standard output."""
    from ..images import list_images

    if output is not None:
        check_output_folder(output)
    _, predictor = load_model(model, device, weights, runtime, tile)
    paths = list_images(images)
    started = time.perf_counter()
    with _PredictionBars(len(paths)) as bars:
        predictions = predictor.stream(paths, batch_size, bars.show_tiles if predictor.tile else None)
        flagged = write_all(predictions, output_names(paths), output, arrays, bars.advance)
    rate = len(paths) / (time.perf_counter() - started)
    where = "" if output is None else f"; pictures and predictions.jsonl in {output}"
    say(f"{flagged} of {len(paths)} images have a detected region, {rate:.1f} images/s{where}", err=True)


class _PredictionBars:
    """On a terminal a bar of the images, where there are several, and one of the tiles of the images at work."""

    def __init__(self, count: int) -> None:
        self.progress: Progress | None = None
        if sys.stderr.isatty():
            from rich.console import Console  # a tenth of a second that lines of JSON need not wait for
            from rich.progress import Progress

            self.progress = Progress(*Progress.get_default_columns(), console=Console(stderr=True))
            self.images = self.progress.add_task("Predicting", total=count, visible=count > 1)
            self.tiles = self.progress.add_task("Tiles", visible=False)

    def __enter__(self) -> _PredictionBars:
        if self.progress is not None:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress is not None:
            self.progress.stop()

    def advance(self) -> None:
        if self.progress is not None:
            self.progress.advance(self.images)

    def show_tiles(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress.update(self.tiles, completed=done, total=total, visible=True)


def write_all(
    predictions: Iterable[Prediction],
    names: Sequence[Path],
    output: Path | None,
    arrays: bool,
    on_image: Callable[[], None],
) -> int:
    """Print each prediction as a line of JSON and, with a folder, write lines and pictures; how many were flagged."""
    from ..prediction import write_json_line, write_prediction

    flagged = 0
    with ExitStack() as stack:
        lines = None
        if output is not None:
            lines = stack.enter_context((output / "predictions.jsonl").open("w", encoding="utf-8"))
        for prediction, name in zip(predictions, names, strict=True):
            on_image()
            flagged += prediction.is_anomalous
            write_json_line(prediction, sys.stdout)
            if output is not None and lines is not None:
                write_json_line(prediction, lines)
                write_prediction(prediction, output / name, arrays)
    return flagged


def output_names(paths: Sequence[Path]) -> list[Path]:
    """The path below the folder that all images share, without suffix where that is unambiguous."""
    whole = [path.resolve() for path in paths]
    shared = os.path.commonpath([path.parent for path in whole])
    relative = [path.relative_to(shared) for path in whole]
    bare = [path.with_suffix("") for path in relative]
    counts = Counter(bare)
    return [name if counts[name] == 1 else path for name, path in zip(bare, relative, strict=True)]
