"""Where the models of a study come from: one that is given, or one that is trained for each category."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from .. import load
from ..images import digest
from ..predictor import Predictor
from ..recipe import Recipe, differences
from ..roi import effective_roi
from ..scoring import anomaly_map_from_energies
from ..threshold import PaperThreshold
from .metrics import MaskMetrics, PixelMetrics
from .protocols import PAPER_SIZE, published_truth
from .samples import Dataset

if TYPE_CHECKING:  # a model that is exported needs no torch
    from ..backbones import Backbone
    from ..detector import Detector
    from ..features import ImageFeatures
    from ..network import TorchNetwork

__all__ = ["Given", "Models", "SelectBy", "TestSelection", "Trained"]

SelectBy = Literal["pixel_auroc", "aupro", "miou"]


class Models(Protocol):
    """A model for each category."""

    def path(self, category: str) -> Path:
        """The model's file, or the folder of an exported one."""

    def settings(self) -> dict[str, Any]:
        """What else than the file decides how it predicts."""

    def check(self, categories: Sequence[str]) -> None:
        """Raise ValueError, one line, where a model was made with other settings."""

    def make(self, dataset: Dataset, progress: bool | Progress) -> bool:
        """Make the model if there is none; whether it was made now."""

    def load(self, category: str) -> Detector | Predictor:
        """Read the model."""


@dataclass(frozen=True)
class Given:
    """One finished model for every category.

    Attributes:
        file: where it was read from.
        model: what was read.
        changed: settings that it does not have from its file, such as ``{"tile": True}``.
    """

    file: Path
    model: Detector | Predictor
    changed: Mapping[str, Any] = field(default_factory=dict)

    def path(self, category: str) -> Path:
        """The file, whatever the category."""
        return self.file

    def settings(self) -> dict[str, Any]:
        """What was changed."""
        return {"changed": dict(self.changed)}

    def check(self, categories: Sequence[str]) -> None:
        """Nothing: a finished model is what it is."""

    def make(self, dataset: Dataset, progress: bool | Progress) -> bool:
        """Never."""
        return False

    def load(self, category: str) -> Detector | Predictor:
        """The model, whatever the category."""
        return self.model


@dataclass(frozen=True)
class Trained:
    """The models CATEGORY.uflow of a folder, trained where there is none.

    Attributes:
        folder: where they are, made if it is not there.
        recipe: how they are trained; or a function of the category that says so, such as `Recipe.paper`.
        weights, device: see `Detector.fit`.
        select_on_test: choose each epoch on the test set, see `TestSelection`.
        select_by: the figure that it is chosen by.

    Raises:
        ValueError: another figure; one chosen where no epoch is chosen on the test set.
    """

    folder: Path
    recipe: Recipe | Callable[[str], Recipe] = field(default_factory=Recipe)
    weights: Sequence[Path] | None = None
    device: str = "auto"
    select_on_test: bool = False
    select_by: SelectBy = "pixel_auroc"

    def __post_init__(self) -> None:
        check_select_by(self.select_by)
        if not self.select_on_test and self.select_by != type(self).select_by:
            raise ValueError(
                f"select_by {self.select_by} chooses each epoch on the test set: it needs select_on_test "
                "(--select-on-test)"
            )

    def recipe_of(self, category: str) -> Recipe:
        """How the category's model is trained."""
        return self.recipe if isinstance(self.recipe, Recipe) else self.recipe(category)

    def path(self, category: str) -> Path:
        """The category's model file."""
        return self.folder / f"{category}.uflow"

    def settings(self) -> dict[str, Any]:
        """None: all are in the file."""
        return {"changed": {}}

    def check(self, categories: Sequence[str]) -> None:
        """Raise ValueError where a model that is there follows another recipe; images are not looked at."""
        for category in categories:
            # Without a model too: weights that are missing are one error, not one a category.
            asked = self._asked(category, [], None)
            del asked["images"]
            if self.recipe_of(category).image_size == "auto":
                del asked["image_size"]  # the images decide
            if self.path(category).exists():
                self._compare(category, asked)

    def make(self, dataset: Dataset, progress: bool | Progress) -> bool:
        """Train the category's model if there is none; a training that was broken off goes on."""
        from ..detector import Detector

        path, recipe = self.path(dataset.name), self.recipe_of(dataset.name)
        with ExitStack() as stack:
            selection = None
            if self.select_on_test:
                selection = stack.enter_context(TestSelection(dataset, recipe, self.select_by, progress))
            if path.exists():
                self._compare(dataset.name, self._asked(dataset.name, dataset.train, selection))
                return False
            path.parent.mkdir(parents=True, exist_ok=True)
            state_file = path.with_name(path.name + ".state")
            detector = Detector.fit_recipe(
                dataset.train,
                recipe,
                weights=self.weights,
                device=self.device,
                state_file=state_file,
                selection=selection,
                progress=progress,
            )
        detector.save(path)
        state_file.unlink()
        return True

    def load(self, category: str) -> Detector | Predictor:
        """Read the category's model."""
        return load(self.path(category), self.device, self.weights)

    def _asked(self, category: str, images: Sequence[Path], selection: TestSelection | None) -> dict[str, Any]:
        """What the record of a model must be, and whether its epoch is chosen on the test set."""
        from ..fitting import training_record

        recipe = self.recipe_of(category)
        record = training_record(recipe, self._backbone(recipe, images), images, selection)
        chosen_by = self.select_by if self.select_on_test else None
        return {**record, "select_on_test": self.select_on_test, "selected_by": chosen_by}

    def _backbone(self, recipe: Recipe, images: Sequence[Path]) -> Backbone:
        """The backbone, at the size that the images ask for where the recipe leaves that to them."""
        from ..backbones import coarsest_stride, create_backbone
        from ..fitting import make_backbone

        if images and recipe.image_size == "auto" and coarsest_stride(recipe.backbone, recipe.strides) is not None:
            return make_backbone(images, recipe, self.weights)
        key = recipe.backbone, recipe.image_size, recipe.strides
        if key not in self._backbones:
            size = None if recipe.image_size == "auto" else recipe.image_size
            self._backbones[key] = create_backbone(recipe.backbone, size, recipe.strides, self.weights)
        return self._backbones[key]

    @cached_property
    def _backbones(self) -> dict[Any, Backbone]:
        """Those of all recipes so far: the categories have the same, which is large."""
        return {}

    def _compare(self, category: str, asked: Mapping[str, Any]) -> None:
        from ..model_file import load_model

        path = self.path(category)
        _, config = load_model(path)
        if not config["record"]:
            raise ValueError(
                f"{path} does not say how it was trained: delete it, or give another --models; "
                f"uflow evaluate {path} ROOT evaluates it"
            )
        found = {**config["record"], "select_on_test": "selected_on_test" in config["record"]}
        if differing := differences({key: found.get(key) for key in asked}, asked):
            raise ValueError(f"{path} was trained with {differing}: give another --models and --output, or delete it")


class TestSelection:
    """Chooses the epoch by a figure on a test set, at 256 x 256, as the published checkpoints were.

    To reproduce, not to compare: figures of such a detector on that test set are not fair. Map and test are the
    paper's, of the latents alone; images whose defective pixels are not known are left out. A context manager: leaving
    it removes the features, which are computed on the first call.

    Args:
        dataset: the test set.
        recipe: of the training: whether images are cut into tiles, how exactly features are kept, the test's tail.
        figure: "pixel_auroc", "aupro", or "miou", of the paper's test at log NFA = 0.
        progress: show a progress bar while features are computed.

    Attributes:
        digest: of the test images and their masks.

    Raises:
        ValueError: another figure.
    """

    __test__ = False  # pytest: this is no test

    def __init__(
        self,
        dataset: Dataset,
        recipe: Recipe | None = None,
        figure: SelectBy = "pixel_auroc",
        progress: bool | Progress = False,
    ) -> None:
        check_select_by(figure)
        self.dataset, self.recipe, self.progress = dataset, recipe or Recipe(), progress
        self.figure: str = figure
        self.digest = digest(dataset.test_files)
        self._features: ImageFeatures | None = None

    def __enter__(self) -> TestSelection:
        return self

    def __exit__(self, *_: object) -> None:
        if self._features is not None:
            self._features.cache.close()
            self._features = None

    def __call__(self, network: TorchNetwork) -> float:
        """The figure of the network as it is now."""
        from ..fitting import evidence_of_features

        features = self._features or self._compute(network)
        pixels, masks, channels = PixelMetrics(), MaskMetrics(), network.latent_channels
        for i, truth in enumerate(self._truths):
            if truth is None:
                continue
            (evidence,) = evidence_of_features(network, features, [i])
            if self.figure == "miou":
                (log_nfa,) = PaperThreshold(self.recipe.tail).log_nfa(evidence, channels, PAPER_SIZE)
                masks.update(log_nfa < 0, truth)
            else:
                (latent_map,) = anomaly_map_from_energies(evidence.energies, channels, PAPER_SIZE)
                pixels.update(latent_map, truth)
        if self.figure == "miou":
            return masks.miou() or 0.0
        return pixels.auroc() if self.figure == "pixel_auroc" else pixels.aupro()

    def _compute(self, network: TorchNetwork) -> ImageFeatures:
        from ..features import ImageFeatures

        paths = [sample.path for sample in self.dataset.test]
        tile, exact = self.recipe.tile, self.recipe.settings.precision == "float32"
        roi, gain = effective_roi(self.recipe.roi), self.recipe.gain
        self._features = ImageFeatures.compute(
            network.backbone, paths, tile, self.progress, exact=exact, roi=roi, gain=gain
        )
        input_size = None if tile else network.image_size
        self._truths: list[NDArray[np.bool_] | None] = []
        for sample, size in zip(self.dataset.test, self._features.sizes, strict=True):
            truth = sample.truth(size)
            self._truths.append(None if truth is None else published_truth(truth, (PAPER_SIZE, PAPER_SIZE), input_size))
        return self._features


def check_select_by(figure: str) -> None:
    """Raise ValueError unless an epoch can be chosen by a figure."""
    if figure not in get_args(SelectBy):
        raise ValueError(f"an epoch is chosen by one of {', '.join(get_args(SelectBy))}, not {figure!r}")
