"""SPADE on frozen features: Cohen and Hoshen, "Sub-Image Anomaly Detection with Deep Pyramid Correspondences",
arXiv 2005.02357.

Written from the paper. What differs from it: the frozen features are those that are compared, at their own strides,
where the paper has a Wide-ResNet-50 at strides 4, 8 and 16 of a 224 x 224 image, whose grid of 56 x 56 cells stride 8
of 448 has too; an image's vector is the mean of its coarsest map, where the paper has the classifier's last.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from ..backbones import Backbone

__all__ = ["NearestImages"]

NEAREST = 50  # good images that an image is compared with
SMOOTHING = 4.0  # pixels of the map of 256


@dataclass(frozen=True)
class NearestImages:
    """Scores an image by the good images that look most like it, and each of its cells by the nearest of theirs.

    Attributes:
        vectors: (N, C) float32 of each good image as a whole.
        cells: (N, cells, channels) float16 of all good images.
        size: side of the maps.
    """

    backbone: Backbone
    vectors: Tensor
    cells: Tensor
    size: int

    @classmethod
    def learn(cls, backbone: Backbone, images: Iterable[Tensor], size: int) -> NearestImages:
        """Keep the features of good images, batches (B, 3, H, W) in [0, 1]."""
        found = [_describe(backbone, batch) for batch in images]
        vectors, cells = (torch.cat(parts) for parts in zip(*found, strict=True))
        return cls(backbone, vectors, cells.half(), size)

    def __call__(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, size, size): distance to the nearest cell of the nearest images; scores: mean distance to these."""
        vectors, cells = _describe(self.backbone, batch)
        distances, nearest = torch.cdist(vectors, self.vectors).topk(min(NEAREST, len(self.vectors)), largest=False)
        maps = torch.stack([self._map(own, images) for own, images in zip(cells, nearest, strict=True)])
        shape = (self.size, self.size)
        resized = F.interpolate(maps[:, None], shape, mode="bilinear", align_corners=False)[:, 0]
        sigma = SMOOTHING * self.size / 256
        return gaussian_blur(resized, 2 * round(4 * sigma) + 1, sigma), distances.mean(dim=1)

    def _map(self, own: Tensor, images: Tensor) -> Tensor:
        nearest = torch.full((len(own),), torch.inf)
        for image in images.tolist():  # one at a time: all together would take gigabytes
            nearest = torch.minimum(nearest, torch.cdist(own, self.cells[image].float()).amin(dim=1))
        return nearest.view(self.backbone.sizes[0])


@torch.inference_mode()
def _describe(backbone: Backbone, batch: Tensor) -> tuple[Tensor, Tensor]:
    """A vector of each image (B, C), and one of each cell of the finest grid (B, cells, channels of all scales)."""
    maps = backbone(batch)
    joined = [F.interpolate(m, maps[0].shape[2:], mode="bilinear", align_corners=False) for m in maps]
    return maps[-1].mean(dim=(2, 3)), torch.cat(joined, dim=1).flatten(2).transpose(1, 2)
