"""The U-shaped normalizing flow: features in, standard normal latents and log|det J| out, and back again.

Every transform here is a bijection with a `forward` and an `inverse`. Those that change volume (`CouplingStep`,
`Affine`, `UFlow`) return `(output, log_det)`; `Split` and `Upsample` only move numbers, so their log_det is zero.
log_det is a natural logarithm, one number per image, accumulated in float32 or better whatever the precision of the
volumes. All volumes are (B, C, H, W), and scales are listed finest first.

Tailanian, Pardo, Musé: U-Flow, JMIV 2024, doi 10.1007/s10851-024-01193-y.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Affine", "CouplingStep", "Split", "UFlow", "Upsample"]


def _accurate(x: Tensor) -> Tensor:
    """`x` in float32 or better: what log_det is summed in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _sum_cells(values: Tensor, inside: Tensor | None) -> Tensor:
    """The sum of (B, C, H, W) values over channels and cells, or the cells inside, (B, H, W): (B,)."""
    return values.sum((1, 2, 3)) if inside is None else (values.sum(1) * inside).sum((1, 2))


def check_shapes(
    name: str, volumes: Sequence[Tensor], channels: Sequence[int], sizes: Sequence[tuple[int, int]]
) -> None:
    seen = [tuple(volume.shape) for volume in volumes]
    expected = [(c, *size) for c, size in zip(channels, sizes, strict=True)]
    if [shape[1:] for shape in seen] != expected or any(shape[0] != seen[0][0] for shape in seen):
        wanted = ", ".join(f"(B, {c}, {h}, {w})" for c, h, w in expected)
        raise ValueError(f"expected {name} of shapes {wanted}, finest first: got {', '.join(map(str, seen))}")


class CouplingStep(nn.Module):
    """One step of the flow: affine coupling, a scale and offset per channel, and a fixed random permutation P.

    The first C1 = C - C // 2 channels `a` stay and tell the last C2 = C // 2 channels `b` how to change:

        r   = 0.1 * subnet(a)                       convolution (kernel x kernel), ReLU, convolution
        s   = clamp * tanh(r[:C2]),  t = r[C2:]
        out = P(concat(a, b * exp(s) + t) * g + o)  g = 0.1 * softplus(global_scale, beta=0.5), o = global_offset
        log|det J| = sum(s) + H * W * sum(ln g)

    The step of FrEIA 0.2's AllInOneBlock (Ardizzone et al. 2018-2022; RealNVP, Dinh et al., arXiv 1605.08803).

    Args:
        channels: C >= 2, odd or even.
        kernel: size of the subnet's convolutions, odd.
        clamp: bound of |s|.
        generator: source of the random weights (PyTorch's default law for convolutions) and of the permutation.

    >>> step = CouplingStep(channels=5, kernel=3)
    >>> x = torch.randn(2, 5, 4, 6)
    >>> y, log_det = step(x)
    >>> y.shape, log_det.shape, torch.allclose(step.inverse(y), x, atol=1e-5)
    (torch.Size([2, 5, 4, 6]), torch.Size([2]), True)
    """

    permutation: Tensor

    def __init__(
        self, channels: int, kernel: int = 3, clamp: float = 2.0, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if channels < 2:
            raise ValueError(f"a coupling step needs at least 2 channels, got {channels}")
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"a coupling step's kernel must be odd, got {kernel}")
        c1, c2 = self.parts = [channels - channels // 2, channels // 2]
        self.clamp = clamp
        first = nn.Conv2d(c1, c1, kernel, padding="same", dtype=torch.float32)
        last = nn.Conv2d(c1, 2 * c2, kernel, padding="same", dtype=torch.float32)
        self.subnet = nn.Sequential(first, nn.ReLU(), last)
        bound = (c1 * kernel**2) ** -0.5  # PyTorch's own, drawn again so that `generator` alone decides the weights
        for weight in self.subnet.parameters():
            nn.init.uniform_(weight, -bound, bound, generator=generator)
        unit = 2 * math.log(math.expm1(5))  # g = 1
        self.global_scale = nn.Parameter(torch.full((channels, 1, 1), unit, dtype=torch.float32))
        self.global_offset = nn.Parameter(torch.zeros(channels, 1, 1, dtype=torch.float32))
        self.register_buffer("permutation", torch.randperm(channels, generator=generator))

    def _coefficients(self, a: Tensor) -> tuple[Tensor, Tensor]:
        # Only the subnet may run in a lower precision (autocast): the coupling itself keeps the volume's.
        s, t = (0.1 * self.subnet(a).to(a.dtype)).chunk(2, dim=1)
        return self.clamp * torch.tanh(s), t

    def _scale(self) -> Tensor:
        return 0.1 * F.softplus(self.global_scale, beta=0.5)

    def forward(self, x: Tensor, inside: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> the same shape, and log|det J| (B,) in nats; of cells `inside`, (B, H, W), see `UFlow`."""
        a, b = torch.split(x, self.parts, dim=1)
        s, t = self._coefficients(a)
        g = self._scale()
        y = torch.cat([a, b * s.exp() + t], dim=1) * g + self.global_offset
        cells = x[0, 0].numel() if inside is None else inside.sum((1, 2))
        log_det = _sum_cells(_accurate(s), inside) + cells * _accurate(g).log().sum()
        return y[:, self.permutation], log_det  # backward through index_select is ten times slower on the CPU

    def inverse(self, y: Tensor) -> Tensor:
        """The x (B, C, H, W) for which forward(x) is y."""
        y = (y[:, self.permutation.argsort()] - self.global_offset) / self._scale()
        a, b = torch.split(y, self.parts, dim=1)
        s, t = self._coefficients(a)
        return torch.cat([a, (b - t) * (-s).exp()], dim=1)


class Stage(nn.ModuleList):
    """The coupling steps of one scale, one after another: kernels 3, 1, 3, 1, ..."""

    def __init__(self, channels: int, steps: int, clamp: float, generator: torch.Generator) -> None:
        super().__init__(CouplingStep(channels, 1 if step % 2 else 3, clamp, generator) for step in range(steps))

    def forward(self, x: Tensor, inside: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> the same shape, and log|det J| (B,) in nats; `inside`: see `CouplingStep`."""
        log_dets = []
        for step in self:
            x, log_det = step(x, inside)
            log_dets.append(log_det)
        return x, torch.stack(log_dets).sum(dim=0)

    def inverse(self, y: Tensor) -> Tensor:
        """The x (B, C, H, W) for which forward(x) is y."""
        for step in reversed(self):
            y = cast(CouplingStep, step).inverse(y)
        return y


class Split(nn.Module):
    """Part a volume: the first C // 8 * 4 channels go up to the next finer scale, the rest are this scale's latent.

    >>> up, latent = Split(21)(torch.zeros(1, 21, 2, 2))
    >>> up.shape[1], latent.shape[1]
    (8, 13)
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 8:
            raise ValueError(
                f"every scale but the finest needs at least 8 channels, 4 of them to go up: got {channels}; "
                "leave that scale out or take features with more channels"
            )
        self.parts = [channels // 8 * 4, channels - channels // 8 * 4]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> the part that goes up, and the latent."""
        up, latent = torch.split(x, self.parts, dim=1)
        return up, latent

    def inverse(self, up: Tensor, latent: Tensor) -> Tensor:
        """The volume (B, C, H, W) whose parts are these."""
        return torch.cat([up, latent], dim=1)


class Upsample(nn.Module):
    """Four channels become the 2 x 2 blocks of one: out[c, 2i + p, 2j + q] = in[4c + 2p + q, i, j].

    The invertible resampling of i-RevNet (Jacobsen et al., arXiv 1802.07088), in the channel order of FrEIA's
    IRevNetUpsampling.

    >>> Upsample()(torch.arange(4.0).reshape(1, 4, 1, 1))
    tensor([[[[0., 1.],
              [2., 3.]]]])
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, 4 C, H, W) -> (B, C, 2 H, 2 W)."""
        return F.pixel_shuffle(x, 2)

    def inverse(self, y: Tensor) -> Tensor:
        """(B, C, 2 H, 2 W) -> (B, 4 C, H, W)."""
        return F.pixel_unshuffle(y, 2)


class Affine(nn.Module):
    """The trained half of a LayerNorm over [C, H, W]: y = weight * x + bias, log|det J| = sum(ln |weight|).

    The other half, the normalisation, has no parameters and is part of the frozen features. log_det is counted: were
    it left out, as where the LayerNorm is taken for a part of the features, the likelihood would grow without bound
    by shrinking `weight` to zero.

    >>> y, log_det = Affine((3, 4, 4))(torch.ones(2, 3, 4, 4))
    >>> log_det
    tensor([0., 0.], grad_fn=<ExpandBackward0>)
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(*shape, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(*shape, dtype=torch.float32))

    @torch.no_grad()
    def standardise(self, mean: Tensor, std: Tensor) -> None:
        """Start from features of this mean and standard deviation per channel (C,): they come out as 0 and 1."""
        weight = 1 / std.clamp(min=1e-6)
        # float32 before they move: not every device has float64.
        self.weight.copy_(weight.to(self.weight.dtype).view(-1, 1, 1).expand_as(self.weight))
        self.bias.copy_((-mean * weight).to(self.bias.dtype).view(-1, 1, 1).expand_as(self.bias))

    def forward(self, x: Tensor, inside: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> the same shape, and log|det J| (B,) in nats; `inside`: see `CouplingStep`."""
        log_weight = _accurate(self.weight).abs().log()
        log_det = log_weight.sum().expand(len(x)) if inside is None else _sum_cells(log_weight[None], inside)
        return self.weight * x + self.bias, log_det

    def inverse(self, y: Tensor) -> Tensor:
        """The x (B, C, H, W) for which forward(x) is y."""
        return (y - self.bias) / self.weight


class UFlow(nn.Module):
    """The U-shaped flow: the features of L scales -> as many latents, standard normal where the images are normal.

    From the coarsest scale to the finest: a stage of `steps` coupling steps (kernels 3, 1, 3, 1, ...), then `Split`;
    the part that goes up is upsampled and concatenated after the features of the next finer scale. At the finest scale
    the whole result of the stage is the latent.

    Args:
        channels: feature channels of each scale, finest first.
        sizes: (height, width) of each scale, finest first, each twice the next in both directions.
        steps: coupling steps in a stage.
        clamp: bound of the coupling's log-scale.
        affine: give each scale's features an `Affine` of their own (the trained half of a LayerNorm).
        seed: alone decides all weights and permutations.

    Attributes:
        count_affine: whether log_det counts the `Affine`s. False is the published objective, which takes them for a
            part of the features; then log_det is that of the flow behind them.

    Raises:
        ValueError: when the scales do not fit together.

    >>> flow = UFlow(channels=(24, 40), sizes=((12, 12), (6, 6)))
    >>> latents, log_det = flow([torch.randn(2, 24, 12, 12), torch.randn(2, 40, 6, 6)])
    >>> [tuple(z.shape) for z in latents], flow.nll(latents, log_det).shape
    ([(2, 29, 12, 12), (2, 20, 6, 6)], torch.Size([2]))
    """

    def __init__(
        self,
        channels: Sequence[int],
        sizes: Sequence[tuple[int, int]],
        steps: int = 4,
        clamp: float = 2.0,
        affine: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.affine, self.count_affine = affine, True
        self.channels = tuple(int(c) for c in channels)
        self.sizes = tuple((int(h), int(w)) for h, w in sizes)
        if not 1 <= len(self.channels) == len(self.sizes):
            raise ValueError(f"channels and sizes must have one entry per scale: got {self.channels} and {self.sizes}")
        if any(size < 1 for pair in self.sizes for size in pair):
            raise ValueError(f"every scale must be at least one cell high and wide: got {self.sizes}")
        if any((h, w) != (2 * h2, 2 * w2) for (h, w), (h2, w2) in zip(self.sizes, self.sizes[1:], strict=False)):
            raise ValueError(
                f"each scale must be exactly twice as high and as wide as the next, finest first: got {self.sizes}; "
                "make the image's height and width multiples of the coarsest stride, or choose other strides"
            )
        if min(self.channels) < 2:
            raise ValueError(f"every scale needs at least 2 channels: got {self.channels}")
        if steps < 1:
            raise ValueError(f"steps must be at least 1: got {steps}")

        self.steps, self.clamp = steps, clamp

        # What each stage works on: the features and a quarter of the channels that the next coarser stage sends up.
        volumes = list(self.channels)
        for level in reversed(range(len(volumes) - 1)):
            volumes[level] += volumes[level + 1] // 8
        self.volumes = tuple(volumes)

        generator = torch.Generator().manual_seed(seed)
        self.affines = nn.ModuleList(
            Affine((c, *size)) for c, size in zip(self.channels, self.sizes, strict=True) if affine
        )
        self.stages = nn.ModuleList(Stage(c, steps, clamp, generator) for c in self.volumes)
        self.splits = nn.ModuleList(Split(c) for c in self.volumes[1:])
        self.upsample = Upsample()

    @property
    def latent_channels(self) -> tuple[int, ...]:
        """Channels of each scale's latent, finest first: the degrees of freedom of a cell's energy under H0."""
        return (self.volumes[0], *(c - c // 8 * 4 for c in self.volumes[1:]))

    def standardise(self, moments: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Start a flow with `Affine`s from features of this mean and standard deviation per channel, of each scale."""
        for affine, (mean, std) in zip(self.affines, moments, strict=True):
            cast(Affine, affine).standardise(mean, std)

    def forward(
        self, features: Sequence[Tensor], inside: Sequence[Tensor] | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Features, a (B, C_l, H_l, W_l) per scale -> latents, likewise, and log|det J| (B,) in nats.

        Args:
            features: of each scale.
            inside: per scale (B, H_l, W_l) bool, the cells that log_det is summed over; None is all. A step changes
                each cell by itself, given the part that stays, so that log_det is a sum over cells.

        Raises:
            ValueError: when the features' shapes are not those the flow was made for.
        """
        check_shapes("features", features, self.channels, self.sizes)
        latents: list[Tensor] = []
        log_dets: list[Tensor] = []
        up: Tensor | None = None
        for level in reversed(range(len(self.sizes))):
            x, mask = features[level], None if inside is None else inside[level]
            if self.affines:
                x, log_det = self.affines[level](x, mask)
                if self.count_affine:
                    log_dets.append(log_det)
            if up is not None:
                x = torch.cat([x, up], dim=1)
            x, log_det = self.stages[level](x, mask)
            log_dets.append(log_det)
            if level > 0:
                up, x = self.splits[level - 1](x)
                up = self.upsample(up)
            latents.insert(0, x)
        return latents, torch.stack(log_dets).sum(dim=0)

    def inverse(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """The features for which forward(features) gives these latents.

        Raises:
            ValueError: when the latents' shapes are not those the flow gives.
        """
        check_shapes("latents", latents, self.latent_channels, self.sizes)
        features: list[Tensor] = []
        x = latents[0]
        for level in range(len(self.sizes)):
            x = cast(Stage, self.stages[level]).inverse(x)
            x, up = torch.split(x, [self.channels[level], self.volumes[level] - self.channels[level]], dim=1)
            features.append(cast(Affine, self.affines[level]).inverse(x) if self.affines else x)
            if level + 1 < len(self.sizes):
                x = cast(Split, self.splits[level]).inverse(self.upsample.inverse(up), latents[level + 1])
        return features

    def nll(self, latents: Sequence[Tensor], log_det: Tensor, inside: Sequence[Tensor] | None = None) -> Tensor:
        """Negative log-likelihood of each image (B,): sum over scales of ||z||^2 / 2, minus log_det.

        In nats, without the constant N/2 ln(2 pi) of the N features. Of the cells `inside`, as `forward` has them.
        """
        masks = [None] * len(latents) if inside is None else inside
        energies = (_sum_cells(_accurate(z).square(), mask) for z, mask in zip(latents, masks, strict=True))
        return sum((0.5 * energy for energy in energies), start=-log_det)
