"""Inside anomalib: the calibrated post-processor and our U-Flow through `Engine`, exports, checkpoints, inferencers.

Two models are fitted on the tiny data set; the tests share them.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from conftest import one_line
from uflow import segmentation
from uflow.files import sha256
from uflow.threshold import PaperThreshold

pytest.importorskip("anomalib", reason='needs anomalib: pip install "uflow-ad[compare]"')
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_thread")]  # anomalib's and Lightning's

ALPHA = 0.2


@pytest.fixture(scope="module")
def interop() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from uflow.interop import anomalib, anomalib_post_processor

    return SimpleNamespace(
        CalibratedPostProcessor=anomalib.CalibratedPostProcessor,
        Inferencer=anomalib.Inferencer,
        UFlow=anomalib.UFlow,
        check_version=anomalib_post_processor.check_version,
        scale=anomalib_post_processor._scale,
    )


@pytest.fixture(scope="module")
def folder(dataset: Path, interop: Any) -> Callable[..., Any]:
    """anomalib's data module of the tiny data set; half of the good training images are kept to validate on."""
    from anomalib.data import Folder

    def make(val_split_mode: str = "from_train") -> Any:
        return Folder(
            "grating",
            root=dataset,
            normal_dir="train/good",
            abnormal_dir="test/square",
            mask_dir="ground_truth/square",
            normal_test_dir="test/good",
            val_split_mode=val_split_mode,
            val_split_ratio=0.5,
            num_workers=0,
            train_batch_size=5,
            eval_batch_size=5,
            seed=1,
        )

    return make


def engine(folder: Path, epochs: int = 1) -> Any:
    from anomalib.engine import Engine

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "barebones": False}
    return Engine(accelerator="cpu", devices=1, default_root_dir=folder, max_epochs=epochs, **quiet)


def padim(post_processor: Any) -> Any:
    """PaDiM on a small net with random weights."""
    from anomalib.models import Padim
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms.v2 import Resize

    torch.manual_seed(0)
    return Padim(
        "resnet18",
        layers=["layer1"],
        pre_trained=False,
        n_features=20,
        pre_processor=PreProcessor(Resize((64, 64))),
        post_processor=post_processor,
        visualizer=False,
    )


@pytest.fixture(scope="module")
def fitted(interop: Any, folder: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """PaDiM with our post-processor, its engine, and what it says of the test images."""
    home = tmp_path_factory.mktemp("padim")
    model, runner = padim(interop.CalibratedPostProcessor(ALPHA, look_alpha=0.4)), engine(home)
    runner.fit(model, datamodule=folder())
    (figures,) = runner.test(model, datamodule=folder())
    batches = runner.predict(model, datamodule=folder())
    return SimpleNamespace(model=model.eval(), engine=runner, figures=figures, batches=batches, home=home)


@pytest.fixture(scope="module")
def flow(interop: Any, folder: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Our U-Flow after three epochs, and what it says of the test images."""
    home = tmp_path_factory.mktemp("flow")
    torch.manual_seed(0)
    model = interop.UFlow(image_size=64, flow_steps=2, alpha=ALPHA, visualizer=False)
    runner = engine(home, epochs=3)
    runner.fit(model, datamodule=folder())
    (figures,) = runner.test(model, datamodule=folder())
    batches = runner.predict(model, datamodule=folder())
    return SimpleNamespace(model=model.eval(), figures=figures, batches=batches, home=home)


def images(dataset: Path) -> torch.Tensor:
    """All test images as exported models take them: (8, 3, 80, 96) in [0, 1]."""
    from uflow.images import read_image

    paths = sorted((dataset / "test").rglob("*.png"))
    return torch.from_numpy(np.stack([read_image(path) for path in paths])).permute(0, 3, 1, 2).float() / 255


# The post-processor ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", ["fitted", "flow"])
def test_predictions_carry_mask_label_and_p_value(made: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(made)
    count = len(found.model.post_processor.threshold.minima)
    assert count == 15  # good training images that were kept out
    seen = 0
    for batch in found.batches:
        assert batch.pred_mask.shape == batch.anomaly_map.shape == (len(batch.image), 64, 64)
        assert batch.pred_label.tolist() == batch.pred_mask.flatten(1).any(1).tolist()
        assert batch.pred_label.tolist() == (batch.p_value <= ALPHA).tolist()
        assert batch.pred_label.tolist() == [verdict == "reject" for verdict in batch.verdict]
        assert batch.pred_label[batch.gt_label].all()  # the squares are easy
        assert (batch.p_value >= 1 / (count + 1) - 1e-6).all()
        assert 0 <= batch.anomaly_map.min() <= batch.anomaly_map.max() <= 1
        seen += len(batch.image)
    assert seen == 8
    assert found.figures["image_AUROC"] == 1
    assert found.figures["pixel_AUROC"] > 0.9


def test_the_threshold_is_that_of_the_models_maps(fitted: Any, interop: Any, dataset: Path) -> None:
    """The mask is `Threshold.apply` of the map as the model makes it; maps between 0 and 1 keep their order."""
    model = fitted.model
    with torch.no_grad():
        raw = model.model(model.pre_processor(images(dataset)))
        found = model(images(dataset))
    threshold = model.post_processor.threshold
    for index, values in enumerate(raw.anomaly_map[:, 0].numpy()):
        own = threshold.apply(values)
        assert (own.mask == found.pred_mask[index, 0].numpy()).all()
        assert own.is_anomalous == bool(found.pred_label[index])
        order = np.argsort(values, axis=None)
        assert (np.diff(found.anomaly_map[index].numpy().ravel()[order]) >= -1e-6).all()
    usual, limit = model.post_processor._map_levels
    scaled = interop.scale(torch.tensor([usual, limit]), usual, limit)
    assert scaled.tolist() == pytest.approx([0.125, 0.5])


def test_a_checkpoint_holds_the_threshold(fitted: Any, interop: Any) -> None:
    from anomalib.models import Padim

    path, own = fitted.home / "model.ckpt", fitted.model.post_processor
    fitted.engine.trainer.save_checkpoint(path)
    again = interop.CalibratedPostProcessor()
    Padim.load_from_checkpoint(path, pre_trained=False, post_processor=again, visualizer=False)
    assert again.threshold == own.threshold
    assert (again.alpha, again._map_levels, again._score_levels) == (ALPHA, own._map_levels, own._score_levels)
    with pytest.raises(RuntimeError, match=r"post_processor\._extra_state"):  # never lost without a word
        Padim.load_from_checkpoint(path, pre_trained=False, visualizer=False)


def test_it_survives_the_export_of_torch(fitted: Any, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anomalib.deploy import TorchInferencer

    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    path = fitted.model.to_torch(fitted.home)
    found = TorchInferencer(path, device="cpu").predict(images(dataset))
    with torch.no_grad():
        own = fitted.model(images(dataset))
    assert (found.pred_mask == own.pred_mask[:, 0]).all()
    assert (found.pred_label == own.pred_label).all()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_in_a_graph_alpha_is_kept_and_one_line_gives_the_mask(
    fitted: Any, dataset: Path, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip(runtime)
    monkeypatch.chdir(fitted.home)  # OpenVINO's cache
    model, batch = fitted.model, images(dataset)
    path = fitted.home / "weights/onnx/model.onnx"
    if not path.exists():
        model.to_onnx(fitted.home, input_size=(80, 96), opset_version=18)
    names = ["pred_score", "pred_label", "anomaly_map", "pred_mask"]
    if runtime == "onnxruntime":
        import onnxruntime

        found = dict(zip(names, onnxruntime.InferenceSession(path).run(names, {"input": batch.numpy()}), strict=True))
    else:
        from anomalib.deploy import OpenVINOInferencer

        answer = OpenVINOInferencer(path, device="CPU").predict(batch)
        found = {name: getattr(answer, name) for name in names}
    limit, threshold = model.post_processor._map_levels[1], model.post_processor.threshold
    maps = found["anomaly_map"].reshape(len(batch), 64, 64)
    assert (found["pred_mask"].reshape(maps.shape) == (maps > limit)).all()
    assert (found["pred_label"].ravel() == (maps > limit).any(axis=(1, 2))).all()
    with torch.no_grad():
        own = model(batch)
    for values, mask in zip(maps, own.pred_mask[:, 0].numpy(), strict=True):
        assert (threshold.apply(values).mask != mask).mean() < 0.05  # the graph resizes otherwise


def test_a_limit_of_the_largest_value_keeps_alpha_too(interop: Any) -> None:
    post = interop.CalibratedPostProcessor(alpha=0.2)
    rng = np.random.default_rng(0)
    shares = [(rng.random(50) > post._limit(rng.random(19))).mean() for _ in range(200)]
    assert 0.15 < np.mean(shares) <= 0.2 + 0.02


def test_validating_on_the_test_set_is_said(
    fitted: Any, interop: Any, folder: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    again, kept = interop.CalibratedPostProcessor(alpha=0.05), fitted.model.post_processor
    fitted.model.post_processor = again
    try:
        with caplog.at_level(logging.WARNING, "uflow"):
            engine(tmp_path).validate(fitted.model, datamodule=folder("same_as_test"))
    finally:
        fitted.model.post_processor = kept
    assert len(again.threshold.minima) == 4  # the defective ones have no part
    (fair, few) = [record.getMessage() for record in caplog.records if record.name == "uflow"]
    assert "come from the test set" in fair
    assert (
        few
        == "4 good validation images support alpha >= 0.2, not 0.05: of good images up to a share of 0.2 may be flagged"
    )


def test_what_cannot_be_judged_is_one_line(interop: Any) -> None:
    from anomalib.data import InferenceBatch

    post = interop.CalibratedPostProcessor()
    with pytest.raises(ValueError, match="not calibrated: run Engine") as error:
        post(InferenceBatch(anomaly_map=torch.zeros(1, 1, 4, 4)))
    one_line(error)
    with pytest.raises(ValueError, match="gives no anomaly maps") as error:
        post(InferenceBatch(pred_score=torch.zeros(1)))
    one_line(error)
    with pytest.raises(ValueError, match="alpha"):
        interop.CalibratedPostProcessor(alpha=2.0)
    trainer: Any = SimpleNamespace(sanity_checking=False, world_size=2)
    with pytest.raises(RuntimeError, match="in one process") as failure:
        post.on_validation_batch_end(trainer, None, None)
    one_line(failure)
    trainer.world_size = 1
    with pytest.raises(ValueError, match="have no labels"):
        post.on_validation_batch_end(trainer, None, SimpleNamespace(gt_label=None))


@pytest.mark.parametrize(("version", "refused"), [("1.2.0", True), ("2.6.1", True), ("2.7.3", False), ("2.8", False)])
def test_other_versions_of_anomalib(
    interop: Any, version: str, refused: bool, caplog: pytest.LogCaptureFixture
) -> None:
    if refused:
        with pytest.raises(ImportError, match=rf"made for anomalib 2\.7, not {version}: pip install") as error:
            interop.check_version(version)
        one_line(error)
    else:
        interop.check_version(version)
        assert [record.levelname for record in caplog.records] == (["WARNING"] if version == "2.8" else [])


# U-Flow ---------------------------------------------------------------------------------------------------------------


def test_the_mask_is_log_nfa_of_the_latents(flow: Any, dataset: Path) -> None:
    model = flow.model.eval()
    with torch.no_grad():
        pixels = model.pre_processor(images(dataset))
        latents, _ = model.model.flow(model.model.backbone.normalised(model.model.backbone(pixels)))
        found = model(images(dataset))
        learnt, model.post_processor.threshold = model.post_processor.threshold, PaperThreshold()
        by_paper = model(images(dataset))
        model.post_processor.threshold = learnt
    energies = segmentation.energies(latents)
    evidence = model.model(pixels).evidence
    assert all((a == b).all() for a, b in zip(energies, evidence.energies, strict=True))
    own = learnt.log_nfa(evidence, model.model.flow.latent_channels, 64)
    assert ((own < 0) == found.pred_mask[:, 0].numpy()).all()
    paper = segmentation.log_nfa(latents, size=64)
    assert ((paper < 0) == by_paper.pred_mask[:, 0].numpy()).all()


def test_it_becomes_a_detector_of_ours(flow: Any, interop: Any, dataset: Path) -> None:
    import uflow

    path = flow.home / "tile.uflow"
    flow.model.to_detector().save(path)
    detector = uflow.load(path, device="cpu")
    assert detector.threshold == flow.model.post_processor.threshold
    paths = sorted((dataset / "test").rglob("*.png"))
    labels = {
        Path(name).as_posix(): bool(label)
        for b in flow.batches
        for name, label in zip(b.image_path, b.pred_label, strict=True)
    }
    own = {result.path.as_posix(): result.is_anomalous for result in detector.stream(paths)}
    assert own.keys() == labels.keys()
    assert sum(own[name] != label for name, label in labels.items()) <= 1  # Pillow resizes a little otherwise

    inferencer = interop.Inferencer(path, device="cpu")
    found, expected = inferencer.predict(paths[0]), detector.predict(paths[0])
    assert (found.pred_mask[0].numpy() == expected.mask).all()
    assert float(found.p_value) == pytest.approx(expected.p_value)
    assert (found.image_path, found.verdict) == ([str(paths[0])], [expected.verdict])
    again = inferencer.predict(found.image[0])  # the same image as a tensor
    assert (again.anomaly_map == found.anomaly_map).all()
    assert sha256(path) == detector.predictor.origin.sha256
