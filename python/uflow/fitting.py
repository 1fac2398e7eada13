"""Images and a recipe to the parts of a detector, in five steps: folds, flow, memory, blend, threshold."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from . import distributed, model_file
from .backbones import Backbone, coarsest_stride, create_backbone
from .bit_depth import find_bit_depth
from .calibration_log import UNCALIBRATED, log_calibration
from .features import ImageFeatures, describe_images
from .files import PathLike
from .flow import UFlow
from .holdout import Fold, choose_folds
from .images import ImageLike, batches, digest, image_size
from .input_size import PIXEL_BUDGETS, choose_input_size
from .memory import MemoryBank
from .model_header import read_header
from .network import TorchNetwork
from .recipe import Recipe
from .roi import effective_roi
from .scoring import Blend, Evidence, largest_map_values
from .threshold import CalibratedThreshold, DecisionRule, PaperThreshold
from .tiling import evidence_of_tiles
from .training import TrainingState, Watcher, train

__all__ = ["Fitted", "Selection", "fit_parts", "make_backbone", "training_record"]

log = logging.getLogger("uflow")

MIN_NLL_GAIN = 0.02  # nats a dimension that copies must be worth: a flow that has seen them is blind to orientation
AUGMENTED, FOLD = ".augmented", ".fold{}"  # added to the state file's name: the trial with copies, further flows
STAGE = r"|\.augmented|\.fold\d+"
FIRST = "first"  # what `on_epoch` is told of the detector's own flow
BATCH_SIZE = 16  # images that pass through a flow together


class Selection(Protocol):
    """Chooses the epoch instead of held-out images: to reproduce published figures, see `evaluate.study`.

    Attributes:
        digest: of the images that it chooses by.
        figure: the name of what it gives.
    """

    digest: str
    figure: str

    def __call__(self, network: TorchNetwork) -> float:
        """How good the network is now; higher is better."""


@dataclass
class Fitted:
    """The parts that `fit_parts` learnt, and the training that gave them."""

    network: TorchNetwork
    threshold: DecisionRule
    blend: Blend | None
    training: TrainingState
    record: dict[str, Any]
    bit_depth: int = 16


def make_backbone(
    sources: Sequence[ImageLike], recipe: Recipe, weights: PathLike | Sequence[PathLike] | None = None
) -> Backbone:
    """The backbone of a recipe, at the input size that suits the images where the recipe leaves it open."""
    _check_count(sources, recipe)
    size: int | tuple[int, int] | None = None
    if recipe.image_size != "auto":
        size = recipe.image_size
    elif (stride := coarsest_stride(recipe.backbone, recipe.strides)) is not None:
        size = choose_input_size([image_size(source) for source in sources], PIXEL_BUDGETS[recipe.quality], stride)
    return create_backbone(recipe.backbone, image_size=size, strides=recipe.strides, weights=weights)


def fit_parts(
    sources: Sequence[ImageLike],
    recipe: Recipe,
    backbone: Backbone,
    device: torch.device,
    *,
    state_file: Path | None = None,
    selection: Selection | None = None,
    watcher: Watcher = Watcher(),  # noqa: B008 (it cannot change)
) -> Fitted:
    """Learn all parts of a detector; see `Detector.fit` for what each argument means.

    Raises:
        ValueError: too few images, or bad input.
        uflow.training.TrainingError: the loss became infinite, or features do not fit on the disk.
    """
    _check_count(sources, recipe)
    recipe = recipe.resolved(backbone)
    record = training_record(recipe, backbone, sources, selection)
    check_states(state_file, record)
    # MS-CaiT, and what is to be reproduced, stay the paper's.
    extended = backbone.layer_norm and selection is None

    remember = extended and recipe.settings.memory_size > 0
    if remember and recipe.held_out == 0:
        raise ValueError("held_out=0 leaves no good images to weigh distances by: memory_size must be 0 (--paper-map)")

    copies = extended and recipe.settings.augment and recipe.held_out > 0  # held-out images choose them
    exact = recipe.settings.precision == "float32"
    bit_depth = find_bit_depth(sources) if recipe.bit_depth == "auto" else recipe.bit_depth
    roi, tile = effective_roi(recipe.roi), recipe.tile
    found = ImageFeatures.compute(backbone, sources, tile, watcher.progress, copies, exact, bit_depth, roi, recipe.gain)
    with found as features:
        # 1. Folds, before anything is learnt: the images that judge must not have been seen.
        folds = choose_hold_out(features, sources, recipe)
        check_states(state_file, record, folds)
        # 2. The flow, with copies or without: both exist before the choice, which held-out images make.
        trainer = _FlowTrainer(recipe, backbone, device, features, record, selection, watcher)
        flow, training, augmented = trainer.with_or_without_copies(folds[0].held_out, state_file)
        network = TorchNetwork(backbone, flow, device=device)
        if remember:
            # 3. The memory, for now of the images learnt from alone: held-out images must be as strange as new ones.
            network.memory = trainer.memory(features.others(folds[0].held_out))
        # 4. The blend: what held-out images say of both sources of evidence makes them comparable.
        evidence = evidence_of_features(network, features, folds[0].judged)
        blend = None if network.memory is None else Blend.from_good_images(evidence)
        # 5. The threshold, last: it judges what all parts together say of images that none has learnt.
        threshold = learn_threshold(evidence, trainer, folds, augmented, network, state_file)
        if network.memory is not None:
            # What was measured on the images held out is kept, and now their vectors join.
            network.memory = trainer.memory(range(len(sources)))
    for stage, file in _states(state_file).items():
        if stage:  # the detector's own state stays until the caller has written the detector
            file.unlink()
    if isinstance(threshold, CalibratedThreshold):
        log_calibration(threshold, [sources[i] for fold in folds for i in fold.judged])
    else:
        log.info("no alpha: until it is calibrated, it judges by %s", UNCALIBRATED)
    return Fitted(network, threshold, blend, training, record, bit_depth)


def _check_count(sources: Sequence[ImageLike], recipe: Recipe) -> None:
    least, why = (2, "images, one of them to select by") if recipe.held_out > 0 else (1, "image")
    if len(sources) < least:
        raise ValueError(f"training needs at least {least} good {why}; got {len(sources)}")


def choose_hold_out(features: ImageFeatures, sources: Sequence[ImageLike], recipe: Recipe) -> list[Fold]:
    """The images that each flow does not see; a line of the log says which and why."""
    descriptors, seed = describe_images(features), recipe.settings.seed
    folds, why = distributed.from_first(
        lambda: choose_folds(descriptors, sources, recipe.held_out, recipe.alpha, seed, recipe.hold_out)
    )
    log.info("%s; %d of %d", why, len(folds[0].held_out), len(sources))
    if len(folds) > 1:
        log.info("%d trainings, each without other ones, so that more images calibrate", len(folds))
    return folds


def training_record(
    recipe: Recipe, backbone: Backbone, sources: Sequence[ImageLike], selection: Selection | None = None
) -> dict[str, Any]:
    """The recipe and what it was carried out on: equal records, equal training."""
    record = recipe.resolved(backbone).to_dict()
    record |= {"weights_sha256": backbone.weights_sha256, "images": digest(sources)}
    if selection is not None:
        record |= {"selected_on_test": selection.digest, "selected_by": selection.figure}
    return record


def check_states(state_file: Path | None, record: dict[str, Any], folds: Sequence[Fold] = ()) -> None:
    """Raise ValueError where a state that is there, of any stage, belongs to another training than `record`.

    Without `folds` all but the images held out is compared, before there are any features.
    """
    held_out = {FOLD.format(number): fold.held_out for number, fold in enumerate(folds) if number > 0}
    if folds:
        held_out |= dict.fromkeys(("", AUGMENTED), folds[0].held_out)
    for stage, file in _states(state_file).items():
        own = read_header(file, "training state")["record"].get("stage")
        if own is not None and stage in held_out:  # a smaller alpha may have had more folds
            own = {**own, "held_out": held_out[stage]}
        model_file.load_training_state(file, record if own is None else record | {"stage": own})


def _states(state_file: Path | None) -> dict[str, Path]:
    """The states that are there: what each stage adds to the name, "" for the detector's own flow, and its file."""
    if state_file is None or not distributed.is_first():
        return {}
    files = sorted(state_file.parent.glob(f"{glob.escape(state_file.name)}*"))
    found = {file.name.removeprefix(state_file.name): file for file in files}
    return {stage: file for stage, file in found.items() if re.fullmatch(STAGE, stage)}


class _FlowTrainer:
    """Trains flows of one recipe on the features of some images."""

    def __init__(
        self,
        recipe: Recipe,
        backbone: Backbone,
        device: torch.device,
        features: ImageFeatures,
        record: dict[str, Any],
        selection: Selection | None,
        watcher: Watcher,
    ) -> None:
        self.recipe, self.backbone, self.device, self.features = recipe, backbone, device, features
        self.record, self.selection, self.watcher = record, selection, watcher

    def memory(self, images: Sequence[int]) -> MemoryBank:
        """A memory of some images."""
        settings, tiles = self.recipe.settings, self.features.tiles(images)
        found = distributed.from_first(
            lambda: MemoryBank.from_features(self.features.cache, tiles, settings.memory_size, settings.seed)
        )
        return found.to(self.device)

    def with_or_without_copies(
        self, held_out: Sequence[int], state_file: Path | None
    ) -> tuple[UFlow, TrainingState, bool]:
        """The flow that makes held-out images likelier: trained on images as they are, or with copies and noise."""
        flow, trained = self.train(held_out, augmented=False, state_file=state_file, selection=self.selection)
        if self.features.copies == 1:
            return flow, trained, False
        other, trial = self.train(held_out, True, state_file, AUGMENTED, selection=self.selection)
        taken = trial.best_nll < trained.best_nll - MIN_NLL_GAIN
        log.info(
            "held-out nats a dimension: %.3f, with turned copies and noise %.3f, which are %s",
            *(trained.best_nll, trial.best_nll, "taken" if taken else "left out"),
        )
        return (other, trial, True) if taken else (flow, trained, False)

    def train(
        self,
        held_out: Sequence[int],
        augmented: bool,
        state_file: Path | None = None,
        stage: str = "",
        selection: Selection | None = None,
    ) -> tuple[UFlow, TrainingState]:
        """A new flow, trained on the images that are not held out; it goes on from its state file if there is one.

        Each stage of a fit has its own: what `stage` says is added to the name.
        """
        recipe, net, record = self.recipe, self.backbone, self.record
        if state_file is not None:
            state_file = state_file.with_name(state_file.name + stage)
        record = {**record, "stage": {"held_out": list(held_out), "augmented": augmented}}
        flow = UFlow(net.channels, net.sizes, recipe.flow_steps, affine=net.layer_norm, seed=recipe.settings.seed)
        flow.count_affine = recipe.settings.count_affine
        state = distributed.from_first(lambda: _load_state(state_file, record))
        candidate = TorchNetwork(net, flow, device=self.device)
        trained = train(
            flow,
            self.features.without(held_out, augmented, recipe.settings.last_batch),
            recipe.settings,
            state=state,
            on_epoch=partial(self._after_epoch, state_file, record, stage.lstrip(".") or FIRST),
            select=None if selection is None else lambda: selection(candidate),
            progress=self.watcher.progress,
        )
        return flow, trained

    def _after_epoch(self, state_file: Path | None, record: dict[str, Any], flow: str, state: TrainingState) -> None:
        """Save the state, then tell who looks on: what they raise loses nothing."""
        if state_file is not None and distributed.is_first():
            model_file.save_training_state(state_file, state, record)
        if self.watcher.on_epoch is not None:
            self.watcher.on_epoch(flow, state.history[-1])


def _load_state(state_file: Path | None, record: dict[str, Any]) -> TrainingState | None:
    """Where a training had got to; None where it has not begun."""
    if state_file is None or not state_file.exists():
        return None
    state = model_file.load_training_state(state_file, record)
    log.info("going on from %s after epoch %d", state_file, state.epoch)
    return state


def learn_threshold(
    evidence: Sequence[Evidence],
    trainer: _FlowTrainer,
    folds: Sequence[Fold],
    augmented: bool,
    network: TorchNetwork,
    state_file: Path | None = None,
) -> DecisionRule:
    """Calibrate on the images held out from the detector, and on those held out from further flows.

    Args:
        evidence: of the images that the first fold is judged by.
        trainer: trains the further flows.
        folds: what each flow does not see.
        augmented: whether flows learn from copies.
        network: the detector's; further flows have a memory beside them if it has.
        state_file: of the detector's flow; the further flows have theirs beside it.
    """
    features = trainer.features
    if trainer.recipe.alpha is None:
        return PaperThreshold(trainer.recipe.tail)
    found = []
    for number, fold in enumerate(folds):
        if number > 0:  # a flow that is there only to judge the images held out from it
            flow, _ = trainer.train(fold.held_out, augmented, state_file, FOLD.format(number))
            memory = None if network.memory is None else trainer.memory(features.others(fold.held_out))
            network = TorchNetwork(trainer.backbone, flow, memory, trainer.device)
            evidence = evidence_of_features(network, features, fold.judged)
        blend = None if network.memory is None else Blend.from_good_images(evidence)
        found.append(distributed.from_first(partial(_calibrate, evidence, trainer.recipe, network, blend)))
    return found[0].with_images_of(found[1:]).without_surplus()


def _calibrate(
    evidence: Sequence[Evidence], recipe: Recipe, network: TorchNetwork, blend: Blend | None
) -> CalibratedThreshold:
    """The threshold of one flow, by good images that it has not seen."""
    assert recipe.alpha is not None
    largest = largest_map_values(evidence, network.latent_channels, blend)
    return CalibratedThreshold.from_good_images(evidence, recipe.alpha, recipe.look_alpha, largest)


def evidence_of_features(network: TorchNetwork, features: ImageFeatures, images: Sequence[int]) -> list[Evidence]:
    """What a network says of some images whose features are known."""
    return distributed.from_first(partial(_evidence, network, features, images))


def _evidence(network: TorchNetwork, features: ImageFeatures, images: Sequence[int]) -> list[Evidence]:
    tilings = [features.tilings[i] for i in images]
    chunks = batches(features.tiles(images), BATCH_SIZE)
    found = [network.evidence_of_features(features.cache.batch(chunk, network.device)) for chunk in chunks]
    return evidence_of_tiles(tilings, found, features.roi)
