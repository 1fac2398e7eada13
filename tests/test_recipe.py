"""The recipe: built once, checked, saved as JSON, compared in words."""

import inspect
import json
from dataclasses import FrozenInstanceError, asdict, fields, replace
from typing import Any

import pytest

from uflow.backbones import create_backbone
from uflow.cli.options import build_recipe, recipe_of_options
from uflow.evaluate import published
from uflow.recipe import PAPER_TRAINING, Recipe, TrainingSettings, differences
from uflow.training import learning_rate


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"learning_rate": 0.0}, r"learning_rate must be positive, got 0\.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive, got nan"),
        ({"warm_up": 1.0}, r"warm_up is a share of the steps, at least 0 and below 1, got 1\.0"),
        ({"last_batch": "half"}, "last_batch must be 'even' or 'remainder', got 'half'"),
        ({"memory_size": -1}, "memory_size must be at least 0, got -1"),
        ({"epochs": 1.5}, "epochs must be a whole number, got 1.5"),
        ({"batch_size": True}, "batch_size must be a whole number, got True"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seed": 2**63}, "seed must be at most 9223372036854775807, got 9223372036854775808"),
        ({"learning_rate": float("inf")}, "learning_rate must be positive, got inf"),
        ({"final_rate": -1.0}, r"final_rate must be at least 0, got -1\.0"),
        ({"weight_decay": float("nan")}, "weight_decay must be at least 0, got nan"),
        ({"precision": "float8"}, "precision must be 'auto', 'float32' or 'bfloat16', got 'float8'"),
    ],
)
def test_settings_out_of_range_are_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        TrainingSettings(**settings)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=f"{message}|should be a (finite|whole) number"):
        Recipe.from_dict({**Recipe().to_dict(), "settings": {**asdict(TrainingSettings()), **settings}})


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"held_out": 0.0}, r"held_out=0 leaves no good images to calibrate by: alpha must be None \(--paper-test\)"),
        ({"held_out": -0.1}, r"held_out is a share of the images, at least 0 and below 1, got -0\.1"),
        ({"held_out": 1.0}, "held_out is a share of the images"),
        ({"alpha": 0.0}, r"alpha is a probability between 0 and 1, got 0\.0"),
        ({"alpha": "5 %"}, "alpha is a probability between 0 and 1, got '5 %'"),
        ({"flow_steps": 0}, "flow_steps must be at least 1, got 0"),
        ({"alpha": 1.5}, r"alpha is a probability between 0 and 1, got 1\.5"),
        ({"hold_out": "first"}, "hold_out must be one of auto, random, last, groups, got 'first'"),
        (
            {"tail": "binomial", "alpha": None},
            "tail must be one of exact, chernoff, chernoff-unguarded, got 'binomial'",
        ),
        ({"tail": "exact"}, r"tail 'exact' is of the paper's test: alpha must be None \(--paper-test\)"),
        ({"quality": "best"}, "quality must be one of fast, balanced, fine, got 'best'"),
        ({"strides": (0,)}, r"strides must each be twice the one before, such as \(8, 16, 32\), got \(0,\)"),
        ({"strides": ()}, "strides must each be twice the one before"),
        ({"image_size": 99_999}, "a side of image_size must be at most 32768, got 99999"),
        ({"image_size": (64, 0)}, "a side of image_size must be at least 1, got 0"),
    ],
)
def test_recipes_out_of_range_are_one_line(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**keywords)
    with pytest.raises(ValueError, match=message):
        Recipe.from_keywords("resnet18", **keywords)


def test_keywords_make_the_same_recipe() -> None:
    assert Recipe.from_keywords("efficientnet_lite0") == Recipe()
    settings = TrainingSettings(epochs=3)
    made = Recipe.from_keywords("resnet18", settings, image_size=[64, 96], strides=[4, 8], alpha=None, tile=True)
    assert made == Recipe("resnet18", (64, 96), strides=(4, 8), settings=settings, alpha=None, tile=True)
    assert hash(made) == hash(replace(made))


def test_an_unknown_keyword_names_those_that_there_are() -> None:
    with pytest.raises(TypeError, match="unknown argument 'epochs'; known: backbone, image_size, ") as error:
        Recipe.from_keywords("resnet18", epochs=3)
    assert all(f.name in str(error.value) for f in fields(Recipe))


def test_a_recipe_is_not_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Recipe().alpha = 0.1  # type: ignore[misc]


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe("mcait", 448, flow_steps=2, settings=TrainingSettings(epochs=200, warm_up=0), alpha=None, tile=True),
        Recipe("resnet18", (64, 96), "fine", (4, 8), hold_out="last"),
    ],
)
def test_survives_json(recipe: Recipe) -> None:
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize("content", [None, {}, {"settings": {}}, {"backbone": "x", "settings": {"speed": 1}}])
def test_a_damaged_recipe_is_one_line(content: Any) -> None:
    with pytest.raises(ValueError, match="the recipe is damaged: ") as error:
        Recipe.from_dict(content)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="the recipe is damaged: it has an unknown entry 'speed'"):
        Recipe.from_dict({**Recipe().to_dict(), "speed": 1})


def test_resolved_by_what_the_backbone_made_of_it() -> None:
    asked = Recipe(image_size=(65, 100))
    resolved = asked.resolved(create_backbone(image_size=asked.image_size))
    assert (resolved.image_size, resolved.strides) == ((96, 128), (8, 16, 32))
    assert replace(resolved, image_size=(65, 100), strides=None) == asked


# Differences ----------------------------------------------------------------------------------------------------------


def differing(**changes: Any) -> str:
    return differences(Recipe().to_dict(), replace(Recipe(), **changes).to_dict())


def test_differences_in_words() -> None:
    assert differing() == ""
    assert differing(alpha=None, tile=True) == "alpha 0.05, not None, tile False, not True"
    assert differing(settings=TrainingSettings(epochs=3, seed=1)) == "epochs 16, not 3, seed 0, not 1"
    assert differing(strides=(8, 16)) == "strides None, not [8, 16]"


def test_lists_read_from_a_file_equal_tuples_asked_for() -> None:
    recipe = Recipe(image_size=(64, 96), strides=(8, 16))
    assert differences(json.loads(json.dumps(recipe.to_dict())), recipe.to_dict()) == ""


def test_long_values_are_named_only_and_missing_ones_found() -> None:
    assert differences({"images": "a" * 64}, {"images": "b" * 64}) == "other images"
    assert differences({"tile": True, "roi": 3}, {"tile": True}) == "roi 3, not None"
    assert differences({"tile": True}, {"tile": True, "roi": 3}) == "roi None, not 3"
    assert differences({"settings": None}, {"settings": {"epochs": 3}}) == "settings None, not {'epochs': 3}"


def test_the_papers_recipe_is_the_published_one_of_each_category() -> None:
    assert set(PAPER_TRAINING) == {*published.MVTEC_AD, ""}
    recipe = Recipe.paper("carpet")
    assert (recipe.backbone, recipe.image_size, recipe.flow_steps, recipe.tail) == ("mcait", 448, 4, "chernoff")
    assert (recipe.held_out, recipe.alpha, recipe.settings.memory_size, recipe.settings.augment) == (0, None, 0, False)
    settings = recipe.settings
    assert (settings.epochs, settings.batch_size, settings.learning_rate) == (200, 13, 3.163419554150971e-05)
    assert (settings.warm_up, settings.final_rate, settings.weight_decay) == (0, 0.4, 1e-5)
    assert (settings.patience, settings.precision, settings.last_batch) == (20, "float32", "remainder")
    assert not settings.count_affine
    other = Recipe.paper("nut", "resnet18", image_size=256).settings
    assert (other.epochs, other.batch_size, other.learning_rate) == (200, 8, 1e-4)
    rates = [learning_rate(settings, epoch, 0, 21) for epoch in (0, 100, 199)]
    assert rates == pytest.approx([settings.learning_rate * share for share in (1, 0.7, 0.403)])
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_options_that_are_given_take_the_place_of_the_papers() -> None:
    asked = {"epochs": 3, "image_size": "64", "backbone": "resnet18", "seed": 4, "tail": "chernoff-unguarded"}
    options = {name: p.default for name, p in inspect.signature(build_recipe).parameters.items()} | asked
    recipe_of = recipe_of_options("paper", options, asked)
    carpet = Recipe.paper("carpet", "resnet18", image_size=64, tail="chernoff-unguarded")
    assert recipe_of("carpet") == replace(carpet, settings=replace(carpet.settings, epochs=3, seed=4))
    assert recipe_of("wood").settings.batch_size == 22
    assert recipe_of_options("default", options | {"tail": "chernoff"}, asked)("carpet").settings.batch_size == 16
    with pytest.raises(ValueError, match="--recipe must be default or paper, got 'mine'"):
        recipe_of_options("mine", options, asked)
    with pytest.raises(ValueError, match="held_out=0 leaves no good images to calibrate by"):
        recipe_of_options("paper", options | {"tail": "chernoff"}, ["alpha"])
