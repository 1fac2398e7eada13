"""Training looked on at, epoch by epoch; models of Hugging Face's hub, their card, all without internet."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import uflow
from conftest import one_line
from uflow import hub
from uflow.threshold import PaperThreshold
from uflow.training import TrainingSettings

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parent.parent
QUICK: dict[str, Any] = {
    "image_size": 64,
    "device": "cpu",
    "progress": False,
    "settings": TrainingSettings(epochs=2, batch_size=8, memory_size=20),
    "alpha": 0.2,  # which the four images held out promise
}


def few_images(dataset: Path) -> list[Path]:
    return sorted((dataset / "train/good").glob("*.png"))[:12]


# Epochs ---------------------------------------------------------------------------------------------------------------


def test_every_epoch_of_every_flow_is_told(dataset: Path) -> None:
    told: list[tuple[str, Mapping[str, Any]]] = []
    recipe = QUICK | {"alpha": 0.15}  # more than the images held out promise: a further flow
    detector = uflow.Detector.fit(few_images(dataset), on_epoch=lambda *seen: told.append(seen), **recipe)
    flows = [flow for flow, _ in told]
    assert list(dict.fromkeys(flows)) == ["first", "augmented", "fold1"]
    assert all(flows.count(flow) == 2 for flow in flows)
    assert [epoch["epoch"] for _, epoch in told] == [1, 2] * 3
    assert detector.history in ([e for f, e in told if f == name] for name in ("first", "augmented"))


def test_what_looks_on_may_end_the_training_and_nothing_is_lost(dataset: Path, tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def stop(flow: str, epoch: Mapping[str, Any]) -> None:
        told.append((flow, epoch["epoch"]))
        if len(told) == 1:
            raise Enough

    told: list[tuple[str, int]] = []
    settings = TrainingSettings(epochs=3, batch_size=8, memory_size=0, augment=False)
    recipe = QUICK | {"settings": settings, "state_file": tmp_path / "state", "on_epoch": stop, "alpha": 0.5}
    with pytest.raises(Enough):
        uflow.Detector.fit(few_images(dataset), **recipe)
    uflow.Detector.fit(few_images(dataset), **recipe)
    assert told == [("first", 1), ("first", 2), ("first", 3)]  # the first epoch was saved before it was told


@pytest.fixture
def mlflow_logger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The example, and MLflow writing files."""
    mlflow = pytest.importorskip("mlflow", reason="needs MLflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    spec = importlib.util.spec_from_file_location("mlflow_logger", ROOT / "examples/mlflow_logger.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_mlflow_has_the_figures_and_the_model(mlflow_logger: ModuleType, dataset: Path, tmp_path: Path) -> None:
    recipe = QUICK | {"settings": TrainingSettings(epochs=2, batch_size=8, memory_size=0, augment=False)}
    mlflow_logger.train(few_images(dataset), tmp_path / "tile.uflow", **recipe)
    client = mlflow_logger.mlflow.MlflowClient()
    (run,) = client.search_runs(["0"])
    detector = uflow.load(tmp_path / "tile.uflow", device="cpu")
    logged = client.get_metric_history(run.info.run_id, "first.held_out_nll")
    assert [(m.step, m.value) for m in logged] == [(e["epoch"], e["held_out_nll"]) for e in detector.history]
    assert (run.data.params["backbone"], run.data.params["alpha"]) == ("efficientnet_lite0", "0.2")
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["tile.uflow"]


# The hub --------------------------------------------------------------------------------------------------------------


class FakeHub:
    """Keeps what is uploaded in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, []

    def __call__(self, token: str | None) -> FakeHub:
        self.calls.append(("token", token))
        return self

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        self.calls.append((repo_id, private, exist_ok))

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> str:
        shutil.copytree(folder_path, self.folder)
        return f"https://huggingface.co/{repo_id}/commit/1"


def test_there_and_back(
    detector: uflow.Detector, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uploaded, then read by huggingface_hub itself from its cache, which needs no connection."""
    import huggingface_hub
    from huggingface_hub import constants

    revision = 40 * "a"
    cache = tmp_path / "hub/models--somebody--grating"
    fake = FakeHub(cache / "snapshots" / revision)
    monkeypatch.setattr(huggingface_hub, "HfApi", fake)
    origin = detector.predictor.origin
    address = detector.push_to_hub("somebody/grating", token="secret")
    detector.predictor.origin = origin  # others share this detector
    assert address == "https://huggingface.co/somebody/grating/commit/1"
    assert fake.calls == [("token", "secret"), ("somebody/grating", True, True)]

    (cache / "refs").mkdir()
    (cache / "refs/main").write_text(revision)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for again in (
        uflow.Detector.from_pretrained("somebody/grating", device="cpu"),
        uflow.Detector.from_pretrained("somebody/grating", revision=revision, device="cpu"),
        uflow.Detector.from_pretrained(fake.folder, device="cpu"),
    ):
        part = dataset / "test/square/00.png"
        assert again.threshold == detector.threshold
        assert (again.predict(part).mask == detector.predict(part).mask).all()


def test_the_card_says_what_the_model_knows(detector: uflow.Detector, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    origin = detector.predictor.origin
    detector.save_pretrained(tmp_path / "grating")
    detector.predictor.origin = origin
    assert {path.name for path in (tmp_path / "grating").iterdir()} == {hub.MODEL, hub.CARD}
    card = ModelCard.load(tmp_path / "grating" / hub.CARD)
    assert card.data.library_name == "uflow"
    count = len(detector.threshold.minima)
    for text in (
        "# grating\n",
        "| backbone | efficientnet_lite0 |",
        "| learnt from | 30 good images, SHA-256 of them ",
        "| licence of its weights | ",
        "| alpha | 0.2 |",
        f"| calibrated on | {count} good images, which support alpha >= {1 / (count + 1):.3g} |",
        "at most a share of 0.2 is flagged",
        'uflow.Detector.from_pretrained("grating")',
        f"| training | {len(detector.history)} epochs, ",
    ):
        assert text in card.text or text in card.content, text
    assert "None" not in card.content


def test_a_card_promises_nothing_that_is_not_so(detector: uflow.Detector) -> None:
    import copy

    other = copy.copy(detector)
    other.predictor, other.record = copy.copy(detector.predictor), {}
    other.predictor.threshold, other.predictor.selected_on_test = PaperThreshold(), True
    card = hub.model_card(other, "somebody/grating")
    for text in (
        "| learnt from | not recorded |",
        "| alpha | none: the paper's test, not calibrated |",
        "is flagged is not promised",
        "chosen on the test set",
    ):
        assert text in card
    few = hub.model_card(detector.at(0.001), "somebody/grating")
    assert f"at most a share of {1 / (1 + len(detector.threshold.minima)):.3g} is flagged" in few


def test_what_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name, message in (
        (tmp_path, "holds no model.uflow"),
        ("somebody/nothing", "no model that the hub gives"),
        ("not a name/of/the hub", "no model that the hub gives"),
    ):
        with pytest.raises(FileNotFoundError, match=message) as error:
            uflow.Detector.from_pretrained(name)
        one_line(error)
