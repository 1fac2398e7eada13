"""The detector end to end on a tiny data set: fit, predict, calibrate, evaluate, save, load, resume, bad input.

Streams and tiles are tested in test_predictor.py.
"""

import copy
import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import uflow
from uflow import model_file
from uflow.detector import Detector, Prediction, _Cached, hold_out
from uflow.images import digest, list_images, read_image, read_mask, resize_image
from uflow.memory import Neighbours
from uflow.model_file import load_model, load_training_state, save_model
from uflow.training import TrainingSettings, TrainingState

QUICK = TrainingSettings(epochs=2, batch_size=4, augment=False)


def fit(images, **options) -> Detector:
    options = {"image_size": 64, "settings": QUICK, "device": "cpu", "progress": False, **options}
    return Detector.fit(images, **options)


def same(a: Prediction, b: Prediction) -> None:
    np.testing.assert_allclose(a.anomaly_map, b.anomaly_map, atol=1e-4)
    np.testing.assert_array_equal(a.mask, b.mask)


def test_finds_what_is_not_good(detector: Detector, dataset: Path) -> None:
    evaluation = detector.evaluate(dataset)
    assert evaluation.image_auroc == 1.0
    assert evaluation.pixel_auroc > 0.9
    assert evaluation.aupro > 0.6
    assert evaluation.miou > 0.2
    assert evaluation.miou_best >= evaluation.miou
    assert evaluation.flagged["square"] == {"images": 4, "share": 1.0}
    assert evaluation.flagged["good"]["images"] == 4
    assert json.loads(json.dumps(evaluation.to_dict())) == evaluation.to_dict()


def test_prediction_has_the_size_of_the_image(detector: Detector, dataset: Path) -> None:
    result = detector.predict(dataset / "test/square/00.png")
    assert isinstance(result, Prediction)
    for array, dtype in (
        (result.anomaly_map, np.float32),
        (result.log_nfa, np.float32),
        (result.mask, np.bool_),
    ):
        assert array.shape == (80, 96)
        assert array.dtype == dtype
    assert result.score == result.anomaly_map.max()
    assert result.is_anomalous
    np.testing.assert_array_equal(result.mask, result.log_nfa < 0)
    first = result.regions[0]
    truth = read_mask(dataset / "ground_truth/square/00_mask.png")
    row, column = first.centroid
    assert truth[round(row), round(column)]
    assert first.log_nfa == pytest.approx(result.log_nfa.min())
    assert sum(region.area for region in result.regions) == result.mask.sum()


def test_takes_files_patterns_folders_arrays_and_pictures(detector: Detector, dataset: Path) -> None:
    folder = dataset / "test/good"
    paths = sorted(folder.iterdir())
    one_by_one = [detector.predict(path) for path in paths]
    many = {
        "list": detector.predict(paths, batch_size=3),
        "folder": detector.predict(folder),
        "pattern": detector.predict(str(folder / "*.png")),
        "arrays": detector.predict([np.asarray(Image.open(path)) for path in paths]),
        "pictures": detector.predict([Image.open(path) for path in paths]),
    }
    assert isinstance(many["list"], list)
    for results in many.values():
        for a, b in zip(one_by_one, results, strict=True):
            same(a, b)
    same(detector.predict(Image.open(paths[0])), one_by_one[0])
    assert one_by_one[0].path == paths[0]


def test_saved_and_loaded_detectors_agree(detector: Detector, dataset: Path, tmp_path: Path) -> None:
    detector.save(tmp_path / "grating.uflow")
    loaded = uflow.load(tmp_path / "grating.uflow", device="cpu")
    image = dataset / "test/square/01.png"
    np.testing.assert_array_equal(detector.predict(image).log_nfa, loaded.predict(image).log_nfa)
    for name in ("tail", "n_tests", "background", "joint", "shift", "alpha"):
        assert getattr(loaded, name) == getattr(detector, name), name
    assert loaded.history == detector.history
    np.testing.assert_array_equal(detector.predict(image).anomaly_map, loaded.predict(image).anomaly_map)


def test_neighbours_join_map_and_score_and_leave_the_test_alone(
    detector: Detector, dataset: Path, tmp_path: Path
) -> None:
    images = [dataset / "test/square/01.png", dataset / "test/good/01.png"]
    both = detector.predict(images, batch_size=1)  # then the bytes are the same each time
    near, detector.neighbours = detector.neighbours, None
    try:
        alone = detector.predict(images, batch_size=1)
        detector.save(tmp_path / "alone.uflow")
    finally:
        detector.neighbours = near
    for a, b in zip(both, alone, strict=True):
        np.testing.assert_array_equal(a.log_nfa, b.log_nfa)
        assert np.abs(a.anomaly_map - b.anomaly_map).max() > 0.01
    assert uflow.load(tmp_path / "alone.uflow", device="cpu").neighbours is None
    assert near is not None
    assert [len(kept) for kept in near.vectors] == [2000, 30 * 64]  # of the finest scale some, of the next all
    assert detector.blend is not None
    assert 0 < detector.blend.map_share < 1
    assert 0 < detector.blend.score_share < 1


def test_usual_distances_and_the_blend_are_of_images_held_out(detector: Detector, dataset: Path) -> None:
    """Before the vectors of these joined; calibration leaves them."""
    unseen = copy.deepcopy(detector)
    held = hold_out(30, 0.15, 0.2, 0)[0]
    paths = sorted((dataset / "train/good").iterdir())
    good = _Cached.of(detector.backbone, paths, False, torch.device("cpu"), False)
    unseen.neighbours = Neighbours.of(good.features, sorted(set(range(30)) - set(held)), 2000)
    unseen.neighbours.measure(good.features, held)
    torch.testing.assert_close(unseen.neighbours.usual, detector.neighbours.usual, rtol=1e-4, atol=0)
    blend = good.blend(unseen, held, seed=0)
    assert blend.map_share == pytest.approx(detector.blend.map_share, rel=1e-3)
    assert blend.score_share == pytest.approx(detector.blend.score_share, rel=1e-3)
    assert unseen.calibrate([paths[i] for i in held], alpha=0.2).blend == detector.blend


def test_a_model_file_of_another_version_is_one_line(detector: Detector, tmp_path: Path) -> None:
    detector.save(tmp_path / "now.uflow")
    tensors, config = load_model(tmp_path / "now.uflow")
    save_model(tmp_path / "old.uflow", tensors | {"neighbours.vectors": torch.zeros(3, 5)}, config)
    with pytest.raises(ValueError, match="written by another version of uflow: train the model again"):
        uflow.load(tmp_path / "old.uflow", device="cpu")
    config["segmentation"]["blend"] = {"share": 0.5, "offset": 0}
    save_model(tmp_path / "old.uflow", tensors, config)
    with pytest.raises(ValueError, match="written by another version of uflow: train the model again"):
        uflow.load(tmp_path / "old.uflow", device="cpu")


@pytest.mark.parametrize("better", [True, False])
def test_held_out_images_say_whether_copies_and_noise_are_taken(
    better: bool, dataset: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls, train = [], uflow.training.train

    def judged(*args, copies: int, noise: float, passes: int, **options) -> TrainingState:
        calls.append((copies, round(noise * 20**0.5, 6), passes))
        state = train(*args, copies=copies, noise=noise, passes=passes, **options)
        return replace(state, best_nll=0.5 if copies == 1 else 0.49 - 0.02 * better)  # a hair is not enough

    monkeypatch.setattr(uflow.training, "train", judged)
    trial = replace(QUICK, augment=True)
    with caplog.at_level(logging.INFO, logger="uflow"):
        fit(
            dataset / "train/good", alpha=0.05, settings=trial
        )  # 20 of 30 to learn from, and a second flow to calibrate
    plain, augmented = (1, 0.0, 4), (8, 1.5, 4)
    assert calls == [plain, augmented, augmented if better else plain]
    assert ("which are taken" if better else "which are left out") in caplog.text

    calls.clear()
    assert fit(dataset / "train/good", alpha=0.2, settings=replace(QUICK, neighbours=0)).neighbours is None
    monkeypatch.setattr(uflow.training, "AUGMENTED", 29)
    fit(dataset / "train/good", alpha=0.2, settings=trial)
    assert calls == [(1, 0.0, 1)] * 2


def test_predicts_by_the_weights_that_the_flow_has(detector: Detector, dataset: Path, tmp_path: Path) -> None:
    detector.save(tmp_path / "model.uflow")
    other = uflow.load(tmp_path / "model.uflow", device="cpu")
    image = dataset / "test/good/00.png"
    before = other.predict(image).score
    weights = {name: tensor.clone() for name, tensor in other.flow.state_dict().items()}
    with torch.no_grad():
        for parameter in other.flow.parameters():
            parameter.mul_(1.1)
    assert other.predict(image).score != before
    other.flow.load_state_dict(weights)
    assert other.predict(image).score == before


def test_calibration_keeps_its_promise_on_the_images_it_saw(detector: Detector, dataset: Path, tmp_path: Path) -> None:
    detector.save(tmp_path / "model.uflow")
    other = uflow.load(tmp_path / "model.uflow", device="cpu")
    images = sorted((dataset / "train/good").iterdir())
    other.calibrate(images, alpha=0.1)
    flagged = sum(prediction.is_anomalous for prediction in other.predict(images))
    assert (flagged + 1) / (len(images) + 1) <= 0.1
    brighter = [np.asarray(Image.open(path)) // 2 + 100 for path in images]
    other.calibrate(brighter, alpha=0.1)
    assert sum(p.is_anomalous for p in other.predict(brighter)) <= 2


def test_a_calibration_that_fails_changes_nothing(
    detector: Detector, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("tail", "n_tests", "background", "joint", "shift", "alpha")
    before = [getattr(detector, name) for name in names]

    def fail(energies):
        raise ValueError("the energies do not vary")

    monkeypatch.setattr(uflow.calibration, "fit_background", fail)
    with pytest.raises(ValueError, match="do not vary"):
        detector.calibrate(dataset / "test/good", alpha=0.3)
    assert [getattr(detector, name) for name in names] == before


def test_paper_test_is_kept_unchanged(dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not calibrated, or with no images to calibrate on: the published test, and a line that says so."""
    with caplog.at_level(logging.INFO, logger="uflow"):
        uncalibrated = fit(dataset / "train/good", alpha=None)
    assert "not calibrated: the paper's test" in caplog.text
    uncalibrated.save(tmp_path / "model.uflow")
    emptied = uflow.load(tmp_path / "model.uflow", device="cpu").calibrate(dataset / "test/good", alpha=0.3)
    caplog.clear()
    assert emptied.calibrate([]) is emptied
    assert "no calibration images: the paper's test" in caplog.text
    gaussian = Detector(uncalibrated.backbone, uncalibrated.flow, background="gaussian", device="cpu")

    image = read_image(dataset / "test/square/00.png")
    batch = uflow.training.image_tensor(resize_image(image, (64, 64))[None])
    with torch.inference_mode():
        latents, _ = uncalibrated.flow(uncalibrated.backbone(batch))
    expected = uflow.segmentation.log_nfa(latents, size=(80, 96), tail="chernoff", n_tests="total")[0]
    for detector in (uncalibrated, uflow.load(tmp_path / "model.uflow", device="cpu"), emptied, gaussian):
        assert (detector.tail, detector.n_tests, detector.background) == ("chernoff", "total", "gaussian")
        assert (detector.joint, detector.shift, detector.alpha) == (None, 0.0, None)
        np.testing.assert_allclose(detector.predict(image).log_nfa, expected, rtol=1e-6, atol=1e-3)


def test_few_images_calibrate_on_more_than_one_flow_holds_out(dataset: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="uflow"):
        detector = fit(dataset / "train/good", alpha=0.05)
    assert "10 images held out are few for alpha 0.05: training 2 flows" in caplog.text
    assert "support" not in caplog.text  # 20 images do
    alone = fit(dataset / "train/good", alpha=0.1)  # 10 do: one flow, and it is the same one
    image = dataset / "test/good/00.png"
    np.testing.assert_array_equal(alone.predict(image).anomaly_map, detector.predict(image).anomaly_map)
    assert alone.joint == detector.joint
    assert detector.shift >= alone.shift


def test_the_image_that_sets_the_threshold_is_named(
    detector: Detector, dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    detector.save(tmp_path / "model.uflow")
    other = uflow.load(tmp_path / "model.uflow", device="cpu")
    images = [*sorted((dataset / "test/good").iterdir()), dataset / "test/square/02.png"]
    with caplog.at_level(logging.INFO, logger="uflow"):
        other.calibrate(images, alpha=0.17)
    assert f"calibrated for alpha 0.17 on 5 good images; as unusual as any may be: {images[-1]}" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="uflow"):
        other.calibrate([read_image(path) for path in images], alpha=0.17)
    assert "as unusual as any may be: number 5" in caplog.text


def test_too_few_images_for_alpha_is_said(dataset: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(dataset / "train/good", alpha=0.01)
    assert "30 calibration images support alpha >= 0.0323, not 0.01" in caplog.text


def test_images_held_out() -> None:
    for count, alpha, sizes in [
        (700, 0.05, [105]),
        (700, 0.001, [105] * 6),
        (31, None, [10]),
        (31, 0.1, [10]),
        (31, 0.05, [10, 10]),
        (31, 0.01, [10, 10, 10]),
        (2, 0.5, [1]),
        (2, 0.05, [1, 1]),
    ]:
        folds = hold_out(count, 0.15, alpha, seed=3)
        assert [len(fold) for fold in folds] == sizes
        assert len(set().union(*folds)) == sum(sizes)
        assert folds[0] == hold_out(count, 0.15, None, seed=3)[0]


def test_a_killed_training_goes_on(dataset: Path, tmp_path: Path) -> None:
    """A real SIGKILL in the middle; the same call then ends where an unbroken training ends."""
    state_file, images = tmp_path / "state", str(dataset / "train/good")
    call = (
        "import uflow; from uflow.training import TrainingSettings;"
        f"uflow.Detector.fit({images!r}, image_size=64,"
        "settings=TrainingSettings(epochs=400, batch_size=4, patience=400),"
        f"device='cpu', progress=False, state_file={str(state_file)!r})"
    )
    with subprocess.Popen([sys.executable, "-c", call]) as process:
        deadline = time.monotonic() + 120
        while not (state_file.exists() and process.poll() is None) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(process.pid, signal.SIGKILL)
    _, config = model_file._load(state_file, "training state")
    done = config["epoch"]
    assert 1 <= done < 400

    settings = TrainingSettings(epochs=400, batch_size=4, patience=400)
    net = uflow.backbones.create_backbone("efficientnet_lite0", image_size=64)
    run = uflow.detector.fingerprint(net, 4, settings, list_images(images), 0.15)
    assert load_training_state(state_file, run).epoch == done
    with pytest.raises(ValueError, match=r"belongs to another training \(other settings\)"):
        fit(dataset / "train/good", state_file=state_file)


@pytest.mark.parametrize("epoch", [1, 4])  # the fourth is the first of the trial with copies
def test_goes_on_from_its_state_file_to_the_same_end(
    epoch: int, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TrainingSettings(epochs=3, batch_size=4)
    whole = fit(dataset / "train/good", settings=settings)
    save = model_file.save_training_state

    saved = []

    def save_then_die(path, state, run):
        save(path, state, run)
        saved.append(path.name)
        if len(saved) == epoch:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model_file, "save_training_state", save_then_die)
        with pytest.raises(KeyboardInterrupt):
            fit(dataset / "train/good", settings=settings, state_file=tmp_path / "state")
    assert saved == ["state"] * min(epoch, 3) + ["state.augmented"] * (epoch - 3)
    resumed = fit(dataset / "train/good", settings=settings, state_file=tmp_path / "state")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    for name, tensor in whole.flow.state_dict().items():
        assert torch.equal(tensor, resumed.flow.state_dict()[name]), name
    assert resumed.shift == whole.shift


def test_an_epoch_chosen_on_the_test_set_is_marked_wherever_it_goes(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    test_set = uflow.datasets.read_mvtec(dataset)
    settings = TrainingSettings(epochs=4, batch_size=4, augment=False)  # as the reproduction has it
    chosen = fit(dataset / "train/good", settings=settings, alpha=0.2, select_on_test=test_set)
    fair = fit(dataset / "train/good", settings=settings, alpha=0.2)
    assert [e["held_out_nll"] for e in chosen.history] == [e["held_out_nll"] for e in fair.history]
    assert max(e["selection"] for e in chosen.history) == pytest.approx(chosen.evaluate(test_set).pixel_auroc, abs=1e-5)
    assert (fair.selected_on_test, chosen.selected_on_test) == (False, True)
    assert "selected_on_test" not in fair._test_config()
    chosen.save(tmp_path / "chosen.uflow")
    with caplog.at_level(logging.WARNING, logger="uflow"):
        loaded = uflow.load(tmp_path / "chosen.uflow", device="cpu")
    assert "chosen.uflow was chosen on its test set: its figures there are not fair" in caplog.text
    assert loaded.selected_on_test
    assert loaded.trained_with == json.loads(json.dumps(chosen.trained_with))
    assert {"selected_on_test"} == chosen.trained_with.keys() - fair.trained_with.keys()


def test_models_say_what_they_were_trained_with(dataset: Path, tmp_path: Path) -> None:
    images = sorted((dataset / "train/good").iterdir())
    detector = fit(images[:10], alpha=0.3)
    assert detector.trained_with["settings"]["epochs"] == 2
    assert (detector.trained_with["image_size"], detector.trained_with["alpha"]) == ([64, 64], 0.3)
    copies = [tmp_path / path.name for path in images[:10]]
    for path, twin in zip(images, copies, strict=False):
        twin.write_bytes(path.read_bytes())
    assert digest(copies) == detector.trained_with["images"]  # wherever they lie
    assert digest(copies[::-1]) != detector.trained_with["images"]
    assert digest([np.asarray(Image.open(images[0]))]) != digest([images[0]])


# Bad input: each one clear line ---------------------------------------------------------------------------------------


def test_cut_short_foreign_and_future_model_files(detector: Detector, tmp_path: Path) -> None:
    path = tmp_path / "model.uflow"
    detector.save(path)
    content = path.read_bytes()
    for broken in (content[: len(content) // 2], content[:4], b"", b"not a model at all" * 100):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"model\.uflow is not a uflow model file, or was cut short"):
            uflow.load(path)
    path.write_bytes(content.replace(b'\\"version\\": 1', b'\\"version\\": 9', 1))
    with pytest.raises(ValueError, match=r"format version 9.*reads version 1"):
        uflow.load(path)
    with pytest.raises(FileNotFoundError, match=r"there is no model file .*absent\.uflow"):
        uflow.load(tmp_path / "absent.uflow")


def test_model_of_other_weights_is_refused(detector: Detector, tmp_path: Path) -> None:
    detector.save(tmp_path / "model.uflow")
    other = {name: tensor + 0.5 for name, tensor in detector.backbone.state_dict().items()}
    assert other
    import timm

    weights = tmp_path / "other.pth"
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), weights)
    with pytest.raises(
        ValueError, match=r"trained on efficientnet_lite0 weights from .*pass the right file as weights="
    ):
        uflow.load(tmp_path / "model.uflow", weights=weights)


def test_no_permission_and_full_disk_leave_the_old_file(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.uflow"
    detector.save(path)
    before = path.read_bytes()

    def full(self, content):
        with self.open("wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match=r"cannot write .*model\.uflow: No space left on device"):
            detector.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.uflow"]
    with pytest.raises(OSError, match=r"cannot write .*absent/model\.uflow"):
        detector.save(tmp_path / "absent/model.uflow")


def test_bad_images(detector: Detector, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="NaN"):
        detector.predict(np.full((64, 64, 3), np.nan))
    with pytest.raises(ValueError, match=r"\(0, 5, 3\)"):
        detector.predict(np.empty((0, 5, 3), np.uint8))
    (tmp_path / "cut.png").write_bytes((dataset / "test/good/00.png").read_bytes()[:300])
    with pytest.raises(ValueError, match=r"cut\.png"):
        detector.predict(tmp_path / "cut.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images"):
        detector.predict(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="absent"):
        detector.predict("absent.png")
    with pytest.raises(ValueError, match="at least 2 good images"):
        fit([np.zeros((64, 64, 3), np.uint8)])
    with pytest.raises(ValueError, match="alpha is a probability"):
        detector.calibrate(dataset / "test/good", alpha=1.5)
    with pytest.raises(ValueError, match="alpha is a probability"):
        fit(dataset / "train/good", alpha=0.0)
    with pytest.raises(ValueError, match="held_out is a share"):
        fit(dataset / "train/good", held_out=0.0)
    with pytest.raises(ValueError, match="efficientnet_lite0"):
        fit(dataset / "train/good", backbone="efficientnet_light0")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there_is_one_line(dataset: Path) -> None:
    with pytest.raises(ValueError, match="device 'cuda' is not available here; use 'auto' or 'cpu'"):
        fit(dataset / "train/good", device="cuda")


# Real images ----------------------------------------------------------------------------------------------------------


def test_hazelnuts(real_images: Path) -> None:
    root = real_images / "hazelnut_toy"
    settings = TrainingSettings(epochs=8)  # half the default's, for the time it takes
    evaluation = Detector.fit(root / "train/good", settings=settings, device="cpu", progress=False).evaluate(root)
    assert evaluation.pixel_auroc >= 0.95
    assert evaluation.image_auroc >= 0.95
    assert evaluation.miou > 0.3
    assert evaluation.flagged["colour"]["share"] >= 0.9
