"""Exported folders: what they compute equals the detector, with and without torch; what is refused, and how."""

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import uflow
from conftest import texture
from uflow import backbones
from uflow.deploy import exported as runtime
from uflow.deploy import runtimes
from uflow.deploy.export import export
from uflow.deploy.exported import save_threshold
from uflow.detector import Detector
from uflow.evaluate.datasets import find_categories
from uflow.evaluate.evaluation import evaluate_predictor
from uflow.files import sha256
from uflow.flow import UFlow
from uflow.images import list_images, read_image, resize_image
from uflow.network import TorchNetwork
from uflow.prediction import Prediction
from uflow.predictor import Predictor
from uflow.scoring import Evidence
from uflow.threshold import PaperThreshold

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The detector as ONNX; tests must not change it."""
    path = tmp_path_factory.mktemp("export") / "onnx"
    export(detector, path)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    """Two scales, one step each, few layers with random weights, the paper's test: quick to export."""
    weights = tmp_path_factory.mktemp("small") / "resnet18.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("resnet18").state_dict(), weights)
    net = backbones.create_backbone("resnet18", 64, strides=(4, 8), weights=weights)
    return Detector(TorchNetwork(net, UFlow(net.channels, net.sizes, steps=1, affine=True), device="cpu"))


@pytest.fixture(scope="module")
def images(dataset: Path) -> list[np.ndarray]:
    return [read_image(path) for path in list_images(dataset / "test")]


def same(found: list[Prediction], wanted: list[Prediction]) -> None:
    """Maps equal to 1e-3, the same decisions; a pixel that an outline goes through may lie on either side of it."""
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a.anomaly_map, b.anomaly_map, rtol=0, atol=1e-3)
        alike = a.mask == b.mask
        np.testing.assert_allclose(a.log_nfa[alike], b.log_nfa[alike], rtol=1e-3, atol=1e-2)
        assert a.is_anomalous == b.is_anomalous
        assert (a.mask != b.mask).mean() < 1e-3
        assert [r.box for r in a.regions] == [r.box for r in b.regions]


def changed(folder: Path, to: Path, **metadata: Any) -> Path:
    """A copy of an export with other entries in its model.json."""
    shutil.copytree(folder, to)
    content = json.loads((to / "model.json").read_text())
    runtime.write_metadata(to, {**content, **metadata})
    return to


def papers(detector: Detector, **options: Any) -> Predictor:
    """The same network, judged by the paper's test."""
    return Predictor(detector.network, PaperThreshold(), detector.predictor.blend, **options)


# Equal to torch -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_predictions_equal_torch(
    name: str, batch_size: int, folder: Path, detector: Detector, images: list[np.ndarray]
) -> None:
    exported = runtime.load(folder, name, threads=1)
    assert exported.network.runtime == name
    wanted = list(detector.predict(images))
    assert {p.is_anomalous for p in wanted} == {True, False}
    same(list(exported.predict(images, batch_size)), wanted)
    batch = np.stack([resize_image(image, detector.network.image_size) for image in images])[:batch_size]
    found, own = exported.network.evidence(batch), detector.network.evidence(batch)
    assert len(found.distances) == len(own.distances) > 0
    for a, b in zip(found.maps, own.maps, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3)


def test_tiles_and_the_papers_test_equal_torch(
    folder: Path, detector: Detector, images: list[np.ndarray], tmp_path: Path
) -> None:
    large = [np.tile(image, (3, 3, 1)) for image in images[::3]]
    tiled = papers(detector, tile=True)
    exported = runtime.load(changed(folder, tmp_path / "tiled", predictor=tiled.to_dict()))
    assert exported.tile
    same(list(exported.predict(large)), list(tiled.predict(large)))


def test_calibration_is_kept(folder: Path, detector: Detector, dataset: Path, tmp_path: Path) -> None:
    exported = runtime.load(changed(folder, tmp_path / "copy"))
    assert exported.to_dict() == detector.predictor.to_dict()
    same(list(exported.predict(dataset / "test")), list(detector.predict(dataset / "test")))
    exported.calibrate([])
    assert runtime.load(tmp_path / "copy").threshold == detector.threshold  # not yet saved
    save_threshold(exported)
    again = uflow.load(tmp_path / "copy")
    assert again.threshold == PaperThreshold()
    same(list(again.predict(dataset / "test")), list(papers(detector).predict(dataset / "test")))
    own = papers(detector)
    rng = np.random.default_rng(1)
    unseen = [texture(rng) for _ in range(12)]
    own.calibrate(unseen, alpha=0.1)
    again.calibrate(unseen, alpha=0.1)
    assert again.threshold.shift == pytest.approx(own.threshold.shift, abs=1e-2)


def test_another_alpha_and_flagged_images_need_no_torch(folder: Path, dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    predictor, path = runtime.load(tmp_path / "model"), list_images(dataset / "test/square")[0]
    before = predictor.predict(path)
    assert (before.verdict, predictor.at(0.3, 0.5).predict(path).p_value) == ("reject", before.p_value)
    predictor.add_good([path])
    save_threshold(predictor)
    again = runtime.load(tmp_path / "model")
    assert [image.sha256 for image in again.threshold.added] == [sha256(path)]
    after = again.predict(path)
    assert after.p_value > before.p_value
    np.testing.assert_array_equal(after.anomaly_map, before.anomaly_map)  # the memory is in the network


def test_only_exported_models_have_a_folder_for_their_threshold(detector: Detector) -> None:
    with pytest.raises(TypeError, match="only an exported model has a folder to write to, not a TorchNetwork"):
        save_threshold(detector.predictor)


def test_parts_of_an_exported_network(folder: Path, images: list[np.ndarray]) -> None:
    network = runtime.load(folder).network
    ((name, part),) = network.phases()
    batch = np.stack([resize_image(images[0], network.image_size)])
    assert name == "network"
    for a, b in zip(part(batch).maps, network.evidence(batch).maps, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_the_network_takes_and_gives(folder: Path, detector: Detector, images: list[np.ndarray]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(folder / "network.onnx")
    (image,) = session.get_inputs()
    assert (image.name, image.type, image.shape[1:]) == ("image", "tensor(uint8)", [128, 128, 3])
    assert [o.name for o in session.get_outputs()] == [
        *("energy_0", "energy_1", "energy_2"),
        *("distance_0", "distance_1", "anomaly_map"),
    ]
    batch = np.stack([resize_image(image, (128, 128)) for image in images])
    *energies, anomaly_map = session.run(None, {"image": batch})
    assert [e.shape for e in energies] == [(8, 16, 16), (8, 8, 8), (8, 4, 4), (8, 16, 16), (8, 8, 8)]
    wanted = detector.predictor.blend.anomaly_map(Evidence(energies[:3], energies[3:]), 128)
    assert {x.dtype for x in (anomaly_map, *energies)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(anomaly_map, wanted, atol=1e-4)  # scores near 1 are rounded


def test_what_the_metadata_says(folder: Path, detector: Detector) -> None:
    metadata = json.loads((folder / "model.json").read_text())
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "network.onnx"]
    assert metadata["files"] == {"network.onnx": sha256(folder / "network.onnx")}
    assert metadata["predictor"] == json.loads(json.dumps(detector.predictor.to_dict()))
    assert metadata["backbone"]["weights_sha256"] == detector.network.backbone.weights_sha256
    assert metadata["latent_channels"] == list(detector.network.latent_channels)
    assert (metadata["int8"], metadata["dynamic_size"], metadata["opset"]) == (None, False, 18)


def test_any_size_in_openvino_and_onnx(small: Detector, tmp_path: Path) -> None:
    """Resized in the network: equal to Pillow's but for a grey level here and there; the map has the image's size."""
    image = np.random.default_rng(0).integers(0, 256, (90, 150, 3), np.uint8)
    image = np.array(Image.fromarray(image).resize((160, 128), Image.Resampling.BICUBIC))
    (wanted,) = small.predict([image])
    export(small, tmp_path / "any", "openvino", dynamic_size=True)
    assert sorted(path.name for path in (tmp_path / "any").iterdir()) == ["model.json", "network.bin", "network.xml"]
    exported = runtime.load(tmp_path / "any")
    assert exported.network.runtime == "openvino"
    same(list(exported.predict([image])), [wanted])
    anomaly_map = exported.network.run(np.stack([image, image]))[-1]
    assert anomaly_map.shape == (2, 128, 160)
    np.testing.assert_allclose(anomaly_map[1], wanted.anomaly_map, atol=1e-3)


def test_int8_stays_close(small: Detector, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(6)]
    export(small, tmp_path / "int8", int8=images)
    exported = runtime.load(tmp_path / "int8")
    assert exported.network.metadata["int8"]["images"] == 6
    operators = (tmp_path / "int8/network.onnx").read_bytes()
    assert operators.count(b"QuantizeLinear") > 8
    errors = [
        np.abs(a.anomaly_map - b.anomaly_map).max()
        for a, b in zip(exported.predict(images), small.predict(images), strict=True)
    ]
    assert 1e-6 < max(errors) < 0.02
    assert max(errors) == pytest.approx(exported.network.metadata["int8"]["map_difference"], abs=1e-4)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_mcait(name: str, tiny_mcait: tuple[Detector, Path]) -> None:
    detector, folder = tiny_mcait
    images = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), np.uint8)
    exported = runtime.load(folder, name)
    theirs, ours = exported.network, detector.network
    assert (theirs.strides, theirs.latent_channels) == (ours.strides, ours.latent_channels)
    for found, own in zip(theirs.evidence(images).maps, ours.evidence(images).maps, strict=True):
        np.testing.assert_allclose(found, own, rtol=1e-4)
    same(list(exported.predict(list(images))), list(detector.predict(list(images))))


@pytest.fixture(scope="module")
def tiny_mcait(tmp_path_factory: pytest.TempPathFactory) -> tuple[Detector, Path]:
    """MS-CaiT of smaller nets, 2 blocks and 1, with random weights, and its export."""
    root = tmp_path_factory.mktemp("mcait")
    files = []
    torch.manual_seed(0)
    for arch in ("cait_xxs24_224", "cait_xxs36_224"):
        files.append(root / f"{arch}.safetensors")
        save_file(timm.create_model(arch).state_dict(), files[-1])
    entry = backbones._Entry(("cait_xxs24_224", "cait_xxs36_224"), strides=(16, 32), image_size=224, blocks=(2, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backbones._KNOWN, "mcait", entry)
        net = backbones.create_backbone("mcait", 64, weights=files)
    detector = Detector(TorchNetwork(net, UFlow(net.channels, net.sizes, steps=2), device="cpu"))
    export(detector, root / "onnx")
    return detector, root / "onnx"


def evaluate_alike(exported: Predictor, detector: Detector, root: Path) -> None:
    (test_set,) = find_categories(root)
    own, found = evaluate_predictor(detector, test_set), evaluate_predictor(exported, test_set)
    assert found.flagged == own.flagged
    assert found.pixel_auroc == pytest.approx(own.pixel_auroc, abs=1e-5)


def test_evaluates_like_the_detector(folder: Path, detector: Detector, dataset: Path) -> None:
    evaluate_alike(runtime.load(folder), detector, dataset)


@pytest.mark.slow  # test_predictions_equal_torch and test_evaluates_like_the_detector do it with a tiny data set
def test_real_images(real_images: Path, tmp_path: Path) -> None:
    """hazelnut_toy, two epochs: the same decisions on all of its test images."""
    settings = uflow.training.TrainingSettings(epochs=2)
    root = real_images / "hazelnut_toy"
    options = {"image_size": 128, "strides": (8, 16), "flow_steps": 2, "settings": settings, "alpha": 0.2}
    detector = Detector.fit(root / "train/good", **options, device="cpu", progress=False)
    export(detector, tmp_path / "hazelnut")
    for name in ("onnxruntime", "openvino"):
        exported = runtime.load(tmp_path / "hazelnut", name)
        same(list(exported.predict(root / "test")), list(detector.predict(root / "test")))
        evaluate_alike(exported, detector, root)


def test_is_copied_and_pickled_by_reading_the_folder_again(folder: Path, dataset: Path) -> None:
    model = runtime.load(folder, threads=1)
    model.threshold = model.threshold.at(0.3)
    image = dataset / "test/square/00.png"
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert again.to_dict() == model.to_dict()
        assert (again.network.runtime, again.network.threads) == (model.network.runtime, 1)
        np.testing.assert_array_equal(again.predict(image).anomaly_map, model.predict(image).anomaly_map)


FORKS = """
import os, sys, traceback
from uflow.deploy.exported import load
model = load(sys.argv[1])
if os.fork() == 0:
    for use in (lambda: model.predict(sys.argv[2]), lambda: load(sys.argv[1])):
        try:
            use()
        except RuntimeError as error:
            print(error, flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_forked_process_is_told_that_it_would_wait_for_ever(folder: Path, dataset: Path) -> None:
    code = [sys.executable, "-c", FORKS, folder, dataset / "test/good/00.png"]
    told = subprocess.run(code, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    assert len(told) == 2
    assert all("onnxruntime's threads did not come along: start it by multiprocessing's 'spawn'" in t for t in told)


# Without what it does not need ----------------------------------------------------------------------------------------

WITHOUT = """
import sys
for name in sys.argv[3].split(","):
    sys.modules[name] = None  # importing it fails
import numpy as np
import uflow
from uflow.images import list_images, read_image, resize_image
from uflow.files import sha256
model = uflow.load(sys.argv[1], runtime=sys.argv[4])
(result,) = model.predict([np.load(sys.argv[2])])
np.save(sys.argv[2], result.anomaly_map)
print(model.network.runtime, result.is_anomalous)
"""


def predict_without(modules: str, folder: Path, name: str, image: np.ndarray, tmp_path: Path) -> tuple[str, Any]:
    np.save(tmp_path / "image.npy", image)
    command = [sys.executable, "-W", "error", "-c", WITHOUT, str(folder), str(tmp_path / "image.npy"), modules, name]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return out.strip(), np.load(tmp_path / "image.npy")


SLIM = "torch,torchvision,timm,safetensors,huggingface_hub,typer,rich,matplotlib,scipy,onnx,onnxscript"


@pytest.mark.parametrize(("name", "other"), [("onnxruntime", "openvino"), ("openvino", "onnxruntime")])
def test_predicts_without_torch(
    name: str, other: str, folder: Path, detector: Detector, images: list[np.ndarray], tmp_path: Path
) -> None:
    out, anomaly_map = predict_without(f"{SLIM},{other}", folder, name, images[-1], tmp_path)
    assert out == f"{name} True"
    (wanted,) = detector.predict([images[-1]])
    np.testing.assert_allclose(anomaly_map, wanted.anomaly_map, atol=1e-3)


def test_torch_format_needs_no_backbone(small: Detector, images: list[np.ndarray], tmp_path: Path) -> None:
    export(small, tmp_path / "torch", "torch")
    out, anomaly_map = predict_without(
        "timm,safetensors,onnxruntime,openvino", tmp_path / "torch", "torch", images[0], tmp_path
    )
    assert out == "torch False"
    (wanted,) = small.predict([images[0]])
    np.testing.assert_allclose(anomaly_map, wanted.anomaly_map, atol=1e-3)
    on_cpu = uflow.load(tmp_path / "torch", "cpu", runtime="torch").predict(images[0])
    np.testing.assert_allclose(on_cpu.anomaly_map, wanted.anomaly_map, atol=1e-3)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_the_cpu_by_name(name: str, folder: Path, images: list[np.ndarray]) -> None:
    wanted, found = (uflow.load(folder, device, runtime=name).predict(images[0]) for device in ("auto", "cpu"))
    if not torch.cuda.is_available():
        np.testing.assert_array_equal(found.anomaly_map, wanted.anomaly_map)
    with pytest.raises(ValueError, match=r"a device is a name, .* got 'cuda:9x'"):
        uflow.load(folder, "cuda:9x", runtime=name)
    with pytest.raises(ValueError, match=r"has no device 'hpu' here; it has .*cpu"):
        uflow.load(folder, "hpu", runtime=name)


def test_missing_runtimes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = runtime.importlib.util.find_spec
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: name == "openvino" or None)
    assert runtime.load(folder).network.runtime == "openvino"
    monkeypatch.setattr(runtime.importlib.util, "find_spec", find_spec)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModuleNotFoundError, match=r'^.*onnx needs onnxruntime: pip install "uflow-ad\[onnx\]"$'):
        runtime.load(folder, "onnxruntime")


# What is refused ------------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "damage", "error", "message"),
    [
        ("network.onnx", cut, ValueError, r"network\.onnx was changed or cut short: its SHA-256"),
        ("network.onnx", flip, ValueError, r"network\.onnx was changed or cut short: its SHA-256"),
        ("network.onnx", Path.unlink, FileNotFoundError, r"is incomplete: network\.onnx is missing"),
        ("model.json", cut, ValueError, r"model\.json is not that of an exported model, or was cut short"),
        ("model.json", Path.unlink, FileNotFoundError, r"is not an exported model: it has no model\.json"),
        ("model.json", lambda p: p.write_text("[]"), ValueError, "is not that of an exported model"),
        ("model.json", lambda p: p.write_bytes(b"\xff\xfe"), ValueError, "is not that of an exported model"),
    ],
)
def test_damaged_folders(file: str, damage: Any, error: type, message: str, folder: Path, tmp_path: Path) -> None:
    copy = changed(folder, tmp_path / "copy")
    damage(copy / file)
    with pytest.raises(error, match=message) as raised:
        uflow.load(copy)
    assert "\n" not in str(raised.value)


def test_folders_of_others(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"of version 9, and this uflow reads .* of version 2; export the model again"):
        uflow.load(changed(folder, tmp_path / "newer", version=9))
    with pytest.raises(ValueError, match="unknown format 'tflite'"):
        uflow.load(changed(folder, tmp_path / "tflite", format="tflite"))
    with pytest.raises(ValueError, match=r"holds network\.onnx, which onnxruntime or openvino can run, not 'torch'"):
        uflow.load(folder, runtime="torch")


def test_bad_calls_write_nothing(small: Detector, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    for message, arguments in {
        "unknown export format 'tflite'; known: onnx, openvino, torch": (tmp_path / "new", "tflite"),
        "mine exists and is not an exported model": (tmp_path / "mine",),
        r"notes\.txt exists and is not an exported model": (tmp_path / "mine/notes.txt",),
    }.items():
        with pytest.raises(ValueError, match=message):
            export(small, *arguments)
    with pytest.raises(ValueError, match="int8 is for the formats onnx and openvino"):
        export(small, tmp_path / "new", "torch", int8=[np.zeros((64, 64, 3), np.uint8)])
    with pytest.raises(ValueError, match="int8 needs good images"):
        export(small, tmp_path / "new", int8=[])
    with pytest.raises(OSError, match=r"^cannot write .*absent/new: No such file or directory$"):
        export(small, tmp_path / "absent/new")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def open_wrong_network(path: Path, outputs: int, threads: int | None, device: str) -> runtimes.Run:
    return lambda images: [np.zeros((3, n, n), np.float32) for n in (16, 8, 64)]


def test_replaced_whole_or_not_at_all(small: Detector, folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    target = changed(folder, tmp_path / "model")
    (target / "old.txt").write_text("of the old one")
    before = sorted(path.name for path in target.iterdir())

    resource = pytest.importorskip("resource")  # a limit on the size of files stands for a full disk
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"^cannot write .*model: File too large$"):
            export(small, target, "torch")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with monkeypatch.context() as patch:
        patch.setitem(runtimes.OPEN, "torch", open_wrong_network)
        with pytest.raises(RuntimeError, match=r"the exported network differs from torch by .*, more than 0\.001"):
            export(small, target, "torch")
    assert sorted(path.name for path in target.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

    export(small, target, "torch")
    assert sorted(path.name for path in target.iterdir()) == ["model.json", "network.pt2"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
