"""A finished flow for inference: its constants folded into the weights, no log_det."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..flow import Affine, CouplingStep, Stage, UFlow, check_shapes
from .winograd import WinogradConv2d

__all__ = ["FoldedFlow"]


class FoldedFlow(nn.Module):
    """The latents of a finished flow and nothing else, faster: ``FoldedFlow(flow)(features)`` is ``flow(features)[0]``.

    There is no log_det, constants are folded into the weights (see `_FoldedStep`), and on a CPU the larger 3 x 3
    convolutions are `WinogradConv2d`: the latents differ by rounding only. The weights are copies: make it anew when
    `flow` has learnt or loaded others.

    Args:
        flow: the flow.
        winograd: whether to use `WinogradConv2d`; the default does where the flow is on a CPU in float32 or float64.
            False is for export: operations that every runtime has, only the batch may vary.

    >>> flow = UFlow(channels=(24, 40), sizes=((12, 12), (6, 6)))
    >>> features = [torch.randn(2, 24, 12, 12), torch.randn(2, 40, 6, 6)]
    >>> latents = FoldedFlow(flow)(features)
    >>> all(torch.allclose(a, b, atol=1e-5) for a, b in zip(latents, flow(features)[0]))
    True
    """

    @torch.no_grad()
    def __init__(self, flow: UFlow, winograd: bool | None = None) -> None:
        super().__init__()
        if winograd is None:
            weight = next(flow.parameters())
            winograd = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)
        self.channels, self.sizes = flow.channels, flow.sizes
        self.affines = copy.deepcopy(flow.affines)
        self.stages = nn.ModuleList(
            nn.Sequential(*(_FoldedStep(step, size if winograd else None) for step in cast(Stage, stage)))
            for stage, size in zip(flow.stages, flow.sizes, strict=True)
        )
        self.splits, self.upsample = flow.splits, flow.upsample  # without weights
        self.requires_grad_(False)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features, a (B, C_l, H_l, W_l) per scale, finest first -> latents, likewise, contiguous.

        Raises:
            ValueError: when the features' shapes are not those the flow was made for.
        """
        check_shapes("features", features, self.channels, self.sizes)
        latents: list[Tensor] = []
        up: Tensor | None = None
        for level in reversed(range(len(self.sizes))):
            x = features[level]
            if self.affines:
                affine = cast(Affine, self.affines[level])
                x = torch.addcmul(affine.bias, x, affine.weight)
            if up is not None:
                x = torch.cat([x, up], dim=1)
            x = self.stages[level](x)
            if level > 0:
                up, x = self.splits[level - 1](x)
                up = self.upsample(up).contiguous()
            latents.insert(0, x.contiguous())
        return latents


class _FoldedStep(nn.Module):
    """A `CouplingStep` without log_det, its constants in the weights and biases of the subnet's last convolution:

        r   = subnet'(a)                            subnet' gives 0.2 of the first C2 channels, 0.1 * g_b of the others
        out = P(concat(a * g_a + o_a, b * exp(2 clamp * sigmoid(r[:C2]) + ln g_b - clamp) + r[C2:] + o_b))

    where clamp * tanh(x) = 2 clamp * sigmoid(2 x) - clamp: PyTorch's sigmoid takes a quarter of the time of its tanh.
    """

    scale: Tensor
    offset: Tensor
    log_scale: Tensor
    permutation: Tensor

    def __init__(self, step: nn.Module, winograd: tuple[int, int] | None) -> None:
        super().__init__()
        assert isinstance(step, CouplingStep)
        self.parts, self.clamp = step.parts, step.clamp
        # For maps of this size; measured: with fewer channels or cells WinogradConv2d gains nothing.
        self.channels_last = winograd is not None and min(self.parts) >= 128 and math.prod(winograd) >= 196
        subnet = copy.deepcopy(step.subnet).double()
        subnet[1] = nn.ReLU(inplace=True)
        scale, scale_b = torch.split(step._scale().double(), self.parts)
        offset, offset_b = torch.split(step.global_offset.detach().double(), self.parts)
        factor = torch.cat([torch.full_like(scale_b, 0.2), 0.1 * scale_b])
        last = cast(nn.Conv2d, subnet[2])
        last.weight.mul_(factor.unsqueeze(1))
        cast(Tensor, last.bias).mul_(factor.flatten())[len(scale_b) :].add_(offset_b.flatten())
        if self.channels_last:
            subnet = nn.Sequential(
                *(WinogradConv2d(m) if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) else m for m in subnet)
            )
        self.subnet = subnet
        for name, value in (("scale", scale), ("offset", offset), ("log_scale", scale_b.log() - self.clamp)):
            self.register_buffer(name, value.clone())
        self.to(step.global_scale.dtype)
        self.register_buffer("permutation", step.permutation.clone())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        a, b = torch.split(x, self.parts, dim=1)
        s, t = self.subnet(a).chunk(2, dim=1)
        scale = torch.add(self.log_scale, torch.sigmoid(s), alpha=2 * self.clamp).exp()
        y = torch.cat([torch.addcmul(self.offset, a, self.scale), torch.addcmul(t, b, scale)], dim=1)
        if not self.channels_last:
            return y.index_select(1, self.permutation)
        y = y.permute(0, 2, 3, 1)  # index_select is four times as fast on a matrix
        return y.flatten(0, 2).index_select(1, self.permutation).view(y.shape).permute(0, 3, 1, 2)
