"""The detector end to end on a tiny data set: fit, predict, calibrate, evaluate, save, load, bad input.

The steps of fitting are tested in test_fitting.py, streams and tiles in test_predictor.py.
"""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import uflow
from made_nets import LITE0
from uflow.deploy.describe import describe_model
from uflow.detector import Detector
from uflow.evaluate.datasets import find_categories
from uflow.evaluate.evaluation import evaluate_predictor
from uflow.evaluate.study import TestSelection
from uflow.features import image_tensor
from uflow.files import sha256
from uflow.images import list_images, read_image, read_mask, resize_image
from uflow.model_file import load_model, save_model
from uflow.network import TorchNetwork
from uflow.prediction import Prediction
from uflow.processes import only_one
from uflow.threshold import PaperThreshold
from uflow.training import TrainingSettings

QUICK = TrainingSettings(epochs=2, batch_size=4, augment=False, memory_size=100)


def fit(images: Any, **options: Any) -> Detector:
    options = {"image_size": 64, "settings": QUICK, "device": "cpu", "progress": False, **options}
    return Detector.fit(images, **options)


def copy_of(detector: Detector, folder: Path) -> Detector:
    """One that a test may change."""
    detector.save(folder / "copy.uflow")
    return uflow.load(folder / "copy.uflow", device="cpu")


def same(a: Prediction, b: Prediction) -> None:
    np.testing.assert_allclose(a.anomaly_map, b.anomaly_map, atol=1e-4)
    np.testing.assert_array_equal(a.mask, b.mask)


def test_finds_what_is_not_good(detector: Detector, dataset: Path) -> None:
    category = find_categories(dataset)[0]
    evaluation = evaluate_predictor(detector, category)
    scores = [detector.predict(sample.path).score for sample in category.test]
    assert [image["score"] for image in evaluation.images] == pytest.approx(scores, abs=1e-5)
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
    (evidence,) = detector.predictor.evidence([result.image], 1)
    blend = detector.predictor.blend
    assert blend is not None
    assert result.score == blend.scores(evidence, 16 * 16)[0]
    assert result.score == pytest.approx(result.anomaly_map.max(), abs=1e-3)  # of 256 cells the largest alone counts
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
    assert loaded.threshold == detector.threshold
    assert loaded.predictor.to_dict() == detector.predictor.to_dict()
    assert loaded.history == detector.history
    assert loaded.record == json.loads(json.dumps(detector.record))
    np.testing.assert_array_equal(detector.predict(image).anomaly_map, loaded.predict(image).anomaly_map)
    loaded.save(tmp_path / "again.uflow")
    assert (tmp_path / "again.uflow").read_bytes() == (tmp_path / "grating.uflow").read_bytes()


def test_the_memory_is_of_all_images_and_is_saved(detector: Detector, dataset: Path, tmp_path: Path) -> None:
    memory, blend = detector.network.memory, detector.predictor.blend
    assert memory is not None
    assert blend is not None
    assert [len(kept) for kept in memory.vectors] == [2000, 30 * 64]  # of the finest scale some, of the next all
    loaded = copy_of(detector, tmp_path)
    assert loaded.network.memory is not None
    for kept, saved in zip(memory.vectors, loaded.network.memory.vectors, strict=True):
        assert torch.equal(kept, saved)
    assert loaded.predictor.blend == blend
    # Latents alone, judged by the paper: there is nothing to remember, and nothing is.
    network = TorchNetwork(detector.network.backbone, detector.network.flow, device="cpu")
    alone = copy_of(Detector(network), tmp_path)
    assert (alone.network.memory, alone.predictor.blend) == (None, None)
    image = dataset / "test/square/01.png"
    assert np.abs(alone.predict(image).anomaly_map - detector.predict(image).anomaly_map).max() > 0.01


def test_a_detector_learns_and_predicts_in_tiles(dataset: Path, tmp_path: Path) -> None:
    wide = [np.concatenate([read_image(path)] * 2, axis=1) for path in list_images(dataset / "train/good")]
    fitted = fit(wide, tile=True, settings=replace(QUICK, epochs=3), alpha=0.2)
    loaded = copy_of(fitted, tmp_path)
    assert loaded.predictor.tile
    square = np.concatenate([read_image(dataset / f"test/square/0{i}.png") for i in range(2)], axis=1)
    result = loaded.predict(square)
    assert result.log_nfa.shape == (80, 192)
    assert result.is_anomalous
    truth = np.concatenate([read_mask(dataset / f"ground_truth/square/0{i}_mask.png") for i in range(2)], axis=1)
    assert result.anomaly_map[truth].mean() > result.anomaly_map[~truth].mean()
    wide[0] = wide[0][:, :150]  # sizes may differ
    loaded.calibrate(wide, alpha=0.1)
    assert sum(p.is_anomalous for p in loaded.predict(wide)) <= 3


def test_calibration_keeps_its_promise_on_the_images_it_saw(detector: Detector, dataset: Path, tmp_path: Path) -> None:
    other, images = copy_of(detector, tmp_path), sorted((dataset / "train/good").iterdir())
    other.calibrate(images, alpha=0.1)
    flagged = sum(prediction.is_anomalous for prediction in other.predict(images))
    assert (flagged + 1) / (len(images) + 1) <= 0.1
    brighter = [np.asarray(Image.open(path)) // 2 + 100 for path in images]
    other.calibrate(brighter, alpha=0.1)
    assert sum(p.is_anomalous for p in other.predict(brighter)) <= 2


def test_images_that_were_learnt_from_are_no_calibration(
    detector: Detector, dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own, learnt = copy_of(detector, tmp_path), sorted((dataset / "train/good").iterdir())
    mirrored = [np.asarray(Image.open(path))[:, ::-1].copy() for path in learnt]
    for images in (dataset / "test/good", mirrored):  # the calibration that the model came with is compared
        copy_of(detector, tmp_path).calibrate(images, alpha=0.2)
    assert "learnt from" not in caplog.text
    own.calibrate(learnt, alpha=0.2)
    count = len(learnt)
    assert f"the model seems to have learnt from these calibration images: its memory holds cells of {count}" in (
        caplog.text
    )


def test_flagged_images_join_what_is_good(detector: Detector, dataset: Path, tmp_path: Path) -> None:
    own = copy_of(detector, tmp_path)
    other = own.at(0.2)
    paths = list_images(dataset / "test/square")[:2]
    first = own.predict(paths)
    assert all(result.is_anomalous for result in first)
    assert own.add_good(paths) is own
    before, after = (len(each.network.memory.vectors[0]) for each in (detector, own))
    cells = own.network.evidence_of_features(own.network.features(np.zeros((1, 128, 128, 3), np.uint8))).distances[0]
    assert before < after <= before + 2 * cells.size
    for old, new in zip(first, own.predict(paths), strict=True):
        assert new.p_value > old.p_value
        assert new.score < old.score
    assert [len(v) for v in other.network.memory.vectors] == [len(v) for v in detector.network.memory.vectors]
    assert other.threshold == detector.threshold

    own.save(tmp_path / "added.uflow")
    again, about = uflow.load(tmp_path / "added.uflow", device="cpu"), describe_model(tmp_path / "added.uflow")
    assert again.threshold == own.threshold
    assert about["calibration"]["added"] == [{"name": path.name, "sha256": sha256(path)} for path in paths]
    same(again.predict(paths[0]), own.predict(paths[0]))
    kept = own.network.memory
    with pytest.raises(FileNotFoundError):
        own.add_good([paths[1], tmp_path / "none.png"])
    assert own.network.memory is kept
    assert own.threshold == again.threshold


def test_paper_test_is_kept_unchanged(dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not calibrated, or with no images to calibrate on: the published test, and a line that says so."""
    with caplog.at_level(logging.INFO, logger="uflow"):
        uncalibrated = fit(dataset / "train/good", alpha=None)
    assert "no alpha: until it is calibrated, it judges by the paper's test" in caplog.text
    loaded = copy_of(uncalibrated, tmp_path)
    emptied = copy_of(uncalibrated, tmp_path).calibrate(dataset / "test/good", alpha=0.3)
    assert emptied.threshold.alpha == 0.3
    caplog.clear()
    assert emptied.calibrate([]) is emptied
    assert "no calibration images: the paper's test" in caplog.text
    network = uncalibrated.network
    made = Detector(TorchNetwork(network.backbone, network.flow, device="cpu"))

    image = read_image(dataset / "test/square/00.png")
    batch = image_tensor(resize_image(image, (64, 64))[None])
    with torch.inference_mode():
        latents, _ = network.flow(network.backbone.normalised(network.backbone(batch)))
    expected = uflow.segmentation.log_nfa(latents, size=(80, 96), tail="chernoff", n_tests="total")[0]
    for detector in (uncalibrated, loaded, emptied, made):
        assert detector.threshold == PaperThreshold("chernoff", "total")
        assert detector.threshold.alpha is None
        result = detector.predict(image)
        assert result.p_value is None
        np.testing.assert_allclose(result.log_nfa, expected, rtol=1e-6, atol=1e-3)


def test_the_image_that_sets_the_threshold_is_named(
    detector: Detector, dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = copy_of(detector, tmp_path)
    images = [*sorted((dataset / "test/good").iterdir()), dataset / "test/square/02.png"]
    with caplog.at_level(logging.INFO, logger="uflow"):
        other.calibrate(images, alpha=0.17)
    assert f"calibrated for alpha 0.17 on 5 good images; as unusual as any may be: {images[-1]}" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="uflow"):
        other.calibrate([read_image(path) for path in images], alpha=0.17)
    assert "as unusual as any may be: number 5" in caplog.text
    assert "far stranger" not in caplog.text  # the quartiles of five images say little
    assert "more defects" not in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="uflow"):
        other.calibrate(images[:-1], alpha=0.2)
    with caplog.at_level(logging.INFO, logger="uflow"):
        other.calibrate(images, alpha=0.3)
    assert "5 images make alpha 0.167; with 6 it is 0.3, and more defects are found" in caplog.text


def test_an_epoch_chosen_on_the_test_set_is_marked_wherever_it_goes(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (test_set,) = find_categories(dataset)
    settings = replace(QUICK, epochs=4)  # as the reproduction has it
    with TestSelection(test_set) as selection:
        chosen = fit(dataset / "train/good", settings=settings, alpha=0.2, selection=selection)
    fair = fit(dataset / "train/good", settings=settings, alpha=0.2)
    assert [e["held_out_nll"] for e in chosen.history] == [e["held_out_nll"] for e in fair.history]
    best = max(epoch["selection"] for epoch in chosen.history)
    assert best == pytest.approx(evaluate_predictor(chosen, test_set).pixel_auroc, abs=1e-5)
    assert (fair.predictor.selected_on_test, chosen.predictor.selected_on_test) == (False, True)
    chosen.save(tmp_path / "chosen.uflow")
    with caplog.at_level(logging.WARNING, logger="uflow"):
        loaded = uflow.load(tmp_path / "chosen.uflow", device="cpu")
    assert "chosen.uflow was chosen on its test set: its figures there are not fair" in caplog.text
    assert loaded.predictor.selected_on_test
    assert loaded.record == json.loads(json.dumps(chosen.record))
    assert {"selected_on_test", "selected_by"} == chosen.record.keys() - fair.record.keys()


# Bad input: each one clear line ---------------------------------------------------------------------------------------


def test_a_model_file_of_another_version_is_one_line(detector: Detector, tmp_path: Path) -> None:
    detector.save(tmp_path / "now.uflow")
    tensors, config = load_model(tmp_path / "now.uflow")
    save_model(tmp_path / "old.uflow", tensors | {"neighbours.vectors": torch.zeros(3, 5)}, config)
    with pytest.raises(ValueError, match=r"old\.uflow was written by another version of uflow: train the model again"):
        uflow.load(tmp_path / "old.uflow", device="cpu")
    config["predictor"]["blend"] = {"share": 0.5, "offset": 0}
    save_model(tmp_path / "old.uflow", tensors, config)
    with pytest.raises(ValueError, match="the blend is damaged") as error:
        uflow.load(tmp_path / "old.uflow", device="cpu")
    assert "\n" not in str(error.value)


def test_cut_short_foreign_and_future_model_files(detector: Detector, tmp_path: Path) -> None:
    path = tmp_path / "model.uflow"
    detector.save(path)
    content = path.read_bytes()
    for broken in (content[: len(content) // 2], content[:4], b"", b"not a model at all" * 100):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"model\.uflow is not a uflow model file, or was cut short"):
            uflow.load(path)
    path.write_bytes(content.replace(b'\\"version\\": 2', b'\\"version\\": 9', 1))
    with pytest.raises(ValueError, match=r"format version 9.*reads version 2"):
        uflow.load(path)
    with pytest.raises(FileNotFoundError, match=r"there is no model file .*absent\.uflow"):
        uflow.load(tmp_path / "absent.uflow")


def test_model_of_other_weights_is_refused(detector: Detector, tmp_path: Path) -> None:
    detector.save(tmp_path / "model.uflow")
    import timm

    weights = tmp_path / "other.pth"
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), weights)
    with pytest.raises(
        ValueError, match=r"trained on efficientnet_lite0 weights from .*pass the right file as weights="
    ):
        uflow.load(tmp_path / "model.uflow", weights=weights)


def test_a_weights_file_written_by_torch_is_taken(detector: Detector, dataset: Path, tmp_path: Path) -> None:
    """Such a file begins as checkpoints made elsewhere do."""
    detector.save(tmp_path / "model.uflow")
    shutil.copy(LITE0, tmp_path / "lite0.pth")
    loaded = uflow.load(tmp_path / "model.uflow", device="cpu", weights=tmp_path / "lite0.pth")
    image = dataset / "test/square/01.png"
    same(loaded.predict(image), detector.predict(image))


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
    with pytest.raises(ValueError, match="at least 2 good images, one of them to select by; got 0"):
        uflow.Detector.fit([], device="cpu", progress=False)
    with pytest.raises(ValueError, match="at least 2 good images"):
        fit([np.zeros((64, 64, 3), np.uint8)])
    with pytest.raises(ValueError, match="alpha is a probability"):
        detector.calibrate(dataset / "test/good", alpha=1.5)
    with pytest.raises(ValueError, match="alpha is a probability"):
        fit(dataset / "train/good", alpha=0.0)
    with pytest.raises(ValueError, match="held_out=0 leaves no good images to calibrate by"):
        fit(dataset / "train/good", held_out=0.0)
    with pytest.raises(ValueError, match="held_out is a share"):
        fit(dataset / "train/good", held_out=-0.1)
    with pytest.raises(ValueError, match="efficientnet_lite0"):
        fit(dataset / "train/good", backbone="efficientnet_light0")
    with pytest.raises(TypeError, match="unknown argument 'epochs'; known: backbone, image_size"):
        fit(dataset / "train/good", epochs=3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there_is_one_line(dataset: Path) -> None:
    with pytest.raises(ValueError, match="device 'cuda' is not available here; use 'auto' or 'cpu'"):
        fit(dataset / "train/good", device="cuda")


# Real images ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # test_finds_what_is_not_good asserts the same of a tiny data set
def test_hazelnuts(real_images: Path) -> None:
    root = real_images / "hazelnut_toy"
    settings = TrainingSettings(epochs=8)  # half the default's, for the time it takes
    fitted = Detector.fit(root / "train/good", image_size=256, settings=settings, device="cpu", progress=False)
    evaluation = evaluate_predictor(fitted, find_categories(root)[0])
    assert evaluation.pixel_auroc >= 0.95
    assert evaluation.image_auroc >= 0.95
    assert evaluation.miou > 0.3
    assert evaluation.flagged["colour"]["share"] >= 0.9


def test_two_trainings_on_one_state_are_refused_at_once(tmp_path: Path) -> None:
    with only_one(tmp_path / "m.state.lock", "the first"), pytest.raises(RuntimeError, match="is at work already"):
        Detector.fit("not even looked for", state_file=tmp_path / "m.state")
    with pytest.raises(FileNotFoundError):  # the first has ended
        Detector.fit("not there", state_file=tmp_path / "m.state")
    assert list(tmp_path.iterdir()) == []


def test_torchs_default_dtype_changes_nothing(detector: Detector, dataset: Path, tmp_path: Path) -> None:
    detector.save(tmp_path / "model.uflow")
    settings = TrainingSettings(epochs=1, augment=False, memory_size=20)
    options = {"image_size": 64, "flow_steps": 1, "settings": settings, "alpha": 0.3}
    found = []
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            loaded = uflow.load(tmp_path / "model.uflow", device="cpu")
            fitted = Detector.fit(dataset / "test/good", **options, device="cpu", progress=False)
            found.append([each.predict(dataset / "test/square/00.png") for each in (loaded, fitted)])
        finally:
            torch.set_default_dtype(torch.float32)
    for single, double in zip(*found, strict=True):
        np.testing.assert_array_equal(single.anomaly_map, double.anomaly_map)
        np.testing.assert_array_equal(single.log_nfa, double.log_nfa)
