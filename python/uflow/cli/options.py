"""Options that several commands have in common, and those of a training, which build one `Recipe`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from .common import check_seed, parse_numbers, parse_size
from .config import use_product

if TYPE_CHECKING:
    from ..recipe import Recipe

__all__ = [
    "AlphaOption",
    "CategoriesOption",
    "DeviceOption",
    "Engine",
    "EngineOption",
    "FairOption",
    "FiguresOption",
    "GpusOption",
    "JsonOption",
    "LayoutOption",
    "LookAlphaOption",
    "ModelArgument",
    "OracleOption",
    "ProductOption",
    "ProtocolOption",
    "RecipeOf",
    "ReportOption",
    "RuntimeOption",
    "TailOption",
    "ThreadsOption",
    "TileOption",
    "WeightsOption",
    "build_recipe",
    "recipe_of_options",
    "with_recipe",
]


class Engine(str, Enum):
    """What a command runs on."""

    here = "here"
    ray = "ray"


ModelArgument = Annotated[
    Path, typer.Argument(help="model file, exported folder, or checkpoint made elsewhere (.ckpt)")
]
DeviceOption = Annotated[
    str,
    typer.Option(
        help="auto (CUDA, then MPS, then CPU), cpu, cuda, cuda:1, mps; of an exported folder also gpu, npu, ..."
    ),
]
RuntimeOption = Annotated[
    str | None, typer.Option(help="of an exported folder: onnxruntime, openvino or torch (default: what it is for)")
]
WeightsOption = Annotated[
    list[Path] | None,
    typer.Option(help="file with the backbone's weights (twice for mcait: m48, s24), or folder of uflow weights fetch"),
]
TileOption = Annotated[
    bool | None, typer.Option(help="cut large images into tiles of the network's size (default: as trained)")
]
AlphaOption = Annotated[float, typer.Option(help="wished chance that a good image is flagged")]
LookAlphaOption = Annotated[
    float | None, typer.Option(help="larger chance that a good image is not called good: what lies between is 'look'")
]
CategoriesOption = Annotated[str | None, typer.Option(help="only these: bottle,cable")]
LayoutOption = Annotated[str | None, typer.Option(help="of the data set, such as visa (default: as it looks)")]
ProtocolOption = Annotated[str, typer.Option(help="paper: at 256x256; native: at each image's own size")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON")]
ReportOption = Annotated[
    Path | None, typer.Option(help="also write one HTML page to look through, such as report.html")
]
OracleOption = Annotated[
    str, typer.Option(help="thresholds that mIoU best is sought over: any, or LOW:HIGH:STEP in log10 NFA")
]
FairOption = Annotated[
    str, typer.Option(help="how mIoU fair's threshold is read off: sentence, or corners (as the published figures)")
]
TailOption = Annotated[
    str | None, typer.Option(help="judge by the paper's test with this tail: chernoff, exact, chernoff-unguarded")
]
EngineOption = Annotated[Engine, typer.Option(help="here, or ray: a task a category, on a Ray cluster or this machine")]
ThreadsOption = Annotated[int, typer.Option(help="processors of each task of ray")]
GpusOption = Annotated[float, typer.Option(help="GPUs of each task of ray; a part is allowed")]
ProductOption = Annotated[
    Path | None,
    typer.Option(
        help="product.toml, which says the model, alpha, region of interest: docs/guide/products.md",
        callback=use_product,
        is_eager=True,
    ),
]
RecipeOption = Annotated[
    str, typer.Option(help="default, or paper: as published, of each category; other options given take its place")
]
FiguresOption = Annotated[bool, typer.Option("--figures", help="also draw the article's figures of each category")]


RecipeOf = Callable[[str], "Recipe"]  # a category's recipe

# Where the options of `build_recipe` stand in a recipe and in its settings; they take the place of the paper's.
_IN_RECIPE = ("image_size", "quality", "strides", "held_out", "hold_out", "alpha", "tile", "tail")
_IN_SETTINGS = ("epochs", "batch_size", "learning_rate", "seed")


def build_recipe(
    backbone: Annotated[
        str, typer.Option(help="efficientnet_lite0/1/2, mcait, resnet18, or any timm model")
    ] = "efficientnet_lite0",
    image_size: Annotated[
        str, typer.Option(help="network input: 256, or 256x320 (height x width); auto: in the images' own shape")
    ] = "auto",
    quality: Annotated[
        str, typer.Option(help="pixels of --image-size auto: fast (as 256x256), balanced (448x448), fine (640x640)")
    ] = "balanced",
    strides: Annotated[str | None, typer.Option(help="scales of the backbone, such as 8,16,32")] = None,
    epochs: Annotated[int, typer.Option(help="passes over the images")] = 16,
    batch_size: Annotated[int, typer.Option(help="images a step")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Adam's rate after warming up")] = 2e-3,
    held_out: Annotated[float, typer.Option(help="share of images kept to select and calibrate by")] = 0.15,
    hold_out: Annotated[
        str, typer.Option(help="which images these are: random, last, groups (of like ones), or auto")
    ] = "auto",
    alpha: AlphaOption = 0.05,
    look_alpha: LookAlphaOption = None,
    tile: Annotated[bool, typer.Option(help="cut large images into tiles of the network's size")] = False,
    paper_test: Annotated[bool, typer.Option("--paper-test", help="the published test, not calibrated")] = False,
    tail: Annotated[
        str, typer.Option(help="of --paper-test: chernoff, exact, or chernoff-unguarded (as the published figures)")
    ] = "chernoff",
    paper_map: Annotated[
        bool, typer.Option("--paper-map", help="the published map: of the latents alone, learnt without turned copies")
    ] = False,
    bit_depth: Annotated[
        str, typer.Option(help="bits that 16-bit images use, 8 to 16 (auto: as seen in the images)")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="of the split, the flow and the order of images")] = 0,
) -> Recipe:
    """The recipe that the options of a training ask for; its parameters are those options."""
    from ..recipe import Recipe, TrainingSettings

    check_seed(seed)
    latents_alone: dict[str, Any] = {"augment": False, "memory_size": 0} if paper_map else {}
    return Recipe(
        backbone,
        image_size="auto" if image_size == "auto" else parse_size(image_size),
        quality=quality,  # type: ignore[arg-type]  # a Recipe checks it
        strides=None if strides is None else tuple(parse_numbers(strides)),
        settings=TrainingSettings(epochs, batch_size, learning_rate, seed=seed, **latents_alone),
        held_out=held_out,
        hold_out=hold_out,  # type: ignore[arg-type]  # a Recipe checks it
        alpha=None if paper_test else alpha,
        look_alpha=look_alpha,
        tile=tile,
        tail=tail,  # type: ignore[arg-type]  # a Recipe checks it
        bit_depth="auto" if bit_depth == "auto" else parse_numbers(bit_depth)[0],
    )


def recipe_of_options(name: str, asked: Mapping[str, Any], given: Collection[str]) -> RecipeOf:
    """The recipe of each category that the options of a training ask for.

    Args:
        name: "default", or "paper", for `Recipe.paper` with those options that were given in place of its own.
        asked: the options of `build_recipe`.
        given: names of those that were given.

    Raises:
        ValueError: no such recipe.
    """
    if name == "default":
        recipe = build_recipe(**asked)
        return lambda category: recipe
    if name != "paper":
        raise ValueError(f"--recipe must be default or paper, got {name!r}")
    from ..recipe import Recipe

    own = build_recipe(**{**asked, "paper_test": "alpha" not in given})
    changes = {field: getattr(own, field) for field in _IN_RECIPE if field in given}
    changed = {field: getattr(own.settings, field) for field in _IN_SETTINGS if field in given}
    backbone = {"backbone": own.backbone} if "backbone" in given else {}

    def paper(category: str) -> Recipe:
        recipe = Recipe.paper(category, **backbone, **changes)
        return replace(recipe, settings=replace(recipe.settings, **changed))

    paper("")  # what is wrong with the options is said at once
    return paper


def with_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """A command with --recipe and the options of `build_recipe` in place of its parameter `recipe`, a `RecipeOf`."""
    options = inspect.signature(build_recipe).parameters

    @functools.wraps(command)
    def call(**values: Any) -> None:
        asked = {name: values.pop(name) for name in options}
        # Those of a --config file too where they differ from the default: --print-config writes all of them.
        sources = {name: values["context"].get_parameter_source(name) for name in options}
        given = [
            name
            for name, source in sources.items()
            if source is not None
            and (source.name == "COMMANDLINE" or (source.name != "DEFAULT" and asked[name] != options[name].default))
        ]
        del values["context"]
        command(**{**values, "recipe": recipe_of_options(values["recipe"], asked, given)})

    hints = get_type_hints(command, localns={"RecipeOf": object}, include_extras=True)
    hints |= get_type_hints(build_recipe, localns={"Recipe": object}, include_extras=True)
    hints |= {"recipe": RecipeOption, "context": typer.Context}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name == "recipe":
            parameters += [parameter.replace(default="default"), *options.values()]
        else:
            parameters.append(parameter)
    parameters.append(inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY))
    by_keyword = [p.replace(kind=p.KEYWORD_ONLY, annotation=hints[p.name]) for p in parameters]
    call.__signature__ = inspect.Signature(by_keyword)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in by_keyword}
    return call
