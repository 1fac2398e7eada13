"""What a model file or an exported folder says of itself, without being loaded; `uflow info`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import call_command, one_line
from made_nets import weights_file
from uflow import backbones, cli, model_file
from uflow.deploy import exported
from uflow.deploy.describe import describe_model
from uflow.detector import Detector
from uflow.files import sha256
from uflow.flow import UFlow
from uflow.model_header import read_header
from uflow.network import TorchNetwork
from uflow.pages.facts import model_facts
from uflow.published_weights import PUBLISHED, describe_licence
from uflow.recipe import Recipe
from uflow.scoring import Evidence
from uflow.threshold import CalibratedThreshold

IMAGES = 37
RECORDS_LICENCES = (1, 0, 31)  # a version of timm


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    """Never trained, but it says so of itself; calibrated on the evidence of 9 images that never were."""
    weights = weights_file(tmp_path_factory.mktemp("describe"), "resnet18")
    net = backbones.create_backbone("resnet18", (64, 96), strides=(4, 8), weights=weights)
    detector = Detector(TorchNetwork(net, UFlow(net.channels, net.sizes, steps=1, affine=True), device="cpu"))
    recipe = Recipe("resnet18", (64, 96), strides=(4, 8), hold_out="groups", alpha=0.2)
    detector.record = {**recipe.to_dict(), "weights_sha256": net.weights_sha256, "images": f"{IMAGES} {'0' * 64}"}
    rng = np.random.default_rng(0)
    evidence = [Evidence([rng.chisquare(20, (1, 6, 6)).astype(np.float32)], []) for _ in range(9)]
    detector.predictor.threshold = CalibratedThreshold.from_good_images(evidence, alpha=0.2)
    return detector


@pytest.fixture
def model(made: Detector, tmp_path: Path) -> Path:
    made.save(tmp_path / "made.uflow")
    return tmp_path / "made.uflow"


@pytest.fixture
def folder(made: Detector, tmp_path: Path) -> Path:
    """What `export` writes beside the network, and a network that is none: nothing here runs it."""
    from uflow.deploy.export import _metadata

    (tmp_path / "made_onnx").mkdir()
    (tmp_path / "made_onnx/network.onnx").write_bytes(b"not run here")
    metadata = _metadata(made, tmp_path / "made_onnx", "onnx", ["energy_0", "energy_1", "anomaly_map"], None, False)
    exported.write_metadata(tmp_path / "made_onnx", metadata)
    return tmp_path / "made_onnx"


COMMON = {
    "backbone": "resnet18",
    "weights_source": "file resnet18-0.safetensors",
    "weights_licence": "not known (file resnet18-0.safetensors); of the published ones: Apache-2.0",
    "image_size": [64, 96],
    "strides": [4, 8],
    "tile": False,
    "gain": 1,
    "images": IMAGES,
    "hold_out": "groups",
    "held_out": 0.15,
    "alpha": 0.2,
    "calibration": {"images": 9, "supported_alpha": 0.1, "added": []},
    "selected_on_test": False,
}


def test_of_a_model_file(model: Path) -> None:
    about = describe_model(model)
    assert {name: about[name] for name in COMMON} == COMMON
    assert (about["kind"], about["path"]) == ("model file", str(model))
    assert (about["bytes"], about["sha256"]) == (model.stat().st_size, sha256(model))


def test_of_an_exported_folder(folder: Path) -> None:
    about = describe_model(folder)
    assert {name: about[name] for name in COMMON} == COMMON
    assert (about["kind"], about["format"], about["int8"]) == ("exported folder", "onnx", False)
    assert about["sha256"] == sha256(folder / "model.json")
    (folder / "network.onnx").write_bytes(b"another")
    with pytest.raises(ValueError, match=r"network\.onnx was changed or cut short"):
        describe_model(folder)


def test_of_a_folder_that_does_not_say_what_it_learnt_from(folder: Path) -> None:
    metadata = json.loads((folder / "model.json").read_text())
    del metadata["backbone"]["weights_source"]
    metadata["record"] = {}
    exported.write_metadata(folder, metadata)
    about = describe_model(folder)
    assert (about["images"], about["hold_out"], about["weights_source"]) == (None, None, None)
    assert about["weights_licence"] == "not known (source not recorded); of the published ones: Apache-2.0"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"images": None}, "record: images should be a text, found None"),
        ({"images": "many"}, "record: images should be how many and their SHA-256, found 'many'"),
        ({"hold_out": 3}, "record: hold_out should be a text, found 3"),
        ({"settings": []}, r"record: settings should be an object, found \[\]"),
        ({"settings": {"a\nb": float("1e400")}}, "should be a finite number|is no JSON|not JSON compliant"),
    ],
)
def test_a_record_that_somebody_made_up_is_one_line(
    record: dict[str, Any], message: str, made: Detector, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save() -> None:
        monkeypatch.setattr(made, "record", record)
        made.save(tmp_path / "made.uflow")
        describe_model(tmp_path / "made.uflow")

    def write() -> None:
        exported.write_metadata(folder, json.loads((folder / "model.json").read_text()) | {"record": record})
        describe_model(folder)

    for read in (save, write):
        with pytest.raises(ValueError, match=message) as error:
            read()
        one_line(error)


def test_the_name_of_an_entry_does_not_break_the_line(folder: Path) -> None:
    metadata = json.loads((folder / "model.json").read_text())
    exported.write_metadata(folder, metadata | {"backbone": metadata["backbone"] | {"a\nb": 3}})
    with pytest.raises(ValueError, match=r"backbone: a\\nb should be a text, found 3") as error:
        describe_model(folder)
    one_line(error)


def test_another_gain_is_said(
    made: Detector, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made.predictor, "gain", 1.3)
    made.save(tmp_path / "m.uflow")
    assert describe_model(tmp_path / "m.uflow")["gain"] == 1.3
    assert "1.3: pixel values are divided by it" in call_command(monkeypatch, capsys, "info", tmp_path / "m.uflow")[1]
    assert ("Gain", "1.3: pixel values are divided by it") in model_facts("m", made.predictor, made.record)[0].entries


def test_of_the_papers_test(made: Detector, tmp_path: Path) -> None:
    Detector(made.network).save(tmp_path / "paper.uflow")
    about = describe_model(tmp_path / "paper.uflow")
    assert (about["alpha"], about["calibration"], about["images"]) == (None, None, None)


def test_it_needs_no_torch(model: Path, folder: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'timm', 'safetensors', 'matplotlib', 'huggingface_hub'): sys.modules[name] = None\n"
        "from uflow.cli import main\n"
        f"for path in ({str(model)!r}, {str(folder)!r}):\n"
        "    sys.argv = ['uflow', 'info', path, '--json']\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as end:\n"
        "        assert not end.code\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [json.loads(line)["images"] for line in done.stdout.splitlines()] == [IMAGES, IMAGES]


def test_a_header_read_alone_is_that_of_the_whole_file(model: Path) -> None:
    assert read_header(model) == model_file.load_model(model)[1]


def cut_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def cut_tensors(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def text(path: Path) -> None:
    path.write_text("a text that is longer than a length")


def other_safetensors(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, path)


def other_kind(path: Path) -> None:
    model_file._save(path, "training state", {"a": torch.zeros(2)}, {})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "there is no model file"),
        (cut_header, "is not a uflow model file, or was cut short"),
        (cut_tensors, "was cut short: it has"),
        (text, "is not a uflow model file, or was cut short"),
        (lambda path: path.write_bytes(b""), "is not a uflow model file, or was cut short"),
        (other_safetensors, "its header has no 'uflow' entry, and it holds 'a'"),
        (other_kind, "is a uflow training state file, where a model file is expected"),
    ],
)
def test_what_is_no_model(model: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(model)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        describe_model(model)
    assert str(model) in one_line(error)


def test_licences_are_those_that_timm_records() -> None:
    import timm

    version = tuple(map(int, timm.__version__.split(".")[:3]))
    for name, nets in PUBLISHED.items():
        assert tuple(net.arch for net in nets) == backbones.list_nets(name)
        for net in nets:
            recorded = timm.get_pretrained_cfg(net.arch).license
            if recorded is not None or version >= RECORDS_LICENCES:  # older ones record none
                assert recorded.lower() == net.licence.lower()
            tensors = backbones._skeleton(net.arch).state_dict().values()
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            assert size / 1e6 == pytest.approx(net.megabytes, rel=0.02)
    assert list(PUBLISHED) == backbones.list_backbones()


def test_a_licence_is_known_of_published_weights_alone() -> None:
    assert describe_licence("mcait", "hub a/b/model.safetensors + torch.hub cache S24_224.pth") == "Apache-2.0"
    assert describe_licence("mcait", "hub a/b/model.safetensors + file mine.pth").startswith("not known")
    assert describe_licence("convnext_tiny", "hub timm/convnext_tiny/model.safetensors") == "not known"


@pytest.mark.parametrize("name", ["made.uflow", "made_onnx"])
@pytest.mark.usefixtures("model", "folder")
def test_the_table(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["uflow", "info", name])
    with pytest.raises(SystemExit):
        cli.main()
    out = capsys.readouterr().out
    for words in (
        "64 x 96 (height x width)",
        f"{IMAGES} images, held out: groups (asked for: 0.15 of them)",
        "9 good images, which support alpha >= 0.1",
        "licence of weights  not known (file",
        sha256(tmp_path / name if name.endswith("uflow") else tmp_path / name / "model.json"),
    ):
        assert words in out
