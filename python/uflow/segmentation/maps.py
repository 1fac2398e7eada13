"""Latents to energies, and maps at the image's size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from ..arrays import (
    as_latents,
    as_scales,
    check_finite,
    check_latents,
    contiguous,
    is_tensor,
    output_size,
    thread_count,
    to_numpy,
)


def energies(latents: Sequence[Any], threads: int | None = None) -> list[NDArray[np.float32]]:
    """Compute the energy e = sum_k z_k^2 of every cell, where the latents are, and bring it to the CPU.

    Args:
        latents: per scale (B, C, H, W) arrays or tensors of float16, float32 or float64 on any device.
        threads: worker threads for latents on the CPU, default one per core; the result does not depend on it.

    Returns:
        Per scale (B, H, W) float32.

    Raises:
        ValueError: an empty list, wrong or empty shapes, different batch sizes, values that are not finite.

    >>> energies([np.full((1, 3, 1, 2), 2.0, np.float32)])[0].tolist()
    [[[12.0, 12.0]]]
    """
    return sum_latents(latents, None, thread_count(threads))[0]


def anomaly_map_from_energies(
    energies: Sequence[ArrayLike],
    dof: Sequence[float],
    size: int | tuple[int, int] = 256,
    threads: int | None = None,
) -> NDArray[np.float32]:
    """Compute the anomaly map of energies already computed, see `scoring.anomaly_map`.

    Args:
        energies: per scale (B, h, w).
        dof: channels per scale.
        size: of the result: a side or (H, W).
        threads: worker threads, default one per core; the result does not depend on it.

    Returns:
        (B, H, W) float32 in [0, 1]: 1 - mean over scales of the resized exp(-energy / (2 dof)).

    Raises:
        ValueError: no scales, wrong or empty shapes, different batch sizes, values or a dof that cannot be.

    >>> anomaly_map_from_energies([np.zeros((1, 2, 2))], [4], size=3)[0, 0]
    array([0., 0., 0.], dtype=float32)
    """
    arrays = as_scales(energies, len(dof), "dof")
    return _core.anomaly_map(arrays, list(dof), *output_size(size), thread_count(threads))


def weighted_sum(
    maps: Sequence[ArrayLike], weights: Sequence[float], size: int | tuple[int, int] = 256
) -> NDArray[np.float32]:
    """Compute the sum over scales of weight times map, each resized bilinearly (align_corners=False).

    Args:
        maps: per scale (B, h, w).
        weights: one a scale.
        size: of the result: a side or (H, W).

    Returns:
        (B, H, W) float32.

    Raises:
        ValueError: no scales, wrong or empty shapes, different batch sizes, values that are not finite.

    >>> weighted_sum([np.full((1, 2, 2), 3.0), np.full((1, 1, 1), 1.0)], [1.0, 2.0], size=3)[0, 0]
    array([5., 5., 5.], dtype=float32)
    """
    arrays = as_scales(maps, len(weights), "weight")
    height, width = output_size(size)
    total: NDArray[np.float32] = _core.resize_bilinear(arrays[0], height, width, 0)
    total *= np.float32(weights[0])
    for array, weight in zip(arrays[1:], weights[1:], strict=True):
        resized = _core.resize_bilinear(array, height, width, 0)
        resized *= np.float32(weight)
        total += resized
    if not np.isfinite(total).all():
        raise ValueError("evidence holds values that are not finite: the image cannot be judged")
    return total


def sum_latents(
    latents: Sequence[Any], quantile: float | None, threads: int
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.int32]] | None]:
    """Per scale (B, H, W) energies; given a quantile also the channels with z^2 >= tau, the quantile of chi2_1."""
    check_latents(latents)
    tau = None if quantile is None else _core.chi2_1_quantile(quantile)
    found, counts = [], []
    for scale, z in enumerate(map(as_latents, latents)):
        if is_tensor(z):
            square = z.square()
            energy = to_numpy(square.sum(1).float())
            count = None if tau is None else to_numpy((square >= tau).sum(1))
        elif tau is None:
            energy, count = _core.energies(z, threads), None
        else:
            energy, count = _core.energies_and_exceedances(z, tau, threads)
        if energy.dtype != np.float32:
            with np.errstate(over="ignore"):  # float64 beyond float32: seen below
                energy = contiguous(energy, np.float32)
        check_finite(bool(np.isfinite(energy).all()), scale, z)
        found.append(energy)
        if count is not None:
            counts.append(contiguous(count, np.int32))
    return found, None if tau is None else counts


def count_exceedances(latents: Sequence[Any], quantile: float, threads: int) -> list[NDArray[np.int32]]:
    """Per scale (B, H, W) the channels with z^2 >= tau, the quantile of chi2_1."""
    check_latents(latents)
    tau = _core.chi2_1_quantile(quantile)
    counts = []
    for scale, z in enumerate(map(as_latents, latents)):
        if is_tensor(z):
            count, finite = contiguous(to_numpy((z.square() >= tau).sum(1)), np.int32), bool(z.isfinite().all())
        else:
            count, finite = _core.exceedances(z, tau, threads)
        check_finite(finite, scale, z)
        counts.append(count)
    return counts
