"""What is there for time alone changes nothing else: the folded flow, Winograd's convolution, folded batch norms."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from made_nets import LITE0, weights_file
from test_flow import GEOMETRIES, randn, randomise
from uflow import backbones, weights
from uflow.backbones import create_backbone
from uflow.fast.folded_flow import FoldedFlow
from uflow.fast.folded_norm import fold_batch_norms
from uflow.fast.winograd import WinogradConv2d
from uflow.flow import UFlow

# The flow -------------------------------------------------------------------------------------------------------------

FOLDED = [*GEOMETRIES, ((260,), ((15, 14),))]  # the last by Winograd


@pytest.mark.parametrize("winograd", [True, False], ids=["winograd", "plain"])
@pytest.mark.parametrize("affine", [False, True], ids=["no-affine", "affine"])
@pytest.mark.parametrize(("channels", "sizes"), FOLDED, ids=str)
def test_folded_flow_gives_the_flow_s_latents(channels, sizes, affine, winograd):
    flow = randomise(UFlow(channels, sizes, steps=3, affine=affine))
    folded = FoldedFlow(flow, winograd)
    assert any(isinstance(m, WinogradConv2d) for m in folded.modules()) == (winograd and channels == (260,))
    features = [randn(3, c, *size, seed=c) for c, size in zip(channels, sizes, strict=True)]
    latents = folded(features)
    torch.testing.assert_close(latents, flow(features)[0], rtol=1e-9, atol=1e-9)
    assert all(z.is_contiguous() and not z.requires_grad for z in latents)


def test_folded_flow_in_float32_is_as_exact_as_the_flow():
    channels, sizes = (256, 320), ((28, 28), (14, 14))
    flow = UFlow(channels, sizes, affine=True)
    features = [randn(2, c, *size, seed=c) for c, size in zip(channels, sizes, strict=True)]
    single = [x.float() for x in features]
    latents, folded = flow(single)[0], FoldedFlow(flow)
    assert sum(isinstance(m, WinogradConv2d) for m in folded.modules()) == 8
    for exact, plain, fast in zip(flow.double()(features)[0], latents, folded(single), strict=True):
        assert (fast - exact).abs().max() < 1e-5
        assert (fast - exact).square().mean() < 9 * (plain - exact).square().mean()


def test_folded_flow_keeps_its_own_weights():
    flow = randomise(UFlow((4, 8), ((4, 4), (2, 2)), affine=True))
    features = [randn(1, 4, 4, 4), randn(1, 8, 2, 2)]
    copies = [x.clone() for x in features]
    folded = FoldedFlow(flow)
    before = folded(features)
    randomise(flow, seed=1)
    assert all(map(torch.equal, folded(features), before))
    assert not torch.equal(flow(features)[0][0], before[0])
    assert all(map(torch.equal, features, copies))
    with pytest.raises(ValueError, match="expected features of shapes"):
        folded(features[::-1])


def test_folded_flow_can_be_exported_with_any_batch():
    flow = UFlow((8, 16), ((4, 4), (2, 2)), affine=True)
    features = [randn(2, 8, 4, 4).float(), randn(2, 16, 2, 2).float()]
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        FoldedFlow(flow, winograd=False), (features,), dynamic_shapes=([{0: batch}, {0: batch}],)
    )
    torch.testing.assert_close(program.module()([x[:1] for x in features]), [z[:1] for z in flow(features)[0]])


@pytest.mark.parametrize("size", [(1, 1), (3, 4), (4, 9), (8, 6)], ids=str)
def test_winograd_convolution(size):
    conv = nn.Conv2d(5, 7, 3, padding=1).double()
    x = randn(2, 5, *size)
    for layout in (torch.contiguous_format, torch.channels_last):
        y = WinogradConv2d(conv)(x.contiguous(memory_format=layout))
        torch.testing.assert_close(y, conv(x), rtol=0, atol=1e-12)


# The backbone --------------------------------------------------------------------------------------------------------


def test_batch_norms_are_folded_into_the_convolutions(tmp_path: Path) -> None:
    for name, file in (("efficientnet_lite0", None), ("resnet18", weights_file(tmp_path, "resnet18"))):
        net = create_backbone(name, 64, weights=file)
        assert not any(isinstance(m, nn.BatchNorm2d | timm.layers.Conv2dSame) for m in net.modules())
        images = torch.rand(2, 3, 64, 64)
        arch = net.extractor.archs[0]
        plain: Any = timm.create_model(arch, features_only=True).eval()
        weights.fill_net(plain, arch, backbones._skeleton(arch).state_dict(), file or LITE0, hashlib.sha256())
        with torch.no_grad():
            maps = plain((images - net.mean) / net.std)
        strides = plain.feature_info.reduction()
        for stride, a in zip(net.strides, net.normalised(net(images)), strict=True):
            b = maps[strides.index(stride)]
            torch.testing.assert_close(a, F.layer_norm(b, b.shape[1:]), rtol=1e-4, atol=1e-4)


class Twice(nn.Module):
    """A net that uses a convolution's output before the batch norm and behind it."""

    def __init__(self, extra: float) -> None:
        super().__init__()
        self.extra = extra
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1, bias=False))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.layers(x)
        return [self.norm(y) + self.extra * y]


@pytest.mark.parametrize("extra", [0.0, 1.0])
def test_a_batch_norm_is_folded_only_where_that_changes_nothing(extra: float) -> None:
    net = Twice(extra).eval()
    torch.manual_seed(0)
    for norm in (net.layers[1], net.norm):
        for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            nn.init.uniform_(value, 0.5, 2)
    images = torch.rand(1, 3, 8, 8)
    wanted = net(images)
    folded = fold_batch_norms(net, (8, 8))
    assert any(isinstance(m, nn.BatchNorm2d) for m in folded.modules()) == bool(extra)
    torch.testing.assert_close(folded(images), wanted)
    assert torch.equal(net(images)[0], wanted[0])
