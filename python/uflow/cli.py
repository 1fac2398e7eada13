"""The `uflow` command: arguments in, library calls, results printed."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import Progress, track
from rich.table import Table

console = Console()
app = typer.Typer(
    name="uflow",
    help="Learn what good parts look like; find what is not: anomaly maps, and masks with no threshold to tune.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

Device = Annotated[str, typer.Option(help="auto (CUDA, then MPS, then CPU), cpu, cuda, cuda:1, mps")]
Runtime = Annotated[
    str | None, typer.Option(help="of an exported folder: onnxruntime, openvino or torch (default: what it is for)")
]
Weights = Annotated[
    list[Path] | None, typer.Option(help="file with the backbone's weights (twice for mcait: m48, s24)")
]


@app.command(epilog="Example: uflow train data/tile/train/good --output tile.uflow")
def train(
    images: Annotated[str, typer.Argument(help="folder or pattern of good images")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="model file (default: CATEGORY.uflow)")] = None,
    backbone: Annotated[str, typer.Option(help="efficientnet_lite0/1/2, mcait, resnet18, or any timm model")] = (
        "efficientnet_lite0"
    ),
    image_size: Annotated[str | None, typer.Option(help="network input: 256, or 256x320 (height x width)")] = None,
    strides: Annotated[str | None, typer.Option(help="scales of the backbone, such as 8,16,32")] = None,
    weights: Weights = None,
    epochs: Annotated[int, typer.Option(help="passes over the images")] = 16,
    batch_size: Annotated[int, typer.Option(help="images a step")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Adam's rate after warming up")] = 2e-3,
    held_out: Annotated[float, typer.Option(help="share of images kept to select and calibrate by")] = 0.15,
    alpha: Annotated[float, typer.Option(help="wished chance that a good image is flagged")] = 0.05,
    tile: Annotated[bool, typer.Option(help="cut large images into tiles of the network's size")] = False,
    paper_test: Annotated[bool, typer.Option("--paper-test", help="the published test, not calibrated")] = False,
    seed: Annotated[int, typer.Option(help="of the split, the flow and the order of images")] = 0,
    device: Device = "auto",
) -> None:
    """Learn from a folder of good images; writes a model file.

    Killed half-way, the same command goes on from the last whole epoch.
    """
    from .detector import Detector
    from .training import TrainingSettings

    output = output or Path(f"{_category(images)}.uflow")
    if not output.resolve().parent.is_dir():
        raise FileNotFoundError(f"cannot write {output}: there is no folder {output.resolve().parent}")
    state_file = output.with_name(output.name + ".state")
    if state_file.exists():
        console.print(f"Going on with the training that {state_file} holds")
    detector = Detector.fit(
        images,
        backbone,
        image_size=None if image_size is None else _size(image_size),
        strides=None if strides is None else _numbers(strides, ","),
        weights=weights,
        settings=TrainingSettings(epochs, batch_size, learning_rate, seed=seed),
        held_out=held_out,
        alpha=None if paper_test else alpha,
        device=device,
        tile=tile,
        state_file=state_file,
    )
    detector.save(output)
    state_file.unlink()
    console.print(f"Wrote [bold]{output}[/]: {len(detector.history)} epochs. Next: uflow predict {output} IMAGES")


@app.command(epilog="Example: uflow predict tile.uflow new_parts/ --output results")
def predict(
    model: Annotated[Path, typer.Argument(help="model file, or exported folder")],
    images: Annotated[list[str], typer.Argument(help="files, folders or patterns")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="folder for masks, maps and overlays")] = None,
    arrays: Annotated[bool, typer.Option("--npy", help="also write the maps as .npy, float32")] = False,
    batch_size: Annotated[int, typer.Option(help="images, or tiles, at once")] = 8,
    tile: Annotated[
        bool | None, typer.Option(help="cut large images into tiles of the network's size (default: as trained)")
    ] = None,
    runtime: Runtime = None,
    weights: Weights = None,
    device: Device = "auto",
) -> None:
    """Anomaly map, mask and regions of new images; one line of JSON an image on standard output."""
    from . import load, report
    from .data import list_images

    detector = load(model, device, weights, runtime)
    if tile is not None:
        detector.tile = tile
    paths = list_images(images)
    stems = _stems(paths)
    progress = Progress(*Progress.get_default_columns(), console=Console(stderr=True))
    bar = progress.add_task("Predicting", total=len(paths), visible=len(paths) > 1)
    tiles = progress.add_task("Tiles", visible=False)

    def on_tiles(done: int, total: int) -> None:
        progress.update(tiles, completed=done, total=total, visible=True)

    predictions = detector.stream(paths, batch_size, on_tiles if detector.tile else None)
    lines = None
    flagged = 0
    started = time.perf_counter()
    progress.start()
    try:
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            lines = (output / "predictions.jsonl").open("w")
        for prediction, stem in zip(predictions, stems, strict=True):
            progress.advance(bar)
            flagged += prediction.is_anomalous
            report.write_json_line(prediction, sys.stdout)
            if output is not None and lines is not None:
                report.write_json_line(prediction, lines)
                report.write_prediction(prediction, output / stem, arrays)
    finally:
        progress.stop()
        if lines is not None:
            lines.close()
    rate = len(paths) / (time.perf_counter() - started)
    where = "" if output is None else f"; pictures and predictions.jsonl in {output}"
    Console(stderr=True).print(f"{flagged} of {len(paths)} images have a detected region, {rate:.1f} images/s{where}")


@app.command(epilog="Example: uflow evaluate tile.uflow data/tile --output tile.json")
def evaluate(
    model: Annotated[Path, typer.Argument(help="model file, or exported folder")],
    root: Annotated[Path, typer.Argument(help="folder with test/<defect> and ground_truth/<defect>")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file for the figures")] = None,
    runtime: Runtime = None,
    weights: Weights = None,
    device: Device = "auto",
) -> None:
    """Measure a model on a test set with truth: AUROC, AUPRO, mIoU at log NFA = 0, images flagged."""
    from . import load, report

    evaluation = load(model, device, weights, runtime).evaluate(root, progress=True)
    _print_table(report.table({root.resolve().name: evaluation}))
    kinds = [["test", "images", "flagged"]]
    kinds += [[kind, f"{c['images']:.0f}", f"{c['share']:.1%}"] for kind, c in evaluation.flagged.items()]
    _print_table(kinds)
    output = output or Path(f"{model.stem}_evaluation.json")
    report.write_json({"model": str(model), "root": str(root), **evaluation.to_dict()}, output)
    console.print(f"Wrote {output}")


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
    weights: Weights = None,
) -> None:
    """Write a model for an inspection PC without torch: a folder for ONNX Runtime, OpenVINO or torch.

    uflow predict, evaluate and benchmark, and uflow.load, take the folder in place of the model file.
    """
    from .data import list_images
    from .detector import load
    from .export import export as write

    detector = load(model, device="cpu", weights=weights)
    output = output or Path(f"{model.stem}_{format}")
    write(detector, output, format, dynamic_size=dynamic_size, int8=list_images(int8) if int8 else None)
    names = ", ".join(sorted(path.name for path in output.iterdir()))
    console.print(f"Wrote [bold]{output}[/]: {names}. Next: uflow predict {output} IMAGES")


@app.command(epilog="Example: uflow demo --output demo")
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for images, models and pictures")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option(help="of the crops, the defects and the training")] = 0,
    device: Device = "auto",
) -> None:
    """Train and evaluate on real textures with made defects; needs no data and no internet."""
    from . import demo as demonstration
    from . import report

    started = time.perf_counter()
    evaluations = demonstration.run(output, seed=seed, device=device)
    _print_table(report.table(evaluations))
    pictures = sorted(str(path) for path in output.glob("*.png"))
    console.print(f"Done in {time.perf_counter() - started:.0f} s. Pictures: {', '.join(pictures)}")


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
    runtime: Runtime = None,
    device: Device = "auto",
    threads: Annotated[str | None, typer.Option(help="thread numbers to compare (default: 1 and all cores)")] = None,
    repeats: Annotated[int, typer.Option(help="calls of each step")] = 100,
    json: Annotated[Path | None, typer.Option(help="file for the figures and the machine")] = None,
) -> None:
    """Measure how fast this machine segments latents, or predicts: time an image, images a second, threads.

    energy: latents to one number a cell; segmentation: energies to log NFA maps; log_nfa: both. With --end-to-end:
    reading, resizing, the network and segmentation (energies to maps, mask and regions) of one image, then a stream.
    """
    from . import benchmark as speed
    from . import load, report
    from .data import list_images

    if end_to_end and (model is None or not images):
        raise ValueError("--end-to-end needs --model and images: uflow benchmark --end-to-end --model MODEL IMAGES")
    if images and not end_to_end:
        raise ValueError("images go with --end-to-end")
    options: dict[str, Any] = {}
    if model is not None:
        if shape:
            raise ValueError("give --shape or --model, not both")
        detector = load(model, device, runtime=runtime)
        height, width = detector.image_size
        shapes = [(c, height // s, width // s) for c, s in zip(detector.latent_channels, detector.strides, strict=True)]
        options = {"tail": detector.tail, "n_tests": detector.n_tests, "background": detector.background}
    else:
        shapes = [_shape(text) for text in shape or ["816x28x28", "192x14x14"]]
    counts = sorted({1, speed.cores()}) if threads is None else _numbers(threads, ",")
    if repeats < 1:
        raise ValueError(f"--repeats must be at least 1, got {repeats}")
    if json is not None and not json.resolve().parent.is_dir():
        raise FileNotFoundError(f"cannot write {json}: there is no folder {json.resolve().parent}")
    sides = _size(size, "--size")
    todo: Iterable[speed.Measurement]
    if end_to_end and images:
        todo = speed.end_to_end(detector, list_images(images), batch, repeats)
    else:
        todo = (speed.measure(step, repeats) for step in speed.steps(shapes, sides, batch, counts, **options))
    measurements = list(track(todo, "Measuring", console=Console(stderr=True)))
    machine = speed.machine()
    _print_table(speed.table(measurements))
    console.print(f"{machine['processor']}, {machine['cores']} cores; batches of {batch}, {repeats} repeats")
    if json is not None:
        figures = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": machine,
            "shapes": shapes,
            "size": sides,
            "batch": batch,
            "repeats": repeats,
            "measurements": [asdict(m) for m in measurements],
        }
        report.write_json(figures, json)
        console.print(f"Wrote {json}")


def _print_table(rows: list[list[str]]) -> None:
    table = Table(box=SIMPLE_HEAD)
    for i, name in enumerate(rows[0]):
        table.add_column(name, no_wrap=i == 0, justify="right" if i else "left")
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)


def _numbers(text: str, separator: str) -> list[int]:
    try:
        return [int(part) for part in text.split(separator)]
    except ValueError:
        raise ValueError(f"{text!r} is not a list of whole numbers with {separator!r} between them") from None


def _size(text: str, option: str = "--image-size") -> int | tuple[int, int]:
    numbers = _numbers(text.lower(), "x")
    if len(numbers) == 1:
        return numbers[0]
    if len(numbers) != 2:
        raise ValueError(f"{option} is a side or HEIGHTxWIDTH, such as 256 or 256x320; got {text!r}")
    return numbers[0], numbers[1]


def _shape(text: str) -> tuple[int, int, int]:
    numbers = _numbers(text.lower(), "x")
    if len(numbers) != 3:
        raise ValueError(f"--shape is CHANNELSxHEIGHTxWIDTH, such as 816x28x28; got {text!r}")
    return numbers[0], numbers[1], numbers[2]


def _category(images: str) -> str:
    """ "data/tile/train/good" is of the category tile; any other folder or pattern is called by its last name."""
    parts = [part for part in Path(images).resolve().parts if not set(part) & set("*?[")]
    return parts[-3] if len(parts) > 3 and parts[-2:] == ["train", "good"] else parts[-1]


def _stems(paths: list[Path]) -> list[Path]:
    """Output names: the path below the folder that all images share, without suffix where that is unambiguous."""
    whole = [path.resolve() for path in paths]
    shared = os.path.commonpath([path.parent for path in whole])
    relative = [path.relative_to(shared) for path in whole]
    bare = [path.with_suffix("") for path in relative]
    return [name if bare.count(name) == 1 else path for name, path in zip(bare, relative, strict=True)]


def main() -> None:
    """Entry point: what a user did wrong is one line, not a traceback."""
    logging.basicConfig(level="INFO", format="%(message)s", handlers=[RichHandler(show_time=False, show_path=False)])
    logging.getLogger().setLevel("WARNING")
    logging.getLogger("uflow").setLevel("INFO")
    try:
        app()
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"uflow: error: {error}", file=sys.stderr)
        sys.exit(1)
