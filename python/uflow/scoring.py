"""Latents to an anomaly map: phase 3 of U-Flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from . import segmentation
from .segmentation import anomaly_map_from_energies

if TYPE_CHECKING:
    import torch

__all__ = ["NEAR", "anomaly_map", "anomaly_map_from_energies", "anomaly_map_with_neighbours"]

NEAR = 0.4  # share of the distance to neighbours in the anomaly map: that of 2 scales, which it joins, beside 3


def anomaly_map(latents: Sequence[np.ndarray | torch.Tensor], size: int | tuple[int, int] = 256) -> np.ndarray:
    """How anomalous each pixel is, from the likelihood of its latents.

    ``1 - mean over scales of exp(-t_l / 2)``, t_l the mean of z^2 over the channels of a cell, each scale resized
    bilinearly (align_corners=False) to `size` (U-Flow, JMIV 2024, doi 10.1007/s10851-024-01193-y).

    Args:
        latents: one (B, C, h, w) array or tensor a scale.
        size: side, or (height, width), of the map.

    Returns:
        (B, height, width) float32 in [0, 1].

    >>> anomaly_map([np.zeros((1, 4, 2, 2), np.float32)], size=3)[0, 0]
    array([0., 0., 0.], dtype=float32)
    """
    energies = segmentation.energies(latents)
    return anomaly_map_from_energies(energies, [z.shape[1] for z in latents], size)


def anomaly_map_with_neighbours(
    energies: Sequence[ArrayLike], dof: Sequence[float], size: int | tuple[int, int] = 256
) -> np.ndarray:
    """The anomaly map of the latents' energies and, where there is one more, the distance to neighbours.

    With p the map of the energies (see `anomaly_map`) and q that of the distance, ``1 - exp(-d / 2)``: the map is
    ``0.6 p + 0.4 q``, scaled so that its largest value is that of p. Where in the image the anomaly is, both say; how
    anomalous the image is, the latents alone (docs/accuracy.md has the figures).

    Args:
        energies: per scale (B, h, w), and at the end `neighbours.Neighbours`' (B, h, w), or not.
        dof: channels per scale.
        size: side, or (height, width), of the map.

    Returns:
        (B, height, width) float32 in [0, 1].
    """
    scales = len(dof)
    latent = anomaly_map_from_energies(energies[:scales], dof, size)
    if len(energies) == scales:
        return latent
    both = (1 - NEAR) * latent + NEAR * anomaly_map_from_energies(energies[scales:], [1.0], size)
    largest = both.max(axis=(1, 2), keepdims=True)
    both *= latent.max(axis=(1, 2), keepdims=True) / np.maximum(largest, np.finfo(np.float32).tiny)
    return both
