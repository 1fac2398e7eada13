"""3 x 3 convolutions with a quarter of the multiplications."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["WinogradConv2d"]


class WinogradConv2d(nn.Module):
    """A 3 x 3 convolution with padding 1 that multiplies 4 times less: F(4 x 4, 3 x 3) of Lavin and Gray.

    The image is cut into 6 x 6 tiles that overlap by 2. With d a tile and w the weights of one pair of channels,

        4 x 4 of the output = A' [sum over channels of (G w G') * (B' d B)] A        (arXiv 1509.09308)

    where * is by element: 36 matrix products over the channels. The points of interpolation are 0, +-3/4, +-3/2 and
    infinity: the rounding error is about twice that of a direct convolution (with the usual 0, +-1, +-2 four times).

    >>> conv, x = nn.Conv2d(128, 8, 3, padding=1), torch.randn(2, 128, 7, 9)
    >>> torch.allclose(WinogradConv2d(conv)(x), conv(x), atol=1e-4)
    True
    """

    weight: Tensor
    bias: Tensor
    tile_in: Tensor
    tile_out: Tensor

    @torch.no_grad()
    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        points = np.array([0, 0.75, -0.75, 1.5, -1.5])
        others = [np.delete(points, i) for i in range(5)]
        g = np.array(
            [*([p**k / np.prod(p - q) for k in range(3)] for p, q in zip(points, others, strict=True)), [0, 0, 1]]
        )
        bt = np.array([*([*np.poly(q)[::-1], 0] for q in others), np.poly(points)[::-1]])
        at = np.array([[*points**i, i == 3] for i in range(4)])
        weight = torch.from_numpy(np.kron(g, g)) @ conv.weight.double().flatten(2).permute(1, 2, 0)  # (C, 36, C')
        values = {"weight": weight.transpose(0, 1), "bias": cast(Tensor, conv.bias)}
        values |= {"tile_in": torch.from_numpy(np.kron(bt, bt)), "tile_out": torch.from_numpy(np.kron(at, at))}
        for name, value in values.items():
            self.register_buffer(name, value.to(conv.weight.dtype, copy=True).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W), both best in channels_last layout."""
        batch, channels, height, width = x.shape
        rows, columns = -(-height // 4), -(-width // 4)
        x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 4 * columns + 1 - width, 1, 4 * rows + 1 - height)).contiguous()
        image, row, column, _ = x.stride()
        tiles = x.as_strided((6, 6, batch, rows, columns, channels), (row, column, image, 4 * row, 4 * column, 1))
        products = torch.bmm((self.tile_in @ tiles.reshape(36, -1)).view(36, -1, channels), self.weight)
        y = (self.tile_out @ products.view(36, -1)).view(4, 4, batch, rows, columns, -1)
        y = y.permute(2, 3, 0, 4, 1, 5).reshape(batch, 4 * rows, 4 * columns, -1)
        return (y[:, :height, :width] + self.bias).permute(0, 3, 1, 2)
