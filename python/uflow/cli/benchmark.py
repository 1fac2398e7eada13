"""`uflow benchmark`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .app import app
from .common import check_new_file, load_model, note, parse_numbers, parse_size, say, show_progress
from .options import DeviceOption, RuntimeOption

if TYPE_CHECKING:
    from ..benchmark import Measurement
    from ..predictor import Predictor

MSCAIT_SHAPES = ["816x28x28", "192x14x14"]  # latents of the paper's backbone at 448 pixels


@app.command(epilog="Example: uflow benchmark --shape 816x28x28 --shape 192x14x14 --threads 1,2 --json speed.json")
def benchmark(
    images: Annotated[
        list[str] | None, typer.Argument(help="with --end-to-end: files, folders or patterns to predict")
    ] = None,
    end_to_end: Annotated[
        bool, typer.Option("--end-to-end", help="time --model from image to regions, by phase, and a stream of images")
    ] = False,
    shape: Annotated[
        list[str] | None, typer.Option(help="latents of a scale, CxHxW; once a scale (default: those of MS-CaiT)")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="take the shapes and the test of this model file (or exported folder)")
    ] = None,
    size: Annotated[str, typer.Option(help="of the log NFA map: 256, or 256x320 (height x width)")] = "256",
    batch: Annotated[int, typer.Option(help="images a call")] = 16,
    runtime: RuntimeOption = None,
    device: DeviceOption = "auto",
    threads: Annotated[str | None, typer.Option(help="thread numbers to compare (default: 1 and all cores)")] = None,
    repeats: Annotated[int, typer.Option(help="calls of each step")] = 100,
    json: Annotated[Path | None, typer.Option(help="file for the figures and the machine")] = None,
) -> None:
    """Measure how fast this machine segments latents, or predicts: time an image, images a second, threads.

    energy: latents to one number a cell; segmentation: energies to log NFA maps; log_nfa: both. With --end-to-end:
    reading, resizing, the network and segmentation (energies to maps, mask and regions) of one image, then a stream.
    """
    from .. import benchmark as speed

    _check_options(images, end_to_end, shape, model, repeats)
    if json is not None:
        check_new_file(json, "--json")
    counts = sorted({1, speed.cores()}) if threads is None else parse_numbers(threads)
    map_size = parse_size(size, "--size")
    predictor = None if model is None else load_model(model, device, runtime=runtime)[1]
    shapes = [_parse_shape(text) for text in shape or MSCAIT_SHAPES] if predictor is None else _latent_shapes(predictor)
    todo: Iterable[Measurement]
    if predictor is not None and images:
        todo = _end_to_end(predictor, images, batch, repeats)
    else:
        threshold: Any = None if predictor is None else predictor.threshold
        todo = (speed.measure(step, repeats) for step in speed.steps(shapes, map_size, batch, counts, threshold))
    measurements = list(show_progress(todo, "Measuring"))
    settings = {"shapes": shapes, "size": map_size, "batch": batch, "repeats": repeats}
    _report(measurements, settings, json)


def _check_options(
    images: Sequence[str] | None, end_to_end: bool, shape: Sequence[str] | None, model: Path | None, repeats: int
) -> None:
    """Raise ValueError for options that do not go together."""
    if end_to_end and (model is None or not images):
        raise ValueError("--end-to-end needs --model and images: uflow benchmark --end-to-end --model MODEL IMAGES")
    if images and not end_to_end:
        raise ValueError("images go with --end-to-end")
    if model is not None and shape:
        raise ValueError("give --shape or --model, not both")
    if repeats < 1:
        raise ValueError(f"--repeats must be at least 1, got {repeats}")


def _parse_shape(text: str) -> tuple[int, int, int]:
    numbers = parse_numbers(text.lower(), "x")
    if len(numbers) != 3:
        raise ValueError(f"--shape is CHANNELSxHEIGHTxWIDTH, such as 816x28x28; got {text!r}")
    return numbers[0], numbers[1], numbers[2]


def _latent_shapes(predictor: Predictor) -> list[tuple[int, int, int]]:
    network = predictor.network
    height, width = network.image_size
    return [(c, height // s, width // s) for c, s in zip(network.latent_channels, network.strides, strict=True)]


def _end_to_end(predictor: Predictor, images: Sequence[str], batch: int, repeats: int) -> Iterable[Measurement]:
    from ..benchmark import end_to_end
    from ..images import list_images

    return end_to_end(predictor, list_images(images), batch, repeats)


def _report(measurements: Sequence[Measurement], settings: dict[str, Any], json: Path | None) -> None:
    """Print the table, and write the figures with what they depend on."""
    from .. import benchmark as speed
    from ..evaluate.tables import Table, write_json

    header, *rows = speed.table(measurements)
    machine = speed.machine()
    say(Table(header, rows).to_text() + "\n", kept=json is not None)
    batches = f"batches of {settings['batch']}, {settings['repeats']} repeats"
    say(f"{machine['processor']}, {machine['cores']} cores; {batches}", kept=json is not None)
    if json is not None:
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        figures = {"date": date, "machine": machine, **settings, "measurements": [asdict(m) for m in measurements]}
        write_json(figures, json)
        note(f"Wrote {json}")
