"""The five steps of fitting: what is held out, copies or none, memory and blend, the threshold; and going on."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from uflow import features as features_room
from uflow import fitting, model_file
from uflow.backbones import Backbone, create_backbone
from uflow.detector import Detector, load
from uflow.features import ImageFeatures
from uflow.fitting import fit_parts, make_backbone, training_record
from uflow.holdout import Fold, choose_folds
from uflow.images import digest, list_images, read_image
from uflow.memory import MemoryBank
from uflow.model_file import load_training_state
from uflow.network import TorchNetwork
from uflow.recipe import Recipe
from uflow.scoring import Blend, Evidence
from uflow.threshold import CalibratedThreshold, PaperThreshold
from uflow.training import TrainingSettings, TrainingState, Watcher

QUICK = TrainingSettings(epochs=2, batch_size=10, augment=False, memory_size=50)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return create_backbone(image_size=64)


@pytest.fixture(scope="module")
def paths(dataset: Path) -> list[Path]:
    """30 good images."""
    return list_images(dataset / "train/good")


@pytest.fixture(scope="module")
def plain(paths: list[Path], backbone: Backbone) -> fitting.Fitted:
    """What is learnt without copies, with one flow."""
    return fit(paths, backbone, alpha=0.2)


def recipe_of(settings: TrainingSettings = QUICK, **options: Any) -> Recipe:
    return Recipe.from_keywords("efficientnet_lite0", settings, image_size=64, flow_steps=1, **options)


def fit(
    sources: Sequence[Any],
    backbone: Backbone,
    settings: TrainingSettings = QUICK,
    *,
    state_file: Path | None = None,
    selection: fitting.Selection | None = None,
    **recipe: Any,
) -> fitting.Fitted:
    asked = recipe_of(settings, **recipe)
    return fit_parts(
        sources, asked, backbone, CPU, state_file=state_file, selection=selection, watcher=Watcher(progress=False)
    )


def folds_of(paths: Sequence[Path], backbone: Backbone, alpha: float) -> list[Fold]:
    with ImageFeatures.compute(backbone, paths, False, False) as features:
        return fitting.choose_hold_out(features, paths, recipe_of(alpha=alpha))


# The backbone's size --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        ({"image_size": 64}, (64, 64)),
        ({"image_size": (65, 100)}, (96, 128)),
        ({"image_size": "auto", "quality": "fast"}, (160, 192)),  # 80 x 96 images, each side enlarged twice at most
    ],
)
def test_the_input_has_the_size_asked_for_or_the_images_shape(
    asked: dict[str, Any], size: tuple[int, int], paths: list[Path]
) -> None:
    assert make_backbone(paths, Recipe(**asked)).image_size == size


# 1. What is held out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "alpha", "sizes"),
    [
        (700, 0.05, [105]),
        (700, 0.001, [105] * 6),
        (320, 0.05, [48]),
        (200, 0.05, [30] * 2),  # 39 images: two may be flagged, and no odd one alone sets the limit
        (55, 0.05, [10] * 4),
        (31, None, [10]),
        (31, 0.1, [10] * 2),
        (31, 0.2, [10]),
        (31, 0.05, [10] * 2),
        (31, 0.01, [10] * 3),
        (2, 0.5, [1]),
        (2, 0.05, [1] * 2),
    ],
)
def test_as_many_images_are_held_out_as_alpha_needs(count: int, alpha: float | None, sizes: list[int]) -> None:
    descriptors = np.random.default_rng(0).normal(size=(count, 8))
    pictures = [np.zeros((1, 1, 3), np.uint8)] * count
    folds, _ = choose_folds(descriptors, pictures, 0.15, alpha, seed=3)
    assert [len(fold.held_out) for fold in folds] == sizes
    assert len(set().union(*(fold.held_out for fold in folds))) == sum(sizes)
    assert folds[0] == choose_folds(descriptors, pictures, 0.15, None, seed=3)[0][0]


def test_few_images_calibrate_on_more_than_one_flow_holds_out(
    paths: list[Path], backbone: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="uflow"):
        both = fit(paths, backbone, alpha=0.05)
    assert "2 trainings, each without other ones, so that more images calibrate" in caplog.text
    assert "support" not in caplog.text  # 20 images do
    alone = fit(paths, backbone, alpha=0.2)  # 10 do: one flow, and it is the same one
    image = read_image(paths[0])[:64, :64][None]
    for a, b in zip(alone.network.evidence(image).maps, both.network.evidence(image).maps, strict=True):
        np.testing.assert_array_equal(a, b)
    assert isinstance(alone.threshold, CalibratedThreshold)
    assert isinstance(both.threshold, CalibratedThreshold)
    assert (alone.threshold.weights, alone.threshold.cell) == (both.threshold.weights, both.threshold.cell)
    # Of 10 and 20 images one would not add to what alpha lets be flagged, and would only make the limit stricter.
    assert (len(alone.threshold.minima), len(both.threshold.minima)) == (9, 19)
    assert both.threshold.minima[:9] == alone.threshold.minima
    assert both.threshold.shift >= alone.threshold.shift


def test_too_few_images_for_alpha_is_said(
    paths: list[Path], backbone: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    fit(paths, backbone, alpha=0.01)
    assert "30 calibration images support alpha >= 0.0323, not 0.01" in caplog.text


def test_one_image_is_too_few(paths: list[Path], backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="training needs at least 2 good images, one of them to select by; got 1"):
        fit(paths[:1], backbone)


def test_two_images_are_enough(paths: list[Path], backbone: Backbone) -> None:
    fitted = fit(paths[:2], backbone, alpha=0.5)
    assert isinstance(fitted.threshold, CalibratedThreshold)
    assert len(fitted.threshold.minima) == 1


# 2. The flow, with copies or without ----------------------------------------------------------------------------------


class Judged:
    """Trains, notes what it was given to learn from, and says that it went as a test wants."""

    def __init__(self, nll_of_copies: float) -> None:
        self.calls: list[tuple[int, float, int]] = []
        self.nll_of_copies, self.train = nll_of_copies, fitting.train

    def __call__(self, flow: Any, learnt: Any, settings: Any, **options: Any) -> TrainingState:
        self.calls.append((learnt.copies, round(learnt.noise_std * len(learnt.indices) ** 0.5, 6), learnt.passes))
        state = self.train(flow, learnt, settings, **options)
        return replace(state, best_nll=0.5 if learnt.copies == 1 else self.nll_of_copies)


@pytest.mark.parametrize(("nll_of_copies", "taken"), [(0.47, True), (0.49, False)])  # a hair is not enough
def test_held_out_images_say_whether_copies_and_noise_are_taken(
    nll_of_copies: float,
    taken: bool,
    paths: list[Path],
    backbone: Backbone,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    judged = Judged(nll_of_copies)
    monkeypatch.setattr(fitting, "train", judged)
    with caplog.at_level(logging.INFO, logger="uflow"):
        # 20 of 30 to learn from, and a second flow to calibrate.
        fit(paths, backbone, replace(QUICK, epochs=1, augment=True), alpha=0.05)
    without, augmented = (1, 0.0, 4), (8, 1.5, 4)
    assert judged.calls == [without, augmented, augmented if taken else without]
    assert f"held-out nats a dimension: 0.500, with turned copies and noise {nll_of_copies:.3f}" in caplog.text
    assert ("which are taken" if taken else "which are left out") in caplog.text


@pytest.mark.parametrize("augment", [True, False])
def test_large_sets_and_whoever_wants_none_get_no_copies(
    augment: bool, paths: list[Path], backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = Judged(0.0)
    monkeypatch.setattr(fitting, "train", judged)
    monkeypatch.setattr(features_room, "MAX_COPIED_TILES", 29 if augment else 400)
    fit(paths, backbone, replace(QUICK, augment=augment), alpha=0.2)
    assert judged.calls == [(1, 0.0, 1)]


# 3. and 4. The memory and the blend -----------------------------------------------------------------------------------


def evidence_before_they_joined(
    fitted: fitting.Fitted, paths: list[Path], backbone: Backbone, alpha: float
) -> list[Evidence]:
    """What flow and memory say of the images held out, while their vectors are not yet in the memory."""
    fold = folds_of(paths, backbone, alpha)[0]
    with ImageFeatures.compute(backbone, paths, False, False) as features:
        memory = MemoryBank.from_features(features.cache, features.tiles(features.others(fold.held_out)), 50)
        network = TorchNetwork(backbone, fitted.network.flow, memory, "cpu")
        return fitting.evidence_of_features(network, features, fold.judged)


def test_blend_and_threshold_are_of_images_held_out(
    plain: fitting.Fitted, paths: list[Path], backbone: Backbone
) -> None:
    evidence = evidence_before_they_joined(plain, paths, backbone, alpha=0.2)
    blend, threshold = Blend.from_good_images(evidence), CalibratedThreshold.from_good_images(evidence, 0.2)
    assert plain.blend is not None
    assert isinstance(plain.threshold, CalibratedThreshold)
    for found, wanted in zip(asdict(plain.blend.weights).values(), asdict(blend.weights).values(), strict=True):
        assert found == pytest.approx(wanted, rel=1e-3)
    assert plain.blend.reference == pytest.approx(blend.reference, rel=1e-3)
    assert plain.threshold.minima == pytest.approx(threshold.without_surplus().minima, rel=1e-2)
    largest = [blend.anomaly_map(each, each.energies[0].shape[1:]).max() for each in evidence]
    assert plain.threshold.map_maxima == pytest.approx(largest[: len(plain.threshold.minima)], rel=1e-3)
    assert plain.threshold.alpha == 0.2


def test_in_the_end_the_memory_holds_vectors_of_all_images(
    plain: fitting.Fitted, paths: list[Path], backbone: Backbone
) -> None:
    with ImageFeatures.compute(backbone, paths, False, False) as features:
        everything = MemoryBank.from_features(features.cache, features.tiles(range(30)), 50)
    assert plain.network.memory is not None
    for kept, wanted in zip(plain.network.memory.vectors, everything.vectors, strict=True):
        torch.testing.assert_close(kept, wanted)


def test_whoever_wants_no_memory_gets_none(paths: list[Path], backbone: Backbone) -> None:
    fitted = fit(paths, backbone, replace(QUICK, memory_size=0), alpha=0.2)
    assert (fitted.network.memory, fitted.blend) == (None, None)


# 5. The threshold -----------------------------------------------------------------------------------------------------


def test_the_papers_test_has_the_tail_asked_for(paths: list[Path], backbone: Backbone) -> None:
    found = fit(paths[:4], backbone, alpha=None, tail="chernoff-unguarded")
    assert found.threshold == PaperThreshold("chernoff-unguarded")


def test_without_alpha_it_is_the_papers(
    paths: list[Path], backbone: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="uflow"):
        assert fit(paths, backbone, alpha=None).threshold == PaperThreshold()
    assert "no alpha: until it is calibrated, it judges by the paper's test" in caplog.text


# A selection instead of held-out images -------------------------------------------------------------------------------


class Scripted:
    """Says of each epoch what a test wants."""

    digest = "4 scripted"
    figure = "what a test wants"

    def __init__(self, answers: list[float]) -> None:
        self.answers = answers
        self.networks: list[TorchNetwork] = []
        self.energies: list[float] = []

    def __call__(self, network: TorchNetwork) -> float:
        self.networks.append(network)
        self.energies.append(float(network.evidence(np.full((1, 64, 64, 3), 99, np.uint8)).energies[0].mean()))
        return self.answers[len(self.networks) - 1]


def test_a_selection_chooses_the_epoch_and_leaves_the_papers_method(
    plain: fitting.Fitted, paths: list[Path], backbone: Backbone
) -> None:
    selection = Scripted([0.5, 0.9, 0.7])
    chosen = fit(paths, backbone, replace(QUICK, epochs=3, augment=True), selection=selection, alpha=0.2)
    assert chosen.training.best_epoch == 2
    assert [epoch["selection"] for epoch in chosen.training.history] == selection.answers
    assert len(set(selection.energies)) == 3  # each time of the flow as it then is
    assert selection.energies[1] == pytest.approx(
        float(chosen.network.evidence(np.full((1, 64, 64, 3), 99, np.uint8)).energies[0].mean()), rel=1e-6
    )
    assert all(network.memory is None for network in selection.networks)
    assert (chosen.network.memory, chosen.blend) == (None, None)  # neither memory nor copies are the paper's
    assert {"selected_on_test", "selected_by"} == chosen.record.keys() - plain.record.keys()
    assert chosen.record["selected_on_test"] == "4 scripted"
    assert chosen.record["selected_by"] == "what a test wants"


# No image held out ----------------------------------------------------------------------------------------------------


PAPERS = TrainingSettings(
    epochs=3, batch_size=4, augment=True, memory_size=0, last_batch="remainder", count_affine=False, precision="float32"
)


def test_without_held_out_images_all_are_learnt_from_and_the_last_epoch_is_kept(
    paths: list[Path], backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[int, np.dtype[Any]]] = []
    train = fitting.train

    def spied(flow: Any, features: Any, *of: Any, **how: Any) -> TrainingState:
        shown.append((len(features.indices), features.cache.arrays[0].dtype))
        return train(flow, features, *of, **how)

    monkeypatch.setattr(fitting, "train", spied)
    found = fit(paths[:6], backbone, PAPERS, held_out=0.0, alpha=None)
    assert shown == [(6, np.float32)]  # no trial with copies: nothing could choose; features are not rounded
    assert found.training.best_epoch == len(found.training.history) == 3
    assert [epoch["held_out_nll"] for epoch in found.training.history] == [None] * 3
    assert found.training.best_nll == found.training.history[-1]["train_nll"]
    assert (found.threshold, found.blend, found.network.memory) == (PaperThreshold(), None, None)
    alone = fit(paths[:1], backbone, replace(PAPERS, epochs=1), held_out=0.0, alpha=None)  # one image is enough
    assert len(alone.training.history) == 1
    chosen = fit(paths[:6], backbone, PAPERS, held_out=0.0, alpha=None, selection=Scripted([0.5, 0.9, 0.7]))
    assert chosen.training.best_epoch == 2


def test_patience_counts_epochs_without_a_better_selection(paths: list[Path], backbone: Backbone) -> None:
    settings = replace(PAPERS, epochs=9, patience=2)
    found = fit(paths[:6], backbone, settings, held_out=0.0, alpha=None, selection=Scripted([0.5, 0.9, 0.7, 0.8, 1]))
    assert (found.training.best_epoch, len(found.training.history)) == (2, 4)


def test_a_memory_needs_images_held_out(paths: list[Path], backbone: Backbone) -> None:
    with pytest.raises(ValueError, match=r"memory_size must be 0 \(--paper-map\)"):
        fit(paths[:6], backbone, QUICK, held_out=0.0, alpha=None)


def test_no_images_are_one_line() -> None:
    with pytest.raises(ValueError, match=r"at least 2 good images, one of them to select by; got 0") as error:
        Detector.fit([])
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"at least 1 good image; got 0"):
        Detector.fit_recipe([], Recipe.paper("grating", "efficientnet_lite0", image_size=64))


def test_a_detector_that_saw_all_images_is_saved_and_goes_on(paths: list[Path], tmp_path: Path) -> None:
    recipe = Recipe.paper("grating", "efficientnet_lite0", image_size=64)
    recipe = replace(recipe, settings=replace(recipe.settings, epochs=2))
    whole = Detector.fit_recipe(paths[:6], recipe, device="cpu", progress=False)
    whole.save(tmp_path / "one.uflow")
    loaded = load(tmp_path / "one.uflow", "cpu")
    assert loaded.history == whole.history
    assert loaded.predict(paths[7]).score == whole.predict(paths[7]).score
    half = replace(recipe, settings=replace(recipe.settings, epochs=2))
    state = tmp_path / "state"
    Detector.fit_recipe(paths[:6], half, device="cpu", state_file=state, progress=False)
    assert load_training_state(state, whole.record).epoch == 2


# The record -----------------------------------------------------------------------------------------------------------


def test_the_record_says_what_was_asked_for_and_learnt_from(
    plain: fitting.Fitted, paths: list[Path], backbone: Backbone
) -> None:
    recipe = recipe_of(alpha=0.2).resolved(backbone)
    assert plain.record == training_record(recipe, backbone, paths)
    assert plain.record["settings"] == asdict(QUICK)
    assert (plain.record["image_size"], plain.record["strides"], plain.record["alpha"]) == ((64, 64), (8, 16, 32), 0.2)
    assert plain.record["weights_sha256"] == backbone.weights_sha256
    assert plain.record["images"] == digest(paths)
    assert json.loads(json.dumps(plain.record))


# Going on -------------------------------------------------------------------------------------------------------------


def test_a_killed_training_goes_on(dataset: Path, paths: list[Path], backbone: Backbone, tmp_path: Path) -> None:
    """A real SIGKILL in the middle; the same call then goes on, and one for another training does not."""
    state_file = tmp_path / "state"
    call = (
        "import uflow; from uflow.training import TrainingSettings;"
        f"uflow.Detector.fit({str(dataset / 'train/good')!r}, image_size=64, flow_steps=1,"
        "settings=TrainingSettings(epochs=400, batch_size=4, patience=400, augment=False),"
        f"device='cpu', progress=False, state_file={str(state_file)!r})"
    )
    with subprocess.Popen([sys.executable, "-c", call]) as process:
        deadline = time.monotonic() + 120
        while not state_file.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGKILL)
    _, config = model_file._load(state_file, "training state")
    done = config["epoch"]
    assert 1 <= done < 400

    killed = recipe_of(TrainingSettings(epochs=400, batch_size=4, patience=400, augment=False))
    assert load_training_state(state_file, training_record(killed, backbone, paths)).epoch == done
    # The flow does not depend on alpha.
    other_alpha = training_record(replace(killed, alpha=0.2), backbone, paths)
    assert load_training_state(state_file, other_alpha).epoch == done
    with pytest.raises(
        ValueError, match=r"belongs to another training \(epochs 400, not 2, batch_size 4, not 10, .*\); delete it"
    ):
        fit(paths, backbone, state_file=state_file)
    with pytest.raises(ValueError, match=r"belongs to another training \(.*other images\)"):
        fit(paths[1:], backbone, state_file=state_file)


def test_a_state_of_another_training_is_found_before_the_work(
    paths: list[Path], backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = {"a": torch.zeros(1)}  # safetensors 0.4.0 writes no JSON for none
    state = TrainingState(epoch=1, best_epoch=1, best_nll=0.0, weights=some, best_weights=some, optimizer=some)
    other = training_record(recipe_of(alpha=0.2).resolved(backbone), backbone, paths[1:])
    model_file.save_training_state(tmp_path / "state.augmented", state, other)
    monkeypatch.setattr(ImageFeatures, "compute", None)
    with pytest.raises(ValueError, match=r"state\.augmented belongs to another training \(other images\); delete it"):
        fit(paths, backbone, alpha=0.2, state_file=tmp_path / "state")


def test_a_state_of_other_held_out_images_is_found_before_a_flow_is_trained(
    paths: list[Path], backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where "auto" goes by the times of files, and these have been copied since."""
    some = {"a": torch.zeros(1)}  # safetensors 0.4.0 writes no JSON for none
    state = TrainingState(epoch=1, best_epoch=1, best_nll=0.0, weights=some, best_weights=some, optimizer=some)
    record = training_record(recipe_of(alpha=0.2).resolved(backbone), backbone, paths)
    monkeypatch.setattr(fitting, "train", None)
    for name in ("state", "state.augmented", "state.fold1"):
        stage = {"held_out": [1, 2, 3], "augmented": name.endswith("augmented")}
        model_file.save_training_state(tmp_path / name, state, record | {"stage": stage})
        with pytest.raises(ValueError, match=rf"{name} belongs to another training \((other )?held_out"):
            fit(paths, backbone, alpha=0.05 if "fold" in name else 0.2, state_file=tmp_path / "state")
        (tmp_path / name).unlink()


class SaveThenDie:
    """Saves states of trainings, and is killed after so many."""

    def __init__(self, last: int) -> None:
        self.last, self.save = last, model_file.save_training_state
        self.saved: list[str] = []

    def __call__(self, path: Path, state: TrainingState, record: dict[str, Any]) -> None:
        self.save(path, state, record)
        self.saved.append(path.name)
        if len(self.saved) == self.last:
            raise KeyboardInterrupt


def test_states_of_folds_that_another_alpha_had_serve_it_and_go(
    paths: list[Path], backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, file = replace(QUICK, memory_size=0), tmp_path / "state"
    (tmp_path / "state.backup").touch()  # not ours
    for alpha, last, saved in ((0.1, 5, ["state", "state", "state.fold1", "state.fold1", "state.fold2"]), (0.3, 0, [])):
        die = SaveThenDie(last)
        monkeypatch.setattr(model_file, "save_training_state", die.__call__)
        with nullcontext() if last == 0 else pytest.raises(KeyboardInterrupt):
            fit(paths[:12], backbone, settings, alpha=alpha, state_file=file)
        assert die.saved == saved
    assert {path.name for path in tmp_path.iterdir()} == {"state", "state.backup"}


BROKEN_OFF = TrainingSettings(epochs=2, batch_size=16, memory_size=0)


@pytest.fixture(scope="module")
def whole(paths: list[Path], backbone: Backbone) -> fitting.Fitted:
    """A training that is not broken off, with the trial with copies and a further flow."""
    return fit(paths[:12], backbone, BROKEN_OFF, alpha=0.15)


@pytest.mark.parametrize("epoch", [1, 3, 5, 6])  # of the flow, the trial with copies, and a further flow
def test_goes_on_from_its_state_file_to_the_same_end(
    epoch: int,
    whole: fitting.Fitted,
    paths: list[Path],
    backbone: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state_file, stages = tmp_path / "state", ["state"] * 2 + ["state.augmented"] * 2 + ["state.fold1"] * 2
    die, go_on = SaveThenDie(epoch), SaveThenDie(0)
    with monkeypatch.context() as patch:
        patch.setattr(model_file, "save_training_state", die)
        with pytest.raises(KeyboardInterrupt):
            fit(paths[:12], backbone, BROKEN_OFF, alpha=0.15, state_file=state_file)
        patch.setattr(model_file, "save_training_state", go_on)
        resumed = fit(paths[:12], backbone, BROKEN_OFF, alpha=0.15, state_file=state_file)
    assert (die.saved, go_on.saved) == (stages[:epoch], stages[epoch:])  # no epoch is done twice
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    for name, tensor in whole.network.flow.state_dict().items():
        assert torch.equal(tensor, resumed.network.flow.state_dict()[name]), name
    assert resumed.threshold == whole.threshold
