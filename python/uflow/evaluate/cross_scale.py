"""CS-Flow on frozen features: Rudolph et al., "Fully Convolutional Cross-Scale-Flows", WACV 2022, arXiv 2110.02855.

Written from the paper. What differs from it: the scales are those of one pyramid of features (of the paper, one layer's
on the image in three sizes), with as many channels each as they have; `HIDDEN` channels in the subnets, where the
paper has 1024; features are normalised image by image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import Backbone

__all__ = ["CrossScaleFlow", "FlowScorer", "train_cross_scale_flow"]

BLOCKS = 4  # coupling blocks: kernels of 3, the last of 5
CLAMP = 3.0  # bound of a log-scale
HIDDEN = 128  # channels within a subnet
LEARNING_RATE, WEIGHT_DECAY, MAX_GRADIENT = 2e-4, 1e-5, 1.0


class CrossConvolutions(nn.Module):
    """Two convolutions a scale; the second also sees the neighbouring scales, resized."""

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int], hidden: int, kernel: int) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Conv2d(c, hidden, kernel, padding="same") for c in inputs)
        self.second = nn.ModuleList(nn.Conv2d(hidden, c, kernel, padding="same") for c in outputs)
        self.up = nn.ModuleList(nn.Conv2d(hidden, c, kernel, padding="same") for c in outputs[:-1])
        self.down = nn.ModuleList(nn.Conv2d(hidden, c, 3, stride=2, padding=1) for c in outputs[1:])
        # Nought at the start, so that the flow starts as the identity.
        self.gains = nn.ParameterList(nn.Parameter(torch.zeros(c, 1, 1)) for c in outputs)

    def forward(self, volumes: Sequence[Tensor]) -> list[Tensor]:
        """A (B, C, h, w) a scale, finest first -> as many, with the channels of `outputs`."""
        seen = [F.leaky_relu(first(x)) for first, x in zip(self.first, volumes, strict=True)]
        found = [second(x) for second, x in zip(self.second, seen, strict=True)]
        for level in range(len(seen) - 1):
            coarser = F.interpolate(seen[level + 1], seen[level].shape[2:], mode="bilinear", align_corners=False)
            found[level] = found[level] + self.up[level](coarser)
            found[level + 1] = found[level + 1] + self.down[level](seen[level])
        return [gain * x for gain, x in zip(self.gains, found, strict=True)]


class CouplingBlock(nn.Module):
    """Channels permuted, then each half of them scaled and shifted as the other half of all scales says."""

    def __init__(self, channels: Sequence[int], hidden: int, kernel: int) -> None:
        super().__init__()
        self.parts = [[c // 2, c - c // 2] for c in channels]
        for level, c in enumerate(channels):
            self.register_buffer(f"permutation{level}", torch.randperm(c))
        small, large = ([part[i] for part in self.parts] for i in (0, 1))
        self.of_large = CrossConvolutions(large, [2 * c for c in small], hidden, kernel)
        self.of_small = CrossConvolutions(small, [2 * c for c in large], hidden, kernel)

    def forward(self, volumes: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """A (B, C, h, w) a scale -> as many of the same shapes, and log|det J| (B,) in nats."""
        mixed = [x[:, self.get_buffer(f"permutation{level}")] for level, x in enumerate(volumes)]
        halves = [torch.split(x, parts, dim=1) for x, parts in zip(mixed, self.parts, strict=True)]
        small, first = _couple([a for a, _ in halves], self.of_large([b for _, b in halves]))
        large, second = _couple([b for _, b in halves], self.of_small(small))
        return [torch.cat(pair, dim=1) for pair in zip(small, large, strict=True)], first + second


def _couple(volumes: Sequence[Tensor], coefficients: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Each volume times exp(s) plus t, s bounded by `CLAMP`; and the sum of s."""
    coupled, log_dets = [], []
    for x, st in zip(volumes, coefficients, strict=True):
        s, t = st.chunk(2, dim=1)
        s = CLAMP * 2 / math.pi * torch.atan(s / CLAMP)
        coupled.append(x * s.exp() + t)
        log_dets.append(s.sum(dim=(1, 2, 3)))
    return coupled, torch.stack(log_dets).sum(dim=0)


class CrossScaleFlow(nn.Module):
    """Coupling blocks over all scales at once.

    >>> z, log_det = CrossScaleFlow([6, 8])([torch.zeros(2, 6, 4, 4), torch.zeros(2, 8, 2, 2)])
    >>> [tuple(latent.shape) for latent in z], log_det.tolist()
    ([(2, 6, 4, 4), (2, 8, 2, 2)], [0.0, 0.0])
    """

    def __init__(self, channels: Sequence[int], hidden: int = HIDDEN) -> None:
        super().__init__()
        kernels = [3] * (BLOCKS - 1) + [5]
        self.blocks = nn.ModuleList(CouplingBlock(channels, hidden, kernel) for kernel in kernels)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """A (B, C, h, w) a scale, each twice as high and wide as the next -> latents, and log|det J| (B,) in nats."""
        volumes, log_dets = list(features), []
        for block in self.blocks:
            volumes, log_det = cast(CouplingBlock, block)(volumes)
            log_dets.append(log_det)
        return volumes, torch.stack(log_dets).sum(dim=0)

    def loss(self, features: Sequence[Tensor]) -> Tensor:
        """Negative log-likelihood in nats a dimension, without its constant, mean over the batch."""
        latents, log_det = self(features)
        energies = torch.stack([0.5 * z.square().sum(dim=(1, 2, 3)) for z in latents]).sum(dim=0)
        nats: Tensor = (energies - log_det).mean()
        return torch.div(nats, sum(z[0].numel() for z in latents))


def train_cross_scale_flow(
    batches: Sequence[Sequence[Tensor]], epochs: int, seed: int, hidden: int = HIDDEN
) -> CrossScaleFlow:
    """A flow trained on batches of features, in a new order each epoch: by Adam, with gradients clipped."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flow = CrossScaleFlow([x.shape[1] for x in batches[0]], hidden)
        optimizer = torch.optim.Adam(flow.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        for _ in range(epochs):
            for i in torch.randperm(len(batches)).tolist():
                optimizer.zero_grad()
                flow.loss([x.float() for x in batches[i]]).backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(flow.parameters(), MAX_GRADIENT)
                optimizer.step()
    return flow.eval()


@dataclass(frozen=True)
class FlowScorer:
    """Maps: mean over scales of the latents' mean squares, resized to `size`; score: that of all latents together."""

    backbone: Backbone
    flow: CrossScaleFlow
    size: int

    def __call__(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        latents, _ = self.flow(self.backbone.normalised(self.backbone(batch)))
        squares = [z.square().mean(dim=1, keepdim=True) for z in latents]
        shape = (self.size, self.size)
        maps = [F.interpolate(x, shape, mode="bilinear", align_corners=False)[:, 0] for x in squares]
        sums = torch.stack([z.square().sum(dim=(1, 2, 3)) for z in latents]).sum(dim=0)
        return torch.stack(maps).mean(dim=0), sums / sum(z[0].numel() for z in latents)
