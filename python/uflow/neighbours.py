"""How far features lie from those of good images: what the anomaly map takes in beside the latents.

A flow makes every kind of normal part equally likely, a smooth background as well as a rough object: its latents say
how strange a cell is for its kind. Distances between features are larger on what varies more, where most defects are.
docs/accuracy.md has the figures of both and of their sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from .training import FeatureCache

__all__ = ["Neighbours"]


class Neighbours(nn.Module):
    """The squared distance of each cell's features to the nearest of M vectors of good images, over its usual value.

    A cell's vector are the features of the two finest scales on the grid of the second, the finest averaged over its
    2 x 2 cells; of the only scale where there is one.

    Args:
        vectors: (M, C) float32, C the channels of the two finest scales together.
        usual: the mean squared distance of good images' cells to the nearest vector of others.

    Raises:
        ValueError: features with another number of channels than the vectors.

    >>> near = Neighbours(torch.zeros(1, 3), usual=2.0)
    >>> near([torch.ones(1, 1, 2, 4), 2 * torch.ones(1, 2, 1, 2)])
    tensor([[[4.5000, 4.5000]]])
    """

    vectors: Tensor
    usual: Tensor

    def __init__(self, vectors: Tensor, usual: float) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors)
        self.register_buffer("usual", torch.tensor(usual, dtype=torch.float32))

    @classmethod
    def of(
        cls, features: FeatureCache, learnt: Sequence[int], held_out: Sequence[int], count: int, seed: int = 0
    ) -> Neighbours:
        """`count` cells at random of good images, or all where there are fewer.

        The usual distance is that of the images `held_out` to cells of the others, `learnt`; what is kept is of all.
        """
        rng = np.random.default_rng(seed)
        near = cls(_draw(features, learnt, count, rng), 1.0)
        usual = np.mean([near(features.batch([index])).mean().item() for index in held_out])
        return cls(_draw(features, sorted([*learnt, *held_out]), count, rng), max(float(usual), 1e-6))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features, a (B, C_l, H_l, W_l) per scale, finest first -> (B, h, w) float32, about 1 on good images."""
        x = _join(features)
        if x.shape[1] != self.vectors.shape[1]:
            raise ValueError(
                f"features of {x.shape[1]} channels, and the vectors of good images have {self.vectors.shape[1]}"
            )
        squares = self.vectors.square().sum(dim=1)
        cells = x.flatten(2).transpose(1, 2)
        # One image at a time: the products of more do not stay in the processor's cache. An exported net takes all.
        parts = (cells,) if torch.compiler.is_compiling() else torch.split(cells, 1)
        nearest = [torch.amin(squares - 2 * (part @ self.vectors.T), dim=2) for part in parts]
        distance = (torch.cat(nearest) + cells.square().sum(dim=2)).clamp(min=0)
        return (distance / self.usual).view(x.shape[0], *x.shape[2:])


def _join(features: Sequence[Tensor]) -> Tensor:
    if len(features) == 1:
        return features[0].float()
    return torch.cat([F.avg_pool2d(features[0].float(), 2), features[1].float()], dim=1)


def _draw(features: FeatureCache, images: Sequence[int], count: int, rng: np.random.Generator) -> Tensor:
    cells = features.arrays[min(1, len(features.arrays) - 1)][0, 0].size
    numbers = np.sort(rng.permutation(len(images) * cells)[:count])
    of_image = np.split(numbers % cells, np.searchsorted(numbers // cells, np.arange(1, len(images))))
    parts = [
        _join(features.batch([index]))[0].flatten(1).T[torch.from_numpy(kept)]
        for index, kept in zip(images, of_image, strict=True)
        if len(kept)
    ]
    return torch.cat(parts).contiguous()
