"""The network on torch: a frozen backbone, a flow, and perhaps a memory of good images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import segmentation
from .backbones import Backbone, check_threads
from .fast.folded_flow import FoldedFlow
from .features import image_tensor
from .flow import UFlow
from .memory import MemoryBank
from .scoring import Evidence

__all__ = ["TorchNetwork", "resolve_device"]


class TorchNetwork:
    """Images to evidence, see `predictor.Network`.

    Args:
        backbone: gives the features.
        flow: turns them into latents; it may be trained on meanwhile.
        memory: gives the features' distances to those of good images; None where latents are all.
        device: "auto" (CUDA, then MPS, then CPU), or a torch device name.
    """

    def __init__(
        self, backbone: Backbone, flow: UFlow, memory: MemoryBank | None = None, device: str | torch.device = "auto"
    ) -> None:
        check_threads()
        self.device = resolve_device(device)
        self.backbone = backbone.to(self.device).eval()
        self.flow = flow.to(self.device).eval()
        self.memory = None if memory is None else memory.to(self.device)
        self.image_size, self.strides = backbone.image_size, backbone.strides
        self.latent_channels = flow.latent_channels
        self._weights: list[Tensor] = []
        self._folded_from: object = None
        self._folded_flow()

    def evidence(self, images: NDArray[np.uint8]) -> Evidence:
        """Evidence of (B, H, W, 3) images of `image_size`."""
        return self.evidence_of_features(self.features(images))

    def phases(self) -> list[tuple[str, Callable[[Any], Any]]]:
        """Its two parts, to be timed."""
        return [("backbone", self.features), ("flow", self.evidence_of_features)]

    @torch.inference_mode()
    def features(self, images: NDArray[np.uint8]) -> list[Tensor]:
        """Features of (B, H, W, 3) images, a (B, C, h, w) a scale, finest first."""
        check_threads()
        features: list[Tensor] = self.backbone(image_tensor(images, self.device))
        return features

    @torch.inference_mode()
    def evidence_of_features(self, features: list[Tensor]) -> Evidence:
        """Evidence of images whose features, as the backbone gives them, are known."""
        energies = segmentation.energies(self._folded_flow()(self.backbone.normalised(features)))
        distances = [] if self.memory is None else [distance.cpu().numpy() for distance in self.memory(features)]
        return Evidence(energies, distances)

    def _folded_flow(self) -> FoldedFlow:
        """The flow for inference, made anew when the flow's weights have changed or moved."""
        if self._folded_from != self._state():
            self._weights = list(self.flow.state_dict(keep_vars=True).values())  # half a millisecond: not each time
            self._folded, self._folded_from = FoldedFlow(self.flow), self._state()
        return self._folded

    def _state(self) -> tuple[UFlow, list[tuple[int, int]]]:
        return self.flow, [(tensor.data_ptr(), tensor._version) for tensor in self._weights]


def resolve_device(device: str | torch.device) -> torch.device:
    """ "auto" is CUDA where there is one, then MPS, then the CPU."""
    if device != "auto":
        chosen = torch.device(device)
        available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not available.get(chosen.type, True):
            raise ValueError(f"device {str(device)!r} is not available here; use 'auto' or 'cpu'")
        return chosen
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
