"""`uflow predict`."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from ..files import atomic_write, one_line
from ..listing import RESULT_PICTURES, RESULTS_FILE
from .app import app
from .common import (
    check_new_file,
    check_output_folder,
    load_model,
    lost_output,
    note,
    say,
    shows_bars,
    split_arguments,
)
from .options import (
    DeviceOption,
    Engine,
    JsonOption,
    LookAlphaOption,
    ModelArgument,
    ProductOption,
    ReportOption,
    RuntimeOption,
    TileOption,
    WeightsOption,
)
from .table import TABLE_HEADER, table_line

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..detector import Detector
    from ..pages import CardMaker
    from ..prediction import FailedImage, Prediction
    from ..predictor import Predictor

SOME_FAILED = 3  # exit code: images could not be judged, all others were


class OnError(str, Enum):
    """What `uflow predict` does after an image that cannot be judged."""

    stop = "stop"
    skip = "skip"


@app.command(epilog="Example: uflow predict tile.uflow new_parts/ --output results")
def predict(
    model: ModelArgument,
    images: Annotated[
        list[str], typer.Argument(help="files, folders or patterns; for ray one folder or Parquet, or URL")
    ],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="folder for masks, maps and overlays; for ray of Parquet files, or URL"),
    ] = None,
    arrays: Annotated[bool, typer.Option("--npy", help="also write the maps as .npy, float32")] = False,
    engine: Annotated[
        Engine, typer.Option(help="here, or ray: actors of a Ray cluster or of this machine")
    ] = Engine.here,
    actors: Annotated[int, typer.Option(help="of ray")] = 1,
    threads: Annotated[int, typer.Option(help="of each actor of ray")] = 1,
    batch_size: Annotated[int, typer.Option(help="images, or tiles, at once")] = 8,
    on_error: Annotated[
        OnError, typer.Option(help="after an image that cannot be judged: stop, or skip it (exit code 3)")
    ] = OnError.stop,
    max_pixels: Annotated[int | None, typer.Option(help="refuse larger images (default: 178956970)")] = None,
    tile: TileOption = None,
    alpha: Annotated[
        float | None, typer.Option(help="another chance that a good image is flagged (default: as calibrated)")
    ] = None,
    look_alpha: LookAlphaOption = None,
    product: ProductOption = None,
    runtime: RuntimeOption = None,
    report: ReportOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Anomaly map, mask and regions of new images: a table on a terminal, a line of JSON an image in a pipe or file."""
    from ..images import list_images, set_max_pixels

    if engine is Engine.ray:
        chosen: dict[str, Any] = {"alpha": alpha, "look_alpha": look_alpha, "maps": arrays, "batch_size": batch_size}
        chosen |= {"weights": weights, "runtime": runtime, "device": device, "threads": threads}
        refused: dict[str, Any] = {"--tile": tile, "--report": report, "--max-pixels": max_pixels}
        refused |= {"--json": json or None, "--product": product}
        _predict_by_ray(
            model, images, output, actors, chosen, [name for name, value in refused.items() if value is not None]
        )
        return
    only_printed = output is None and report is None
    if only_printed and (why := lost_output()):
        raise OSError(f"the results would be lost: standard output takes nothing, {why}; open it, or give --output")
    if max_pixels is not None:
        set_max_pixels(max_pixels)
    asked, model, images = split_arguments(product, model, images)
    paths = list_images(images)
    names = output_names(paths)
    folder = None if output is None else Path(output)
    if folder is not None:
        check_pictures(paths, names, folder)
        check_output_folder(folder)
    if report is not None:
        check_new_file(report, "--report")
    loaded, predictor = load_model(model, device, weights, runtime, tile)
    if asked is not None:
        predictor = replace(asked, alpha=alpha, look_alpha=look_alpha, tile=tile).apply(predictor)
    elif alpha is not None or look_alpha is not None:
        predictor = predictor.at(alpha, look_alpha)
    maker = None if report is None else _card_maker(predictor, len(paths))
    started = time.perf_counter()
    as_table = sys.stdout.isatty() and not json
    with _PredictionBars(len(paths)) as bars, _Results(folder, arrays, on_error, as_table, only_printed) as results:
        found = (maker or predictor).stream_all(paths, batch_size, bars.show_tiles if predictor.tile else None)
        with closing(found):  # an error leaves no thread behind
            results.write_all(found, names, bars.advance)
    where = "" if output is None else f"; pictures and {RESULTS_FILE} in {output}"
    note(f"{results.summary(len(paths), time.perf_counter() - started)}{where}", err=True)
    if report is not None and maker is not None:
        _write_report(maker, str(model), loaded, report)
    if results.failed:
        raise typer.Exit(SOME_FAILED)


def _predict_by_ray(
    model: Path, images: Sequence[str], output: str | None, actors: int, chosen: dict[str, Any], refused: Sequence[str]
) -> None:
    """Predict on a Ray cluster, into Parquet files."""
    if output is None or len(images) != 1:
        raise ValueError("--engine ray takes one folder, Parquet or URL, and needs --output, a folder or URL")
    if refused:
        raise ValueError(f"--engine ray does not take {', '.join(refused)}")
    from ..extras import require

    require("ray", "ray", "pyarrow", "pandas", "fsspec")
    from ..interop import ray
    from ..interop.tables import TablePredictor

    weights = None if chosen["weights"] is None else tuple(map(str, chosen["weights"]))
    predictor = TablePredictor(str(model), **chosen | {"weights": weights})
    started = time.perf_counter()
    done = ray.predict(images[0], output, predictor, actors)
    rate = done.images / (time.perf_counter() - started)
    failed = f", {done.failed} could not be judged" if done.failed else ""
    skipped = f", {done.skipped} were there already" if done.skipped else ""
    flagged = f"{done.flagged} of {done.images} images have a detected region"
    note(f"{flagged}{failed}{skipped}, {rate:.1f} images/s; Parquet files in {output}", err=True)
    if done.failed:
        raise typer.Exit(SOME_FAILED)


def _card_maker(predictor: Predictor, count: int) -> CardMaker:
    from ..pages import CardMaker, PictureLimits

    return CardMaker(predictor, PictureLimits(count))


def _write_report(maker: CardMaker, name: str, loaded: Detector | Predictor, report: Path) -> None:
    from .reports import write_prediction_report

    write_prediction_report(maker, name, loaded, report)


class _PredictionBars:
    """On a terminal a bar of the images, where there are several, and one of the tiles of the images at work."""

    def __init__(self, count: int) -> None:
        self.progress: Progress | None = None
        if shows_bars():
            from rich.console import Console  # a tenth of a second that lines of JSON need not wait for
            from rich.progress import Progress

            console, columns = Console(stderr=True), Progress.get_default_columns()
            # Bars take what is printed, and show it above them; but not what a pipe is to have.
            self.progress = Progress(*columns, console=console, redirect_stdout=sys.stdout.isatty())
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


class _Results:
    """Where results go: standard output, and perhaps a folder, whose list is replaced only when all are there.

    Where they are only printed, the first line that standard output does not take is an error.
    """

    def __init__(
        self, output: Path | None, arrays: bool, on_error: OnError, as_table: bool, only_printed: bool
    ) -> None:
        self.output, self.arrays, self.on_error = output, arrays, on_error
        self.as_table, self.only_printed = as_table, only_printed
        # A line of an image that failed, and the message about it, would stand below one another.
        self.shows_errors = sys.stdout.isatty() and sys.stderr.isatty()
        self.flagged = self.failed = self.printed = 0
        self.lines: IO[str] | None = None
        self.stack = ExitStack()

    def __enter__(self) -> _Results:
        if self.output is not None:
            temporary = self.stack.enter_context(atomic_write(self.output / RESULTS_FILE))
            self.lines = self.stack.enter_context(temporary.open("w", encoding="utf-8"))
        if self.as_table:
            say(TABLE_HEADER)
        return self

    def __exit__(self, *error: Any) -> None:
        self.stack.__exit__(*error)

    def summary(self, count: int, seconds: float) -> str:
        """What came of so many images."""
        failed = f", {self.failed} could not be judged" if self.failed else ""
        return f"{self.flagged} of {count} images have a detected region{failed}, {count / seconds:.1f} images/s"

    def write_all(
        self,
        found: Iterable[Prediction | FailedImage],
        names: Sequence[Path],
        on_image: Callable[[], None],
    ) -> None:
        """Write a line an image, and its pictures; the error of one that failed is raised, or counted."""
        from ..prediction import FailedImage, write_prediction

        for result, name in zip(found, names, strict=True):
            on_image()
            self._write_line(result, len(names))
            if isinstance(result, FailedImage):
                self.failed += 1
                if self.on_error is OnError.stop:
                    raise result.error
                if not self.shows_errors:
                    say(f"skipped: {one_line(result.error)}", err=True)
                continue
            self.flagged += result.is_anomalous
            if self.output is not None:
                write_prediction(result, self.output / name, self.arrays)

    def _write_line(self, result: Prediction | FailedImage, count: int) -> None:
        """Print a result, and add it to the folder's list; OSError where all results are lost from here on."""
        from json import dumps

        about = result.to_dict()
        line = dumps(about, allow_nan=False)
        if self.lines is not None:
            self.lines.write(line + "\n")
        if "error" in about and self.shows_errors and self.on_error is OnError.stop:
            return  # it is the last line anyway
        self.printed += say(table_line(about) if self.as_table else line)
        if self.only_printed and (why := lost_output()):
            raise OSError(
                f"standard output took the results of {self.printed} of {count} images, then nothing: {why}; "
                "with --output all are written, whatever becomes of it"
            )


def output_names(paths: Sequence[Path]) -> list[Path]:
    """The path below the folder that all images share, as they were given; without suffix where that is unambiguous.

    All are distinct, also where upper and lower case are the same.
    """
    whole = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 (links keep their own names)
    shared = os.path.commonpath([path.parent for path in whole])
    relative = [path.relative_to(shared) for path in whole]
    bare = [path.with_suffix("") for path in relative]
    counts = Counter(str(name).casefold() for name in bare)
    taken = {str(name).casefold() for name in relative}
    alone = [counts[key] == 1 and key not in taken for key in (str(name).casefold() for name in bare)]
    return [name if is_alone else path for name, path, is_alone in zip(bare, relative, alone, strict=True)]


def check_pictures(paths: Sequence[Path], names: Sequence[Path], output: Path) -> None:
    """ValueError where the pictures of these images would be written over an image, or over a file of somebody else."""
    inputs = {os.path.realpath(path) for path in paths}
    has_results = (output / RESULTS_FILE).exists()
    for name in names:
        for ending in (*RESULT_PICTURES, "_map.npy", "_log_nfa.npy"):
            picture = (output / name).with_name(name.name + ending)
            if picture.exists() and (not has_results or os.path.realpath(picture) in inputs):
                whose = "one of the images" if has_results else "which no earlier uflow predict wrote"
                raise ValueError(f"--output {output} would replace {picture}, {whose}: name another folder")
