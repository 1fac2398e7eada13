"""CaiT's attention in pieces that fit in a processor's cache."""

from __future__ import annotations

from typing import cast

import torch
from timm.models.cait import TalkingHeadAttn
from torch import Tensor

__all__ = ["TalkingHeads", "runs_on_cpu"]


def runs_on_cpu(x: Tensor) -> bool:
    """Whether to go the way that is fast on a CPU; an exported net goes the plain one."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


class TalkingHeads(TalkingHeadAttn):
    """timm's attention of CaiT, on a CPU for some of the queries at a time: 16 heads of 784 x 784 fit in no cache.

    Heads are mixed by a matrix product from the left, without a permuted copy.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not runs_on_cpu(x):
            return cast(Tensor, super().forward(x))  # type: ignore[no-untyped-call]
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).contiguous()
        y = torch.empty_like(qkv[0])
        before, after = self.proj_l, self.proj_w
        rows = max(1, 700_000 // (self.num_heads * tokens))  # of all heads: 2.8 MB
        for q, k, v, out in zip(qkv[0] * self.scale, qkv[1].mT, qkv[2], y, strict=True):
            for i in range(0, tokens, rows):
                a = torch.bmm(q[:, i : i + rows], k)
                a = torch.addmm(before.bias[:, None], before.weight, a.flatten(1)).view(a.shape).softmax(-1)
                a = torch.addmm(after.bias[:, None], after.weight, a.flatten(1)).view(a.shape)
                out[:, i : i + rows] = torch.bmm(a, v)
        return cast(Tensor, self.proj(y.transpose(1, 2).reshape(x.shape)))
