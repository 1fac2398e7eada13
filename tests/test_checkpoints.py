"""Model files made elsewhere give the same numbers here."""

import argparse
import collections
import logging
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import uflow
from test_flow import freia_uflow
from uflow import backbones, scoring, weights
from uflow.calibration_log import UNCALIBRATED
from uflow.detector import Detector
from uflow.features import image_tensor
from uflow.flow import UFlow
from uflow.images import read_image
from uflow.interop import checkpoint
from uflow.interop.checkpoint import Foreign, load_foreign
from uflow.interop.freia import convert_freia, to_freia
from uflow.threshold import PaperThreshold
from uflow.weights import WeightsNotFound

GOLDEN = Path(__file__).parent / "golden" / "freia_flow.npz"
PREFIX = "model.flow.module_list."


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture
def state_dict(golden):
    """The golden flow of three steps and two scales: steps at nodes 0-2 and 6-8, up-sampling at node 4."""
    return {key.removeprefix("sd/"): array for key, array in golden.items() if key.startswith("sd/")}


@pytest.fixture(scope="module")
def flow(golden):
    return UFlow(golden["channels"], [(size, size) for size in golden["sizes"]], int(golden["steps"]))


def assert_golden(flow, converted, golden):
    flow.load_state_dict(converted, strict=True)
    features = [torch.from_numpy(golden[f"feature{level}"]) for level in (0, 1)]
    expected = [torch.from_numpy(golden[f"latent{level}"]) for level in (0, 1)]
    with torch.no_grad():
        latents, log_det = flow(features)
        torch.testing.assert_close(latents, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(log_det, torch.from_numpy(golden["log_det"]), rtol=0, atol=1e-4)
        torch.testing.assert_close(flow.inverse(expected), features, rtol=0, atol=1e-4)


def test_freia_golden(flow, state_dict, golden):
    assert_golden(flow, convert_freia(state_dict), golden)


@pytest.mark.parametrize("prefix", ["", "flow.", "module.net.flow.", "model."])
def test_freia_prefixes_and_other_keys(flow, state_dict, golden, prefix):
    renamed = {prefix + key.removeprefix("model.flow."): torch.tensor(array) for key, array in state_dict.items()}
    renamed["feature_extractor.module_list.0.w_perm"] = torch.eye(3)
    renamed["model.feature_extractor.blocks.0.norm.weight"] = torch.ones(3)
    assert_golden(flow, convert_freia(renamed), golden)


def test_freia_index_permutations(flow, state_dict, golden):
    for key in [key for key in state_dict if key.endswith("w_perm")]:
        matrix = state_dict[key][:, :, 0, 0]
        state_dict[key] = np.array([row.tolist().index(1) for row in matrix])  # out[i] = in[w_perm[i]]
    assert_golden(flow, convert_freia(state_dict), golden)


def test_freia_keeps_the_dtype_and_the_input(state_dict):
    before = {key: array.copy() for key, array in state_dict.items()}
    doubled = convert_freia({key: array.astype(np.float64) for key, array in state_dict.items()})
    assert doubled["stages.0.0.subnet.0.weight"].dtype == torch.float64
    assert doubled["stages.0.0.permutation"].dtype == torch.int64
    convert_freia(state_dict)
    assert all(np.array_equal(before[key], state_dict[key]) for key in before)


def check_error(state_dict, message):
    with pytest.raises(ValueError, match=message) as error:
        convert_freia(state_dict)
    assert "\n" not in str(error.value)


def test_freia_without_a_flow():
    check_error({}, r"expected keys such as 'flow\.module_list\.0\.global_scale', found nothing")
    check_error({"a.weight": torch.ones(1), "b": torch.ones(1)}, "found 'a.weight', 'b'")


def test_freia_with_two_flows(state_dict):
    check_error(state_dict | {f"ema.{key}": value for key, value in state_dict.items()}, "found several")


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("0.w_perm", r"steps at \[1, 2, 6, 7, 8\]"),
        ("1.w_perm", r"steps at \[0, 2, 6, 7, 8\]"),
        ("8.w_perm", r"steps at \[0, 1, 2, 6, 7\]"),
        ("7.global_offset", r"missing from the flow: module_list\.7\.global_offset"),
        ("2.subnet.2.bias", r"missing from the flow: module_list\.2\.subnet\.2\.bias"),
        ("4.downsample_kernel", r"missing from the flow: module_list\.4\.downsample_kernel"),
    ],
)
def test_freia_with_a_missing_piece(state_dict, lost, message):
    del state_dict[PREFIX + lost]
    check_error(state_dict, message)


@pytest.mark.parametrize(
    "w_perm",
    [
        np.linalg.qr(np.arange(1600.0).reshape(40, 40) ** 0.5)[0].reshape(40, 40, 1, 1),  # a rotation: "soft"
        np.ones((40, 40, 1, 1)),
        np.zeros((40, 40, 1, 1)),
        2 * np.eye(40).reshape(40, 40, 1, 1),
        np.eye(40, 41).reshape(40, 41, 1, 1),
        np.eye(41)[1:].reshape(40, 41, 1, 1),
        np.zeros(40, dtype=np.int64),
        np.arange(1, 41),
    ],
    ids=["rotation", "ones", "zeros", "doubled", "wide", "out of range", "constant index", "index from 1"],
)
def test_freia_with_no_permutation(state_dict, w_perm):
    state_dict[f"{PREFIX}0.w_perm"] = w_perm
    check_error(state_dict, r"module_list\.0\.w_perm of shape .* is not a permutation")


@pytest.mark.parametrize("clamp", [2.0, 1.5])
def test_both_soft_clamps(clamp):
    """A step written out by hand: s = clamp * tanh(r) and s = clamp * tanh(r / clamp)."""
    flow = UFlow((6,), ((4, 5),), steps=1, clamp=clamp)
    with torch.no_grad():
        flow.stages[0][0].subnet[2].weight.mul_(30)
    exported = to_freia(flow, "flow.")
    x = torch.randn(2, 6, 4, 5, generator=torch.Generator().manual_seed(0))
    a, b = x.chunk(2, dim=1)
    with torch.no_grad():
        r, t = (0.1 * flow.stages[0][0].subnet(a)).chunk(2, dim=1)
        assert r.abs().max() > 0.5
        for form, s in {"tanh(r)": clamp * r.tanh(), "tanh(r/clamp)": clamp * (r / clamp).tanh()}.items():
            flow.load_state_dict(convert_freia(exported, form, clamp))
            (z,), log_det = flow([x])
            expected = torch.cat([a, b * s.exp() + t], dim=1)[:, flow.stages[0][0].permutation]
            torch.testing.assert_close(z, expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(log_det, s.sum((1, 2, 3)), rtol=1e-5, atol=1e-4)
            torch.testing.assert_close(to_freia(flow, "flow.", soft_clamp=form), exported)
    with pytest.raises(ValueError, match=r"soft_clamp is one of 'tanh\(r\)', 'tanh\(r/clamp\)', got 'sigmoid'"):
        convert_freia(exported, "sigmoid")


def test_good_images_tell_the_right_soft_clamp(detector: Detector, dataset: Path):
    """What docs/guide/checkpoints.md says: the flow's own form gives them the larger likelihood."""
    images = [read_image(path) for path in sorted((dataset / "test/good").iterdir())]
    images = [part for image in images for part in detector.predictor.tiling(image).cut(image)]
    net, own = detector.network.backbone, detector.network.flow
    features = net.normalised(net(image_tensor(np.stack(images))))
    nll = {}
    for form in ("tanh(r)", "tanh(r/clamp)"):
        flow = UFlow(own.channels, own.sizes, affine=True)
        flow.load_state_dict(
            convert_freia(to_freia(own), form) | {f"affines.{k}": v for k, v in own.affines.state_dict().items()}
        )
        with torch.inference_mode():
            nll[form] = flow.nll(*flow(features)).mean().item()
    assert nll["tanh(r)"] < nll["tanh(r/clamp)"]


# The authors' layout, written -----------------------------------------------------------------------------------------


def test_to_freia_takes_flows_only(detector):
    with pytest.raises(TypeError, match=r"flow must be a UFlow, .* got Detector"):
        to_freia(detector)


def test_to_freia_gives_the_golden_file_again(flow, state_dict):
    flow.load_state_dict(convert_freia(state_dict))
    exported = to_freia(flow)
    assert list(exported) == list(state_dict)
    for key, array in state_dict.items():
        np.testing.assert_array_equal(exported[key], array, err_msg=key)


@pytest.mark.parametrize(
    ("channels", "sizes", "steps"),
    [((7,), ((5, 3),), 4), ((24, 40), ((12, 12), (6, 6)), 4), ((6, 11, 24), ((12, 8), (6, 4), (3, 2)), 3)],
    ids=str,
)
def test_our_flow_in_freia(channels, sizes, steps):
    flow = UFlow(channels, sizes, steps, seed=3)
    with torch.no_grad():
        for name, weight in flow.named_parameters():
            weight.add_(torch.randn(weight.shape) * (0.02 if "subnet" in name else 0.3))
    graph = freia_uflow(channels, sizes, steps).float()
    graph.load_state_dict(to_freia(flow, prefix=""), strict=True)
    features = [torch.randn(2, c, *size) for c, size in zip(channels, sizes, strict=True)]
    with torch.no_grad():
        latents, log_det = flow(features)
        expected, expected_log_det = graph(features)
    torch.testing.assert_close(latents, list(expected), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(log_det, expected_log_det, rtol=1e-5, atol=1e-3)
    for permutation in ("matrix", "index"):
        again = convert_freia(to_freia(flow, "net.flow.", permutation, "tanh(r/clamp)"), "tanh(r/clamp)")
        torch.testing.assert_close(again, dict(flow.state_dict()), rtol=0, atol=0)


# Whole files ----------------------------------------------------------------------------------------------------------


@dataclass
class Made:
    """A checkpoint file as anomalib 2.7 writes it, and what its parts, FrEIA's and timm's, compute."""

    path: Path
    content: dict[str, Any]
    images: np.ndarray
    latents: list[Tensor]


class Settings(dict):
    pass


class Names(list):
    pass


class Unknown:
    """A class of whoever wrote the file."""

    def __init__(self) -> None:
        self.rate = np.float64(0.1)
        self.folder = Path("results")
        self.settings, self.names = Settings(rate=0.1), Names(["a", "b"])
        self.options = argparse.Namespace(seed=1, more=collections.defaultdict(list, a=[1]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        channels, sizes = (64, 128, 256), ((16, 16), (8, 8), (4, 4))
        net = timm.create_model("resnet18", features_only=True, out_indices=(1, 2, 3)).eval()
        norms = nn.ModuleList(nn.LayerNorm((c, *size)) for c, size in zip(channels, sizes, strict=True))
        with torch.no_grad():
            for module in net.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_(0, 0.1)
                    module.running_var.uniform_(0.5, 1.5)
            for weight in norms.parameters():
                weight.add_(0.1 * torch.randn(weight.shape))
        graph = freia_uflow(channels, sizes, steps=2).float()
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor((0.485, 0.456, 0.406))[:, None, None]) / torch.tensor((0.229, 0.224, 0.225))[:, None, None]
    with torch.no_grad():
        latents = list(graph([norm(f) for norm, f in zip(norms, net(x), strict=True)])[0])
    parts = {
        "feature_extractor.feature_extractor": net,
        "feature_extractor.feature_normalizations": norms,
        "flow": graph,
    }
    state = {f"model.{part}.{name}": t for part, module in parts.items() for name, t in module.state_dict().items()}
    state["post_processor.image_min"] = torch.tensor(0.0)
    content = {
        "epoch": 3,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": state,
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "dirpath": Path("results")}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": np.float32(1e-3)}]}],
        "hyper_parameters": {"backbone": "resnet18", "affine_clamp": 2.0, "anything": Unknown()},
        "anomalib_components_enabled": {"pre_processor": True},
    }
    path = tmp_path_factory.mktemp("made") / "category.ckpt"
    torch.save(content, path)
    return Made(path, content, images, latents)


@torch.inference_mode()
def latents_of(detector: Detector, images: np.ndarray) -> list[Tensor]:
    network = detector.network
    latents, _ = network.flow(network.backbone.normalised(network.features(images)))
    return latents


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No caches and no hub: whatever this machine holds, tests see nothing."""
    monkeypatch.setattr(weights.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_a_checkpoint_predicts_what_its_parts_compute(made: Made, offline, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "uflow"):
        detector = uflow.load(made.path, device="cpu")
    recognised, advice = caplog.messages
    assert recognised == (
        f"{made.path} is a U-Flow of anomalib: resnet18 at 64x64 (weights: in the file), 3 scales of 2 steps, "
        "soft clamp 2 * tanh(r)"
    )
    assert "anomalib trains latents smaller" in advice
    assert "use detector.calibrate(good_images)" in advice
    assert detector.threshold == PaperThreshold("chernoff", "total")
    assert (detector.network.memory, detector.predictor.blend) == (None, None)
    latents = latents_of(detector, made.images)
    torch.testing.assert_close(latents, made.latents, rtol=0, atol=1e-3)
    energies = [z.square().sum(dim=1).numpy() for z in made.latents]
    maps = scoring.anomaly_map_from_energies(energies, detector.network.latent_channels, (64, 64))
    for image, expected in zip(made.images, maps, strict=True):
        np.testing.assert_allclose(detector.predict(image).anomaly_map, expected, atol=1e-4)


@pytest.mark.parametrize(("soft_clamp", "clamp"), [("tanh(r/clamp)", 2.0), ("tanh(r)", 1.5)])
def test_saved_as_our_own(made: Made, offline, tmp_path: Path, soft_clamp: str, clamp: float):
    path = tmp_path / "category.ckpt"
    torch.save({**made.content, "hyper_parameters": {"affine_clamp": clamp}}, path)
    detector = uflow.load(path, device="cpu", soft_clamp=soft_clamp)
    detector.save(tmp_path / "category.uflow")
    with pytest.raises(WeightsNotFound, match=r"those of .*category\.uflow came from file category\.ckpt"):
        uflow.load(tmp_path / "category.uflow")
    for given in (path, [str(path)]):
        again = uflow.load(tmp_path / "category.uflow", device="cpu", weights=given)
        for image in made.images:
            a, b = detector.predict(image), again.predict(image)
            np.testing.assert_array_equal(a.anomaly_map, b.anomaly_map)
            np.testing.assert_array_equal(a.log_nfa, b.log_nfa)
    standard = uflow.load(made.path, device="cpu").predict(made.images[0])
    assert not np.allclose(standard.anomaly_map, detector.predict(made.images[0]).anomaly_map, atol=1e-3)

    weight = "model.feature_extractor.feature_extractor.conv1.weight"
    state = made.content["state_dict"]
    torch.save({"state_dict": state | {weight: state[weight] + 1}}, path)
    with pytest.raises(ValueError, match="pass the right file as weights="):
        uflow.load(tmp_path / "category.uflow", weights=path)
    with pytest.raises(ValueError, match="soft_clamp is for checkpoints made elsewhere"):
        uflow.load(tmp_path / "category.uflow", weights=path, soft_clamp="tanh(r)")


def test_calibrated_and_saved(made: Made, offline, tmp_path: Path):
    detector = uflow.load(made.path, device="cpu")
    good = np.random.default_rng(1).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
    detector.calibrate(list(good), alpha=0.2)
    detector.save(tmp_path / "category.uflow")
    again = uflow.load(tmp_path / "category.uflow", device="cpu", weights=made.path)
    assert again.threshold == detector.threshold
    assert again.threshold.alpha == 0.2
    np.testing.assert_array_equal(again.predict(good[0]).log_nfa, detector.predict(good[0]).log_nfa)


def same(found: Foreign, expected: Foreign) -> None:
    for name in ("backbone", "image_size", "steps", "clamp", "affine"):
        assert getattr(found, name) == getattr(expected, name), name
    torch.testing.assert_close(found.flow, expected.flow, rtol=0, atol=0)
    torch.testing.assert_close(found.nets, expected.nets, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("prefix", "bare", "zipped"),
    [
        ("", True, True),
        ("model.", True, False),
        ("module.", False, True),
        ("_forward_module.model.", False, False),
        ("model._orig_mod.", False, True),
    ],
)
def test_prefixes_and_formats(made: Made, tmp_path: Path, prefix: str, bare: bool, zipped: bool):
    state = {prefix + key.removeprefix("model."): tensor for key, tensor in made.content["state_dict"].items()}
    path = tmp_path / "category.pt"
    content = state if bare else {**made.content, "state_dict": state}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    same(load_foreign(path), load_foreign(made.path))


def test_half_precision_and_index_permutations(made: Made, offline, tmp_path: Path):
    state = {}
    for key, tensor in made.content["state_dict"].items():
        state[key] = tensor.half() if tensor.is_floating_point() else tensor
        if key.endswith(("w_perm", "w_perm_inv")):
            state[key] = tensor[:, :, 0, 0].argmax(dim=1)
    torch.save({"state_dict": state}, tmp_path / "half.ckpt")
    detector = uflow.load(tmp_path / "half.ckpt", device="cpu")
    assert all(p.dtype == torch.float32 for p in detector.network.flow.parameters())
    latents = latents_of(detector, made.images)
    torch.testing.assert_close(latents, made.latents, rtol=0.1, atol=0.1)


def test_our_own_written_in_their_layout(made: Made, offline, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    detector = uflow.load(made.path, device="cpu")
    torch.save({"state_dict": to_freia(detector.network.flow)}, tmp_path / "ours.ckpt")
    found = load_foreign(tmp_path / "ours.ckpt")
    torch.testing.assert_close(found.flow, dict(detector.network.flow.state_dict()), rtol=0, atol=0)
    assert found.nets == []
    with pytest.raises(WeightsNotFound, match="no weights for backbone 'resnet18'"):
        uflow.load(tmp_path / "ours.ckpt", device="cpu")
    again = uflow.load(tmp_path / "ours.ckpt", device="cpu", weights=made.path)
    image = made.images[0]
    np.testing.assert_array_equal(again.predict(image).anomaly_map, detector.predict(image).anomaly_map)

    net = {
        k.removeprefix("model.feature_extractor.feature_extractor."): v for k, v in made.content["state_dict"].items()
    }
    torch.save({k: v for k, v in net.items() if k.startswith(("conv1", "bn1", "layer"))}, tmp_path / "resnet18.pth")
    by_timm = uflow.load(tmp_path / "ours.ckpt", device="cpu", weights=tmp_path / "resnet18.pth")
    assert by_timm.network.backbone.weights_sha256 == detector.network.backbone.weights_sha256


# MS-CaiT: by its names, and with smaller nets -------------------------------------------------------------------------


def test_mcait_is_recognised_by_its_names(tmp_path: Path):
    shapes = [backbones._skeleton(arch).state_dict() for arch in ("cait_m48_448", "cait_s24_224")]
    state = to_freia(UFlow((768, 384), ((28, 28), (14, 14)), steps=1), "flow.")
    for i, names in enumerate(shapes, 1):  # one number shown in every shape: a small file
        state |= {f"feature_extractor.extractor{i}.{k}": torch.zeros(()).expand(v.shape) for k, v in names.items()}
    torch.save({"state_dict": state}, tmp_path / "carpet.ckpt")
    found = load_foreign(tmp_path / "carpet.ckpt")
    assert (found.origin, found.backbone, found.image_size, found.affine) == ("the authors", "mcait", None, False)
    assert [{k: v.shape for k, v in net.items()} for net in found.nets] == [
        {k: v.shape for k, v in names.items()} for names in shapes
    ]


def test_mcait_of_smaller_nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    archs, channels = ("cait_xs24_384", "cait_xxs24_224"), (288, 192)
    monkeypatch.setitem(backbones._KNOWN, "mcait", backbones._Entry(archs, (16, 32), 64, (2, 1)))
    monkeypatch.setitem(checkpoint._BACKBONES, "mcait", (channels, 16))
    flow = UFlow(channels, ((4, 4), (2, 2)), steps=1)
    state, nets = to_freia(flow), []
    for i, arch in enumerate(archs, 1):
        names = backbones._skeleton(arch).state_dict()
        used = {k: v.shape for k, v in names.items() if not k.startswith("blocks") or int(k.split(".")[1]) < 2}
        nets.append({k: 0.05 * torch.randn(shape) for k, shape in used.items()})
        state |= {f"model.feature_extractor.extractor{i}.{k}": v for k, v in nets[-1].items()}
    torch.save({"state_dict": state}, tmp_path / "carpet.ckpt")
    with caplog.at_level(logging.INFO, "uflow"):
        detector = uflow.load(tmp_path / "carpet.ckpt", device="cpu")
    assert "is a U-Flow of the authors: mcait at 64x64 (weights: in the file), 2 scales of 1 steps" in caplog.text
    assert f"not calibrated: {UNCALIBRATED}" in caplog.text
    net = backbones.create_backbone("mcait", weights=nets)
    assert detector.network.backbone.weights_sha256 == net.weights_sha256
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        found, expected = detector.network.flow(detector.network.backbone(images))[0], flow(net(images))[0]
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


# Files that cannot be used --------------------------------------------------------------------------------------------


class Runs:
    """Pickled, it is a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
@pytest.mark.parametrize("where", ["beside", "in the state dict", "instead"])
@pytest.mark.parametrize("function", ["os.system", "eval", "subprocess.Popen", "pickle.loads", "torch.load"])
def test_no_code_of_a_file_is_run(made: Made, tmp_path: Path, function: str, where: str, zipped: bool):
    trace = tmp_path / "it ran"
    command = f"__import__('pathlib').Path({str(trace)!r}).touch()"
    code = {
        "os.system": Runs(os.system, f"touch '{trace}'"),
        "eval": Runs(eval, command),
        "subprocess.Popen": Runs(subprocess.Popen, ["touch", str(trace)]),
        "pickle.loads": Runs(__import__("pickle").loads, f'cbuiltins\neval\n(S"{command}"\ntR.'.encode()),
        "torch.load": Runs(torch.load, str(tmp_path / "other.pt"), None, None),
    }[function]
    state = made.content["state_dict"]
    content = {
        "beside": {"state_dict": state, "hyper_parameters": {"x": code}},
        "in the state dict": {"state_dict": state | {"model.x": code}},
        "instead": code,
    }[where]
    path = tmp_path / "evil.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    before = [eval, subprocess.Popen]  # allowed by somebody else, for other files
    torch.serialization.add_safe_globals(before)
    if function == "os.system":
        check_file(path, r"was not read: it asks for (posix|nt)\.system")
    elif where == "instead":
        check_file(path, r"holds a \S+, where a mapping with named tensors is expected")
    else:
        same(load_foreign(path), load_foreign(made.path))
    assert set(torch.serialization.get_safe_globals()) >= set(before)
    torch.serialization.clear_safe_globals()
    assert not trace.exists()


def test_the_authors_resnet_is_told_from_anomalibs(made: Made, tmp_path: Path):
    """LayerNorms of the same names are in both; the net itself is not."""
    theirs, own = "feature_extractor.extractor.", "feature_extractor.feature_extractor."
    state = {name.replace(own, theirs): tensor for name, tensor in made.content["state_dict"].items()}
    torch.save({"state_dict": state, "hyper_parameters": {"backbone": "resnet18"}}, tmp_path / "x.ckpt")
    authors, anomalib = load_foreign(tmp_path / "x.ckpt"), load_foreign(made.path)
    assert (authors.origin, anomalib.origin) == ("the authors", "anomalib")
    assert (authors.backbone, authors.image_size, len(authors.nets)) == ("resnet18", (64, 64), 1)


def check_file(path: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        uflow.load(path, device="cpu")
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_other_files(made: Made, tmp_path: Path):
    path = tmp_path / "x.ckpt"
    whole = made.path.read_bytes()
    path.write_text("epoch,loss\n1,0.5\n")
    check_file(path, "is not a uflow model file, or was cut short")
    path.write_bytes(b"")
    check_file(path, "is not a uflow model file, or was cut short")
    for part in (whole[: len(whole) // 2], whole[:100], b"PK\x03\x04" + bytes(1000)):
        path.write_bytes(part)
        check_file(path, "cannot read .*expected a checkpoint written by torch or Lightning.* or was cut short")
    torch.save(made.content["state_dict"], path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for length in (6, 40, len(whole) // 100, len(whole) // 2):
        path.write_bytes(whole[:length])
        check_file(path, "cannot read .*expected a checkpoint written by torch or Lightning.* or was cut short")
    torch.save(torch.ones(3), path)
    check_file(path, "holds a Tensor, where a mapping with named tensors is expected")
    torch.save(Unknown(), path)
    check_file(path, r"holds a test_checkpoints\.Unknown, where a mapping")
    torch.save({"model": Unknown(), "epoch": 1}, path)
    check_file(path, "expected 'state_dict' or named tensors, found 'model', 'epoch'")
    torch.save({"state_dict": {"model.memory_bank": torch.ones(3)}}, path)
    check_file(path, r"no U-Flow checkpoint.*expected keys such as 'flow\.module_list.*found 'model\.memory_bank'")
    save_file({"a.weight": torch.ones(2), "b": torch.ones(2)}, path)
    check_file(path, r"safetensors file but not a uflow model file.*it holds 'a\.weight', 'b'")
    with pytest.raises(FileNotFoundError, match="there is no model file"):
        uflow.load(tmp_path / "absent.ckpt")
    with pytest.raises(FileNotFoundError, match="is not an exported model"):
        uflow.load(tmp_path)


FLOW, FEATURES = "model.flow.module_list.", "model.feature_extractor."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({FLOW + "0.global_offset": None}, r"missing from the flow: module_list\.0\.global_offset"),
        ({FLOW + "1.subnet.2.bias": torch.full((256,), torch.nan)}, r"is damaged: the flow's 'stages\.2\.1\.subnet"),
        ({FLOW + "0.subnet.0.weight": torch.ones(64, 128, 3, 3)}, r"has shape \(64, 128, 3, 3\), not \(128, 128, 3"),
        ({FEATURES + "feature_normalizations.1.bias": None}, r"shape \(128, H, W\), the LayerNorm .* found none"),
        (
            {FEATURES + f"feature_normalizations.1.{name}": torch.ones(128, 8, 9) for name in ("weight", "bias")},
            r"no U-Flow of resnet18: 'affines\.1\.weight' has shape \(128, 8, 9\), not \(128, 8, 8\)",
        ),
        ({FEATURES + "feature_extractor.bn1.weight": None}, r"does not hold the weights of resnet18: it has no 'bn1"),
    ],
    ids=["piece", "nan", "subnet", "norm", "norm of another size", "backbone"],
)
def test_incomplete_checkpoints(made: Made, tmp_path: Path, changes, message):
    state = {k: v for k, v in {**made.content["state_dict"], **changes}.items() if v is not None}
    torch.save({"state_dict": state}, tmp_path / "x.ckpt")
    check_file(tmp_path / "x.ckpt", message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "resnet34"}, "its backbone is 'resnet34'; known: mcait, resnet18, wide_resnet50_2"),
        ({"affine_clamp": 0}, "its affine_clamp is 0, not above 0"),
        ({"affine_clamp": Unknown()}, "its affine_clamp is "),
    ],
)
def test_settings_that_do_not_fit(made: Made, tmp_path: Path, settings, message):
    torch.save({**made.content, "hyper_parameters": settings}, tmp_path / "x.ckpt")
    check_file(tmp_path / "x.ckpt", message)


def test_a_backbone_that_is_not_known(tmp_path: Path):
    torch.save({"state_dict": to_freia(UFlow((24, 40), ((4, 4), (2, 2)), steps=1))}, tmp_path / "x.ckpt")
    check_file(tmp_path / "x.ckpt", r"channels of a known backbone \(mcait \(768, 384\), .*found \(24, 40\)")
