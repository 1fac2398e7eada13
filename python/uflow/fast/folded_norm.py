"""A frozen convolutional net in which convolutions do the work of the batch norms behind them."""

from __future__ import annotations

import copy
import itertools
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

__all__ = ["fold_batch_norms"]

Size = tuple[int, int]


@torch.no_grad()
def fold_batch_norms(net: nn.Module, image_size: Size) -> nn.Module:
    """A copy of the frozen net in which convolutions do the work of the batch norms behind them, and pad by themselves.

    Who is behind whom is seen in a run. What a run does not show, such as another use of a convolution's output, makes
    the maps of the copy differ: then the net stays as it is.
    """
    images = torch.rand(1, 3, *image_size, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    images = images.contiguous(memory_format=torch.channels_last)
    folded = copy.deepcopy(net)
    names: dict[nn.Module, str] = {
        m: name for name, m in folded.named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)
    }
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []
    hooks = [m.register_forward_hook(lambda m, args, y: calls.append((m, args[0], y))) for m in names]
    wanted = folded(images)
    for hook in hooks:
        hook.remove()

    def replace(module: nn.Module, by: nn.Module) -> None:
        parent, _, name = names[module].rpartition(".")
        setattr(folded.get_submodule(parent), name, by)

    for (conv, _, y), (norm, x, _) in itertools.pairwise(calls):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and x is y:
            mean, var = cast(Tensor, norm.running_mean).double(), cast(Tensor, norm.running_var).double()
            scale = norm.weight / (var + norm.eps).sqrt()
            bias = 0 if conv.bias is None else conv.bias
            conv.bias = nn.Parameter((norm.bias + (bias - mean) * scale).to(conv.weight.dtype), requires_grad=False)
            conv.weight.copy_(conv.weight * scale.view(-1, 1, 1, 1))
            replace(norm, getattr(norm, "act", nn.Identity()))
    for conv, x, _ in calls:
        if isinstance(conv, Conv2dSame) and (k := conv.kernel_size[0]) > 1 and conv.stride == (2, 2):
            # TensorFlow's padding of an even size, k // 2 - 1 before and k // 2 behind, copies the whole map: a kernel
            # with a row and a column of zeros before it takes PyTorch's own, k // 2 on both sides.
            if x.shape[2] % 2 or x.shape[3] % 2 or conv.dilation != (1, 1):
                continue
            sizes = conv.in_channels, conv.out_channels, k + 1, 2, k // 2
            padded = nn.utils.skip_init(nn.Conv2d, *sizes, groups=conv.groups)  # type: ignore[no-untyped-call]
            padded.weight, padded.bias = nn.Parameter(F.pad(conv.weight, (1, 0, 1, 0))), conv.bias
            replace(conv, padded)
    folded.requires_grad_(False).eval().to(memory_format=torch.channels_last)
    try:
        maps = folded(images)
    except RuntimeError:  # shapes that do not fit together
        return net
    same = [
        a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=1e-4 * float(b.std()))
        for a, b in zip(maps, wanted, strict=True)
    ]
    return folded if all(same) else net
