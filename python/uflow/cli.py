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
from typing import TYPE_CHECKING, Annotated, Any

import rich
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from rich.table import Table

if TYPE_CHECKING:
    from .training import TrainingSettings

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
BackboneName = Annotated[str, typer.Option(help="efficientnet_lite0/1/2, mcait, resnet18, or any timm model")]
ImageSize = Annotated[str | None, typer.Option(help="network input: 256, or 256x320 (height x width)")]
Strides = Annotated[str | None, typer.Option(help="scales of the backbone, such as 8,16,32")]
Epochs = Annotated[int, typer.Option(help="passes over the images")]
BatchSize = Annotated[int, typer.Option(help="images a step")]
LearningRate = Annotated[float, typer.Option(help="Adam's rate after warming up")]
HeldOut = Annotated[float, typer.Option(help="share of images kept to select and calibrate by")]
Alpha = Annotated[float, typer.Option(help="wished chance that a good image is flagged")]
PaperTest = Annotated[bool, typer.Option("--paper-test", help="the published test, not calibrated")]
PaperMap = Annotated[
    bool, typer.Option("--paper-map", help="the published map: of the latents alone, learnt without turned copies")
]
Seed = Annotated[int, typer.Option(help="of the split, the flow and the order of images")]
# What `evaluate` takes only where it trains.
TRAINING = [
    *("backbone", "image_size", "strides", "epochs", "batch_size", "learning_rate", "held_out", "alpha"),
    *("paper_test", "paper_map", "seed", "models", "select_on_test"),
]


@app.command(epilog="Example: uflow train data/tile/train/good --output tile.uflow")
def train(
    images: Annotated[str, typer.Argument(help="folder or pattern of good images")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="model file (default: CATEGORY.uflow)")] = None,
    backbone: BackboneName = "efficientnet_lite0",
    image_size: ImageSize = None,
    strides: Strides = None,
    weights: Weights = None,
    epochs: Epochs = 16,
    batch_size: BatchSize = 16,
    learning_rate: LearningRate = 2e-3,
    held_out: HeldOut = 0.15,
    alpha: Alpha = 0.05,
    tile: Annotated[bool, typer.Option(help="cut large images into tiles of the network's size")] = False,
    paper_test: PaperTest = False,
    paper_map: PaperMap = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Learn from a folder of good images; writes a model file.

    Killed half-way, the same command goes on from the last whole epoch.
    """
    from .detector import Detector

    output = output or Path(f"{_category(images)}.uflow")
    _check_folder_of(output)
    state_file = output.with_name(output.name + ".state")
    if state_file.exists():
        console.print(f"Going on with the training that {state_file} holds")
    detector = Detector.fit(
        images,
        backbone,
        image_size=None if image_size is None else _size(image_size),
        strides=None if strides is None else _numbers(strides, ","),
        weights=weights,
        settings=_settings(epochs, batch_size, learning_rate, seed, paper_map),
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
    model: Annotated[Path, typer.Argument(help="model file, exported folder, or checkpoint made elsewhere (.ckpt)")],
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
    from . import load
    from .evaluate import tables as report
    from .images import list_images

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


@app.command(epilog="Example: uflow evaluate data/mvtec_ad --output results")
def evaluate(
    context: typer.Context,
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="[MODEL] ROOT", help="data set, or one category; before it a model, if there is one"),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="folder (default: results), or JSON file for one model on one category"),
    ] = None,
    models: Annotated[Path | None, typer.Option(help="folder of CATEGORY.uflow (default: OUTPUT/models)")] = None,
    categories: Annotated[str | None, typer.Option(help="only these: bottle,cable")] = None,
    layout: Annotated[str | None, typer.Option(help="of the data set, such as visa (default: as it looks)")] = None,
    protocol: Annotated[str, typer.Option(help="paper: at 256x256; native: at each image's own size")] = "paper",
    figures: Annotated[
        bool, typer.Option("--figures", help="also draw the article's figures of each category")
    ] = False,
    select_on_test: Annotated[
        bool, typer.Option("--select-on-test", help="choose the epoch on the test set, to reproduce: no fair figure")
    ] = False,
    tile: Annotated[
        bool | None, typer.Option(help="cut large images into tiles of the network's size (default: as trained)")
    ] = None,
    backbone: BackboneName = "efficientnet_lite0",
    image_size: ImageSize = None,
    strides: Strides = None,
    epochs: Epochs = 16,
    batch_size: BatchSize = 16,
    learning_rate: LearningRate = 2e-3,
    held_out: HeldOut = 0.15,
    alpha: Alpha = 0.05,
    paper_test: PaperTest = False,
    paper_map: PaperMap = False,
    seed: Seed = 0,
    runtime: Runtime = None,
    weights: Weights = None,
    device: Device = "auto",
) -> None:
    """Measure on test sets with truth: AUROC, AUPRO, mIoU at log NFA = 0, images flagged, beside published figures.

    ROOT alone: each category found is trained, unless its model is there, and evaluated, unless its result is there;
    killed, the same command goes on. MODEL ROOT: that model (file, exported folder, .ckpt) on each category of ROOT.
    """
    from . import load
    from .evaluate import study as experiments
    from .evaluate import tables as report
    from .evaluate.datasets import find_categories

    if len(paths) > 2:
        raise ValueError(f"give [MODEL] ROOT, one folder for all categories; got {len(paths)} paths")
    model, root = paths[0] if len(paths) == 2 else None, paths[-1]
    failed: dict[str, str] = {}
    datasets = find_categories(root, layout, failed)
    if categories is not None:
        wanted = _chosen(categories, [dataset.name for dataset in datasets] + list(failed), root)
        datasets = [dataset for dataset in datasets if dataset.name in wanted]
        failed = {name: reason for name, reason in failed.items() if name in wanted}
    for_one = model is not None and len(datasets) == 1 and not failed and not figures
    one_file = output.suffix == ".json" if output else for_one
    if one_file and not for_one:
        raise ValueError(f"--output {output} is a file, for one MODEL on one category without --figures: give a folder")

    source: experiments.Models
    if model is not None:
        for name in TRAINING:
            given = context.get_parameter_source(name)
            if given is not None and given.name != "DEFAULT":
                raise ValueError(f"--{name.replace('_', '-')} is for training, and {model} is trained: leave one out")
        predictor = load(model, device, weights, runtime)
        changed: dict[str, Any] = {} if runtime is None else {"runtime": runtime}
        if tile is not None and tile != predictor.tile:
            predictor.tile = changed["tile"] = tile
        source = experiments.Given(model, predictor, changed)
    else:
        if runtime is not None:
            raise ValueError("--runtime is for an exported MODEL: uflow evaluate MODEL ROOT")
        source = experiments.Trained(
            models or (output or Path("results")) / "models",
            backbone,
            image_size=None if image_size is None else _size(image_size),
            strides=None if strides is None else _numbers(strides, ","),
            weights=weights,
            training=_settings(epochs, batch_size, learning_rate, seed, paper_map),
            held_out=held_out,
            alpha=None if paper_test else alpha,
            device=device,
            tile=bool(tile),
            select_on_test=select_on_test,
        )
    if select_on_test:
        _print("--select-on-test: each epoch is chosen on the test set, to reproduce. It is no fair figure.")

    if one_file and model is not None:
        (dataset,) = datasets
        output = output or Path(f"{model.stem}_evaluation.json")
        _check_folder_of(output)
        record = experiments.measure(dataset, predictor, model, protocol, progress=True)
        report.write_json({"root": str(root), **record, **record["evaluation"], "evaluation": None}, output)
        written = [output]
        results = [experiments.Result(dataset.name, dataset.layout, record)]
    else:
        output = output or Path("results")
        experiments.check(datasets, output, source, protocol)
        results = [experiments.Result(name, error=reason) for name, reason in failed.items()]
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, disable=not rich.get_console().is_terminal) as progress:
            at_work = [*(f"Category {dataset.name}" for dataset in datasets), "Categories"]
            bar = progress.add_task(at_work[0], total=len(datasets), visible=len(datasets) > 1)
            for result in experiments.run(datasets, output, source, protocol, figures, progress):
                results.append(result)
                progress.update(bar, advance=1, description=at_work[len(results) - len(failed)])
                _print(str(result), progress.console)
        written = report.write_summary(experiments.summary(results), output)
    summary = experiments.summary(results)
    _print(report.summary_text(summary))
    if len(results) == 1:
        kinds = summary["categories"][0]["flagged"].items()
        _print_table([["test", "images", "flagged"], *([k, str(c["images"]), f"{c['share']:.1%}"] for k, c in kinds)])
    _print(f"Wrote {', '.join(map(str, written))}")
    if any(result.error for result in results):
        raise typer.Exit(1)


@app.command(epilog="Example: uflow compare data --methods uflow,patchcore,cflow --seeds 0,1,2 --output comparison")
def compare(
    root: Annotated[Path, typer.Argument(help="data set, or one category")],
    methods: Annotated[str | None, typer.Option(help="such as uflow,patchcore,module:function (default: all)")] = None,
    seeds: Annotated[str, typer.Option(help="of all that is random: 0,1,2")] = "0",
    categories: Annotated[str | None, typer.Option(help="only these: bottle,cable")] = None,
    layout: Annotated[str | None, typer.Option(help="of the data set, such as visa (default: as it looks)")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for the tables and what was printed")] = Path(
        "comparison"
    ),
    backbone: Annotated[str, typer.Option(help="frozen features of all methods")] = "efficientnet_lite0",
    image_size: Annotated[int | None, typer.Option(help="side of the network's input")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="passes over the images of trained rivals (default: for 200 steps)")
    ] = None,
) -> None:
    """Measure U-Flow and other methods: same split, input, frozen features and figures; time and memory.

    Most need anomalib: pip install "uflow\\[compare]". Killed, or given more methods, the same command goes on.
    """
    from .evaluate import rivals as comparison
    from .evaluate.datasets import find_categories

    datasets = find_categories(root, layout)
    if categories is not None:
        wanted = _chosen(categories, [dataset.name for dataset in datasets], root)
        datasets = [dataset for dataset in datasets if dataset.name in wanted]
    chosen = list(comparison.METHODS) if methods is None else [name.strip() for name in methods.split(",")]
    settings = comparison.Settings(backbone, image_size, epochs)
    results = comparison.compare(datasets, chosen, _numbers(seeds, ","), output, settings, on_start=_print)
    _print(comparison.markdown(results, settings))
    _print(f"Wrote {', '.join(str(output / f'comparison{suffix}') for suffix in ('.md', '.csv', '.json'))}")
    if any(result.failure for result in results):
        raise typer.Exit(1)


@app.command(epilog="Example: uflow calibrate tile.uflow good_parts/ --alpha 0.02 --output tile_line2.uflow")
def calibrate(
    model: Annotated[Path, typer.Argument(help="model file, exported folder, or checkpoint made elsewhere (.ckpt)")],
    images: Annotated[
        list[str], typer.Argument(help="good images that it was not trained on: files, folders, patterns")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="model file to write (default: MODEL_calibrated.uflow; a folder takes it itself)"
        ),
    ] = None,
    alpha: Alpha = 0.05,
    soft_clamp: Annotated[
        str | None, typer.Option(help="of a .ckpt: tanh(r) or tanh(r/clamp), see docs/checkpoints.md")
    ] = None,
    weights: Weights = None,
    device: Device = "auto",
) -> None:
    """Learn the threshold anew from good images, without training: another camera, a model made elsewhere."""
    from . import load
    from .deploy.exported import Exported
    from .images import list_images

    detector = load(model, device, weights, soft_clamp=soft_clamp)  # type: ignore[arg-type]  # load checks it
    if isinstance(detector, Exported) and output is not None:
        raise ValueError(f"{model} is an exported folder, which takes its new threshold itself: leave --output out")
    if output is not None:
        _check_folder_of(output)
    detector.calibrate(list_images(images), alpha)
    if isinstance(detector, Exported):
        detector.save_test()
        output = model
    else:
        from .detector import Detector

        assert isinstance(detector, Detector)
        output = output or Path(f"{model.stem}_calibrated.uflow")
        detector.save(output)
    console.print(f"Wrote [bold]{output}[/]: calibrated for alpha {alpha:g}. Next: uflow predict {output} IMAGES")


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
    from .deploy.export import export as write
    from .detector import load
    from .images import list_images

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
    from .evaluate import tables as report

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
    from . import load
    from .evaluate import tables as report
    from .images import list_images

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
    if json is not None:
        _check_folder_of(json)
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


def _print(text: str, where: Console = console) -> None:
    """As it is: no markup, and as long as its lines are."""
    where.print(text, markup=False, highlight=False, soft_wrap=True)


def _print_table(rows: list[list[str]]) -> None:
    table = Table(box=SIMPLE_HEAD)
    for i, name in enumerate(rows[0]):
        table.add_column(name, no_wrap=i == 0, justify="right" if i else "left")
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)


def _chosen(categories: str, names: list[str], root: Path) -> list[str]:
    """The categories named in "bottle,cable", all of which must be there."""
    wanted = [name.strip() for name in categories.split(",")]
    if unknown := [name for name in wanted if name not in names]:
        raise ValueError(f"{root} has no category {', '.join(unknown)}: it has {', '.join(names)}")
    return wanted


def _check_folder_of(file: Path) -> None:
    """Before the work whose result is to be written there."""
    if not file.resolve().parent.is_dir():
        raise FileNotFoundError(f"cannot write {file}: there is no folder {file.resolve().parent}")


def _settings(epochs: int, batch_size: int, learning_rate: float, seed: int, paper_map: bool) -> TrainingSettings:
    from .training import TrainingSettings

    ours: dict[str, Any] = {"augment": False, "neighbours": 0} if paper_map else {}
    return TrainingSettings(epochs, batch_size, learning_rate, seed=seed, **ours)


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
    # On standard error, as predict's standard output is JSON alone; and on the console of the bars: lines that another
    # console writes go through them.
    rich.reconfigure(stderr=True)
    handler = RichHandler(show_time=False, show_path=False)
    logging.basicConfig(level="INFO", format="%(message)s", handlers=[handler])
    logging.getLogger().setLevel("WARNING")
    logging.getLogger("uflow").setLevel("INFO")
    try:
        app()
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"uflow: error: {error}", file=sys.stderr)
        sys.exit(1)
