"""`uflow evaluate`, `uflow study`, `uflow compare`: measuring on test sets with truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..extras import require
from .app import app
from .common import (
    check_new_file,
    check_output_folder,
    check_seed,
    find_datasets,
    load_model,
    note,
    parse_numbers,
    say,
    shows_bars,
)
from .options import (
    CategoriesOption,
    DeviceOption,
    Engine,
    EngineOption,
    FairOption,
    FiguresOption,
    GpusOption,
    LayoutOption,
    ModelArgument,
    OracleOption,
    ProtocolOption,
    ReportOption,
    RuntimeOption,
    TailOption,
    ThreadsOption,
    TileOption,
    WeightsOption,
    with_recipe,
)

if TYPE_CHECKING:
    from ..evaluate.protocols import Protocol
    from ..evaluate.rivals import Measure
    from ..evaluate.samples import Dataset
    from ..evaluate.study import Models, Result
    from ..interop.cluster import Needs
    from .options import RecipeOf

RootArgument = Annotated[Path, typer.Argument(help="data set, or one category")]


@app.command(epilog="Example: uflow evaluate tile.uflow data/tile")
def evaluate(
    model: ModelArgument,
    root: RootArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="folder (default: results), or JSON file (default of one category: MODEL_evaluation)"
        ),
    ] = None,
    categories: CategoriesOption = None,
    layout: LayoutOption = None,
    protocol: ProtocolOption = "paper",
    oracle: OracleOption = "any",
    fair: FairOption = "sentence",
    figures: FiguresOption = False,
    tail: TailOption = None,
    report: ReportOption = None,
    tile: TileOption = None,
    runtime: RuntimeOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure one model on test sets with truth: AUROC, AUPRO, mIoU at log NFA = 0, images flagged.

    Each category of ROOT is evaluated, unless its result is there: killed, the same command goes on.
    """
    from ..evaluate.study import Given
    from ..threshold import PaperThreshold

    rules = make_protocol(protocol, oracle, fair)
    datasets, failed = find_datasets(root, layout, categories)
    output = _evaluation_output(output, model, single=len(datasets) == 1 and not failed and not figures)
    _check_report(report)
    loaded, predictor = load_model(model, device, weights, runtime)
    changed: dict[str, Any] = {} if runtime is None else {"runtime": runtime}
    if tile is not None and tile != predictor.tile:
        predictor.tile = changed["tile"] = tile
    if tail is not None:
        predictor.threshold, changed["tail"] = PaperThreshold(tail), tail  # type: ignore[arg-type]  # it checks
    given = Given(model, loaded, changed)
    if output.suffix == ".json":
        results = [_evaluate_into_file(given, datasets[0], root, output, rules)]
    else:
        results = _run(datasets, failed, output, given, rules, figures)
    _finish(datasets, results, given, report)


@app.command(epilog="Example: uflow study data/mvtec_ad --output results")
@with_recipe
def study(
    root: RootArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for models, results and figures")] = Path(
        "results"
    ),
    models: Annotated[Path | None, typer.Option(help="folder of CATEGORY.uflow (default: OUTPUT/models)")] = None,
    categories: CategoriesOption = None,
    layout: LayoutOption = None,
    protocol: ProtocolOption = "paper",
    oracle: OracleOption = "any",
    fair: FairOption = "sentence",
    figures: FiguresOption = False,
    report: ReportOption = None,
    select_on_test: Annotated[
        bool, typer.Option("--select-on-test", help="choose the epoch on the test set, to reproduce: no fair figure")
    ] = False,
    select_by: Annotated[
        str, typer.Option(help="figure that --select-on-test chooses by: pixel_auroc, aupro or miou")
    ] = "pixel_auroc",
    engine: EngineOption = Engine.here,
    threads: ThreadsOption = 1,
    gpus: GpusOption = 0,
    *,
    recipe: RecipeOf,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train and evaluate a model for every category of a data set; the figures stand beside published ones.

    A category whose model or result is there already, made with the same options, is not done again: killed, the same
    command goes on.
    """
    from ..evaluate.study import Trained

    if figures:
        require("figures", "matplotlib")
    needs = _ray_needs(engine, threads, gpus)
    require("train", "torch")
    rules = make_protocol(protocol, oracle, fair)
    if needs is not None and not gpus and device == "auto":
        device = "cpu"  # a task that asks for no GPU takes none
    check_output_folder(output)
    _check_report(report)
    if models is not None:
        check_output_folder(models, "--models")
    datasets, failed = find_datasets(root, layout, categories)
    if select_on_test:
        say("--select-on-test: each epoch is chosen on the test set, to reproduce. It is no fair figure.", kept=True)
    folder = models or output / "models"
    trained = Trained(folder, recipe, weights, device, select_on_test, select_by)  # type: ignore[arg-type]  # it checks
    results = _run(datasets, failed, output, trained, rules, figures, needs)
    _finish(datasets, results, trained, report)


@app.command(epilog="Example: uflow compare data --methods uflow,patchcore,cflow --seeds 0,1,2 --output comparison")
def compare(
    root: RootArgument,
    methods: Annotated[str | None, typer.Option(help="such as uflow,patchcore,module:function (default: all)")] = None,
    seeds: Annotated[str, typer.Option(help="of all that is random: 0,1,2")] = "0",
    categories: CategoriesOption = None,
    layout: LayoutOption = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for the tables and what was printed")] = Path(
        "comparison"
    ),
    backbone: Annotated[
        str | None,
        typer.Option(help="frozen features of all methods (default: efficientnet_lite0; mcait with --recipe paper)"),
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="side of the network's input (default: by --quality)")] = None,
    quality: Annotated[str, typer.Option(help="pixels of the input: fast, balanced or fine")] = "balanced",
    epochs: Annotated[
        int | None, typer.Option(help="passes over the images of trained rivals (default: for 200 steps)")
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="of uflow: default, or paper: as published, of each category")
    ] = "default",
    paper_map: Annotated[bool, typer.Option("--paper-map", help="uflow with the published map")] = False,
    paper_test: Annotated[bool, typer.Option("--paper-test", help="uflow with the published test")] = False,
    weights: WeightsOption = None,
    report: ReportOption = None,
    engine: EngineOption = Engine.here,
    threads: ThreadsOption = 1,
) -> None:
    """Measure U-Flow and other methods: same split, input, frozen features and figures; time and memory.

    Most need anomalib: pip install "uflow-ad\\[compare]". Killed, or given more methods, the same command goes on.
    """
    require("compare", "torch")
    from ..evaluate import rivals

    check_output_folder(output)
    _check_report(report)
    numbers = parse_numbers(seeds)
    for number in numbers:
        check_seed(number, "--seeds")
    datasets, failed = find_datasets(root, layout, categories)
    if failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        others = ",".join(dataset.name for dataset in datasets)
        hint = f"; compare the others with --categories {others}"
        raise ValueError(reasons + (hint if others else ""))
    chosen = list(rivals.METHODS) if methods is None else [name.strip() for name in methods.split(",")]
    if recipe == "paper":
        backbone, image_size = backbone or "mcait", image_size or 448
    settings = rivals.Settings(
        backbone or rivals.Settings.backbone,
        image_size,
        quality,  # type: ignore[arg-type]  # it checks
        epochs,
        None if weights is None else tuple(file.resolve() for file in weights),
        recipe,
        paper_map,
        paper_test,
    )
    needs = _ray_needs(engine, threads)
    measure = partial(rivals.measure_in_turn, on_start=note) if needs is None else _measure_on_ray(needs)
    results = rivals.compare(datasets, chosen, numbers, output, settings, measure, keep=report is not None)
    say(rivals.markdown(results, settings), kept=True)
    note(f"Wrote {', '.join(str(output / f'comparison{suffix}') for suffix in ('.md', '.csv', '.json'))}")
    if report is not None:
        from .reports import write_comparison_report

        write_comparison_report(datasets, results, settings, output, report)
    if any(result.failure for result in results):
        raise typer.Exit(1)


def make_protocol(name: str, oracle: str, fair: str) -> Protocol:
    """The protocol that the options ask for."""
    from ..evaluate.protocols import Protocol, parse_oracle

    return Protocol(name, oracle=parse_oracle(oracle), fair=fair)  # type: ignore[arg-type]  # it checks


def _ray_needs(engine: Engine, threads: int, gpus: float = 0) -> Needs | None:
    """What each task of Ray is given; None where nothing runs on Ray."""
    if engine is Engine.here:
        if threads != 1 or gpus:
            raise ValueError("--threads and --gpus are of tasks of ray: add --engine ray")
        return None
    require("ray", "ray")
    from ..interop.cluster import Needs

    return Needs(threads, gpus)


def _measure_on_ray(needs: Needs) -> Measure:
    """Measures methods as tasks of Ray."""
    import torch

    from ..evaluate.on_ray import measure_jobs

    torch.set_num_threads(needs.threads)  # the tables say how many each method had
    return partial(measure_jobs, needs=needs, on_done=note)


def _evaluation_output(output: Path | None, model: Path, single: bool) -> Path:
    """The JSON file or the folder that results go to, looked at before the work."""
    output = output or Path(f"{model.stem}_evaluation.json" if single else "results")
    if output.suffix != ".json":
        check_output_folder(output)
    elif not single:
        raise ValueError(f"--output {output} is a file, for one category without --figures: give a folder")
    else:
        check_new_file(output)
    return output


def _check_report(report: Path | None) -> None:
    """Raise OSError where the page cannot be written; it may lie in a folder for results that was just made."""
    if report is not None:
        check_new_file(report, "--report")


def _finish(datasets: Sequence[Dataset], results: Sequence[Result], models: Models, report: Path | None) -> None:
    """Write the report if it is asked for; exit code 1 where a category failed."""
    if report is not None and any(result.record for result in results):
        from .reports import write_evaluation_report

        write_evaluation_report(datasets, results, models, report)
    if any(result.error for result in results):
        raise typer.Exit(1)


def _evaluate_into_file(given: Models, dataset: Dataset, root: Path, output: Path, protocol: Protocol) -> Result:
    """Measure a finished model on one category."""
    from ..evaluate.study import Result, measure
    from ..evaluate.tables import write_json

    record = measure(dataset, given.load(dataset.name), given.path(dataset.name), protocol, progress=shows_bars())
    write_json({"root": str(root), **record, **record["evaluation"], "evaluation": None}, output)
    result = Result(dataset.name, dataset.layout, record)
    _print_results([result])
    note(f"Wrote {output}")
    return result


def _run(
    datasets: Sequence[Dataset],
    failed: Mapping[str, str],
    output: Path,
    models: Models,
    protocol: Protocol,
    figures: bool,
    needs: Needs | None = None,
) -> list[Result]:
    """Run over the categories with a line for each, here or on Ray, print and write the tables."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..evaluate import study as studies
    from ..evaluate.summary import summarise, write_summary

    if figures:
        require("figures", "matplotlib")  # before the work
    studies.check(datasets, output, models, protocol)
    results = [studies.Result(name, error=reason) for name, reason in failed.items()]
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not shows_bars()) as progress:
        if needs is None:
            at_work = [*(f"Category {dataset.name}" for dataset in datasets), "Categories"]
            found = studies.run(datasets, output, models, protocol, figures, progress)
        else:
            from ..evaluate.on_ray import run_study

            at_work = ["Categories"] * (len(datasets) + 1)
            found = run_study(datasets, output, models, protocol, figures, needs)  # type: ignore[arg-type]  # `Trained`
        bar = progress.add_task(at_work[0], total=len(datasets), visible=len(datasets) > 1)
        for result in found:
            results.append(result)
            progress.update(bar, advance=1, description=at_work[len(results) - len(failed)])
            note(str(result), err=True)
    written = write_summary(summarise(results), output)
    _print_results(results)
    note(f"Wrote {', '.join(map(str, written))}")
    return results


def _print_results(results: Sequence[Result]) -> None:
    """The table of all, and of a single category the images flagged by kind."""
    from ..evaluate.summary import flagged_table, summarise, summary_text

    summary = summarise(results)
    say(summary_text(summary), kept=True)
    if len(results) == 1:
        say(flagged_table(summary).to_text() + "\n", kept=True)
