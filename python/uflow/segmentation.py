"""Latents -> log10 Number of False Alarms, mask and regions: phase 4 of the method, the a contrario segmentation.

Equations: Tailanian, Pardo, Musé, "U-Flow", JMIV 2024, doi 10.1007/s10851-024-01193-y. All logs are log10.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _core
from .arrays import (
    as_counts,
    as_latents,
    as_mask,
    as_scales,
    check_finite,
    check_latents,
    check_real,
    contiguous,
    is_tensor,
    output_size,
    thread_count,
    to_numpy,
)

TailName = Literal["exact", "chernoff", "chernoff-unguarded", "binomial"]
TestsName = Literal["total", "by-area"]

_TAILS = {
    "exact": _core.Tail.exact,
    "chernoff": _core.Tail.chernoff,
    "chernoff-unguarded": _core.Tail.chernoff_unguarded,
    "binomial": _core.Tail.binomial,
}


@dataclass(frozen=True)
class Background:
    """Energies of one scale on normal parts: e ~ scale * chi2_dof, cells correlated over correlation_area cells.

    The log-probability of a region of A cells is then (A / correlation_area) * log10 sf(e / scale; dof). The paper's
    model is scale 1, dof the number of channels, correlation_area 1. The binomial tail uses correlation_area only.
    """

    scale: float
    dof: float
    correlation_area: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"Background.{name} must be positive and finite, got {value}")


@dataclass(frozen=True)
class Region:
    """A connected region of a mask; `bbox` is (top, left, bottom, right), half open, `centroid` (row, column)."""

    area: int
    bbox: tuple[int, int, int, int]
    centroid: tuple[float, float]
    log_nfa: float
    score: float


def max_tree(image: ArrayLike, connectivity: int = 4) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Compute the max-tree of an image: the inclusion tree of the components of {image >= level}.

    Args:
        image: (H, W), finite; float32 and float64 as they are, other real dtypes are converted to float64.
        connectivity: 4 or 8 neighbours.

    Returns:
        parent (H, W) int32, flat indices: the canonical pixel of the pixel's component or, for a canonical pixel, of
        the component just below; the root is its own parent. order (H*W,) int32: root first, parents before children.

    Raises:
        ValueError: not 2-D, empty or not finite.

    Berger et al. 2007, "Effective component tree computation"; the convention is scikit-image's.

    >>> parent, order = max_tree([[0.0, 2.0, 1.0]])
    >>> parent.tolist(), order.tolist()
    ([[0, 2, 0]], [0, 2, 1])
    """
    array = np.asarray(image)
    kind, bytes_each = array.dtype.kind, array.dtype.itemsize
    if kind not in "fiub":
        raise TypeError(f"max_tree needs a real image, got dtype {array.dtype}")
    return _core.max_tree(
        contiguous(array, np.float32 if kind == "f" and bytes_each <= 4 else np.float64), connectivity
    )


def connected_components(mask: ArrayLike, connectivity: int = 4) -> tuple[NDArray[np.int32], int]:
    """Label the connected components of a mask: (H, W) int32, 0 outside, 1..n in raster order, and n.

    `connectivity` is 4 or 8 neighbours.

    Raises:
        ValueError: not 2-D or empty, or another connectivity.

    >>> labels, n = connected_components([[1, 0, 1], [1, 0, 1]])
    >>> labels.tolist(), n
    ([[1, 0, 2], [1, 0, 2]], 2)
    """
    return _core.connected_components(as_mask(mask), connectivity)


def number_of_tests(sizes: Sequence[int]) -> float:
    """Compute log10 N_T, N_T = sum_l n_l sum_{r=1..n_l} a b^r / r, the number of candidate regions of all scales.

    Args:
        sizes: number of cells n_l = H_l * W_l per scale.

    a b^r / r counts the polyominoes of r cells, a = 0.316915, b = 4.062570 (the paper, section on the number of tests).

    >>> round(number_of_tests([784, 196]), 5)
    476.92371
    """
    return _core.log10_number_of_tests([operator.index(n) for n in sizes])


def log10_chi2_sf(x: ArrayLike, dof: ArrayLike) -> NDArray[np.float64]:
    """Compute log10 P(chi2_dof >= x), also where P is far below 1e-308.

    Args:
        x: real numbers; 1 below 0.
        dof: degrees of freedom, real and positive; broadcast against `x`.

    Returns:
        float64, <= 0, log10, of the broadcast shape; nan for nan and for dof <= 0.

    log10 of Q(dof / 2, x / 2), the regularised upper incomplete gamma function (DLMF 8.2.4), to 1e-10 of its value.

    >>> log10_chi2_sf([10.0, 1e5], 10).round(2).tolist()
    [-0.36, -21697.31]
    """
    return _elementwise(_core.log10_chi2_sf, x, dof)


def log10_binomial_sf(k: ArrayLike, n: ArrayLike, p: ArrayLike) -> NDArray[np.float64]:
    """Compute log10 P(Bin(n, p) >= k), also where P is far below 1e-308.

    Args:
        k: whole numbers.
        n: whole numbers below 2^53; broadcast against `k`.
        p: probabilities; broadcast against `k`.

    Returns:
        float64, <= 0, log10, of the broadcast shape: 0 for k <= 0, -inf for k > n; nan where n or p is out of range.

    log10 of I_p(k, n - k + 1), the regularised incomplete beta function (DLMF 8.17.5), to 1e-10 of its value.

    >>> log10_binomial_sf([1, 5000], [10, 5000], 0.1).round(2).tolist()
    [-0.19, -5000.0]
    """
    return _elementwise(_core.log10_binomial_sf, k, n, p)


def log_pfa_tree(
    energy: Any,
    dof: float,
    tail: TailName = "chernoff",
    exceedances: Any = None,
    quantile: float = 0.9,
    threads: int | None = None,
) -> NDArray[np.float32]:
    """Compute, for one scale, log10 P_H0 of the region chosen at each cell, 0 where there is none.

    Args:
        energy: (B, H, W) sums of z^2, array or tensor; float32 and float64 as they are, others become float64.
        dof: degrees of freedom of the energies, the number of channels C.
        tail: "exact", "chernoff" (the paper), "chernoff-unguarded" (its code) or "binomial".
        exceedances: (B, H, W) whole numbers, channels with z^2 >= tau; only and always for the binomial tail.
        quantile: of chi2_1 that tau is.
        threads: worker threads, default one per core; the result does not depend on it.

    Returns:
        (B, H, W) float32, <= 0, log10.

    log P(R) = area * log10 P(chi2_C >= level) for a component R of an upper level set, or
    log10 P(Bin(area * C, 1 - quantile) >= count); nested components are chosen among by prune and merge.

    >>> log_pfa_tree(np.array([[[9.0, 1.0], [1.0, 1.0]]]), dof=1).tolist()[0][0]
    [-1.2600566148757935, 0.0]
    """
    array = to_numpy(energy)
    check_real(array, 3, "energy", "(B, H, W)")
    _check_tail(tail, quantile)
    if not (math.isfinite(dof) and dof > 0):
        raise ValueError(f"dof must be positive and finite, got {dof}")
    if (exceedances is not None) != (tail == "binomial"):
        raise ValueError(f"exceedances go with tail='binomial' and only with it, got tail={tail!r}")
    array = contiguous(array, array.dtype if array.dtype in (np.float32, np.float64) else np.float64)
    counts = None if exceedances is None else as_counts(exceedances, array.shape, dof)
    model = _core.Background(1.0, dof, 1.0, dof, 1 - quantile)
    return _core.log_pfa(array, counts, _TAILS[tail], model, thread_count(threads))


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
    return _sums(latents, None, thread_count(threads))[0]


def log_nfa(
    latents: Sequence[Any],
    size: int | tuple[int, int] = 256,
    tail: TailName = "chernoff",
    n_tests: TestsName = "total",
    quantile: float = 0.9,
    threads: int | None = None,
    background: Sequence[Background] | Literal["gaussian"] | None = "gaussian",
) -> NDArray[np.float32]:
    """Compute log10 of the Number of False Alarms at every pixel; `log_nfa < 0` is the mask (epsilon = 1).

    Args:
        latents: per scale (B, C, H, W) arrays or tensors of float16, float32 or float64 on any device.
        size: of the result: a side or (H, W).
        tail: see :func:`log_pfa_tree`.
        n_tests: "total" (the paper: N_T for every region) or "by-area" (N(r) for a region of r cells).
        quantile: of chi2_1 from which z^2 counts, for the binomial tail.
        threads: worker threads, default one per core; the result does not depend on it.
        background: one model of normal energies per scale; "gaussian", or None, is the paper's,
            independent standard normals.

    Returns:
        (B, H, W) float32, log10.

    Raises:
        ValueError: an empty list, wrong or empty shapes, different batch sizes, values that are not finite.

    log NFA = log N_T + min over scales of the bilinearly resized log P (the paper, sections on the NFA).

    >>> z = np.ones((1, 64, 8, 8), np.float32)
    >>> z[:, :, 2:5, 2:5] = 3
    >>> nfa = log_nfa([z], size=16)
    >>> nfa.shape, bool(nfa[0, 7, 7] < 0), bool(nfa[0, 0, 0] < 0)
    ((1, 16, 16), True, False)
    """
    _check_tail(tail, quantile)
    energy, exceedances = _sums(latents, quantile if tail == "binomial" else None, thread_count(threads))
    channels = [int(z.shape[1]) for z in latents]
    return log_nfa_from_energies(energy, channels, size, tail, n_tests, quantile, threads, background, exceedances)


def log_nfa_from_energies(
    energies: Sequence[ArrayLike],
    dof: Sequence[int],
    size: int | tuple[int, int] = 256,
    tail: TailName = "chernoff",
    n_tests: TestsName = "total",
    quantile: float = 0.9,
    threads: int | None = None,
    background: Sequence[Background] | Literal["gaussian"] | None = "gaussian",
    exceedances: Sequence[ArrayLike] | None = None,
) -> NDArray[np.float32]:
    """Compute log_nfa from energies: per scale (B, H, W), of `dof` channels each; see :func:`log_nfa`.

    Args:
        energies: as :func:`energies` returns them.
        dof: channels per scale.
        size, tail, n_tests, quantile, threads, background: as in :func:`log_nfa`.
        exceedances: per scale (B, H, W) channels with z^2 >= tau; only and always for the binomial tail.

    Returns:
        (B, H, W) float32, log10.

    >>> log_nfa_from_energies([np.full((2, 4, 4), 16.0)], dof=[16], size=(4, 6)).shape
    (2, 4, 6)
    """
    arrays = as_scales(energies, len(dof), "dof")
    for channels in dof:
        if operator.index(channels) < 1:
            raise ValueError(f"dof must be at least 1, got {channels}")
    _check_tail(tail, quantile)
    if n_tests not in ("total", "by-area"):
        raise ValueError(f"unknown n_tests {n_tests!r}; choose 'total' or 'by-area'")
    if background is None or background == "gaussian":
        background = [Background(1.0, float(channels), 1.0) for channels in dof]
    elif isinstance(background, str):
        raise ValueError(f"background must be 'gaussian' or one Background per scale, got {background!r}")
    if len(background) != len(arrays):
        raise ValueError(f"one Background per scale is needed, got {len(background)} for {len(arrays)} scales")
    if (exceedances is not None) != (tail == "binomial"):
        raise ValueError(f"exceedances go with tail='binomial' and only with it, got tail={tail!r}")
    counts = None
    if exceedances is not None:
        if len(exceedances) != len(arrays):
            raise ValueError(f"one array of exceedances per scale is needed, got {len(exceedances)} for {len(arrays)}")
        counts = [as_counts(x, e.shape, c) for x, e, c in zip(exceedances, arrays, dof, strict=True)]
    models = [
        _core.Background(b.scale, b.dof, b.correlation_area, channels, 1 - quantile)
        for b, channels in zip(background, dof, strict=True)
    ]
    return _core.log_nfa(
        arrays,
        counts,
        models,
        *output_size(size),
        _TAILS[tail],
        n_tests == "by-area",
        thread_count(threads),
    )


def joint_energy(
    energies: Sequence[ArrayLike], background: Sequence[Background], threads: int | None = None
) -> NDArray[np.float32]:
    """Compute one energy for each cell of the finest grid, from all scales.

    Each scale's energies divided by their mean on normal parts (``scale * dof``), resized bilinearly
    (align_corners=False) to the finest grid, summed over scales, and averaged over the 3 x 3 neighbourhood, at the
    border over what there is of it.

    Args:
        energies: per scale (B, h, w), finest first.
        background: one a scale.
        threads: worker threads, default one per core; the result does not depend on it.

    Returns:
        (B, h, w) of the finest scale, float32; about the number of scales on normal parts.

    Raises:
        ValueError: no scales, wrong or empty shapes, different batch sizes, values that are not finite.

    >>> joint_energy([np.full((1, 4, 4), 6.0)], [Background(1.5, 4.0, 1.0)])[0, 0]
    array([1., 1., 1., 1.], dtype=float32)
    """
    arrays = as_scales(energies, len(background), "Background")
    models = [_core.Background(b.scale, b.dof, b.correlation_area, b.dof, 0.1) for b in background]
    return _core.joint_energy(arrays, models, thread_count(threads))


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
        ValueError: as :func:`joint_energy`, and a dof that is not positive.

    >>> anomaly_map_from_energies([np.zeros((1, 2, 2))], [4], size=3)[0, 0]
    array([0., 0., 0.], dtype=float32)
    """
    arrays = as_scales(energies, len(dof), "dof")
    return _core.anomaly_map(arrays, list(dof), *output_size(size), thread_count(threads))


def resized_mean(maps: Sequence[ArrayLike], size: int | tuple[int, int] = 256) -> NDArray[np.float32]:
    """Compute the mean over scales of maps resized bilinearly (align_corners=False).

    Args:
        maps: per scale (B, h, w).
        size: of the result: a side or (H, W).

    Returns:
        (B, H, W) float32.

    Raises:
        ValueError: as :func:`joint_energy`.

    >>> resized_mean([np.full((1, 2, 2), 3.0), np.full((1, 1, 1), 1.0)], size=3)[0, 0]
    array([2., 2., 2.], dtype=float32)
    """
    arrays = as_scales(maps, len(maps), "map")
    mean = np.zeros((len(arrays[0]), *output_size(size)), np.float32)
    for array in arrays:
        mean += _core.resize_bilinear(array, *mean.shape[1:], 0)
    mean /= np.float32(len(arrays))
    return mean


def log_nfa_block(
    latents: Sequence[Any],
    size: int | tuple[int, int] = 256,
    window: int = 5,
    quantile: float = 0.9,
    continuous: bool = False,
    threads: int | None = None,
) -> NDArray[np.float64]:
    """Compute log10 NFA by the older block test (arXiv 2211.12353 v1), from counts of z^2 >= tau in square windows.

    Args:
        latents: per scale, finest first, (B, C, H, W) arrays or tensors of float16, float32 or float64.
        size: of the result: a side or (H, W).
        window: side of the window at the finest scale; half of it at the next, and so on, at least 3.
        quantile: of chi2_1 that tau is.
        continuous: extend the binomial to real counts instead of rounding the mean count of a channel down.
        threads: worker threads, default one per core; the result does not depend on it.

    Returns:
        (B, H, W) float64, log10: sum over scales of log10 P(Bin(n, 1 - quantile) > count / C), n = (2h+1)^2,
        resized bicubically with align_corners=True, plus log10 of the number of cells of all scales.

    Raises:
        ValueError: as :func:`log_nfa`, except that any finite latent is counted, also one whose square overflows;
            and a map not larger than half the window.

    Tails are computed in float64 and resized in float32: to 1e-6 of the map's largest value.

    >>> log_nfa_block([np.zeros((1, 4, 8, 8), np.float32)], size=8).round(2).max()
    np.float64(1.77)
    """
    _check_tail("binomial", quantile)
    if operator.index(window) < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    height, width = output_size(size)
    counts = _exceedances(latents, quantile, thread_count(threads))
    channels = [int(z.shape[1]) for z in latents]
    return _core.log_nfa_block(counts, channels, height, width, window, 1 - quantile, continuous, thread_count(threads))


def regions(mask: ArrayLike, log_nfa: ArrayLike, anomaly_map: ArrayLike) -> list[Region]:
    """List the 4-connected regions of a mask, lowest log_nfa first.

    Args:
        mask: (H, W), true inside.
        log_nfa: (H, W), log10; a region keeps its smallest.
        anomaly_map: (H, W) scores; a region keeps its largest.

    Raises:
        ValueError: not 2-D, empty, of different shapes, or NaN inside the mask.

    >>> regions([[1, 0]], [[-3.0, 2.0]], [[0.9, 0.1]])
    [Region(area=1, bbox=(0, 0, 1, 1), centroid=(0.0, 0.0), log_nfa=-3.0, score=0.9)]
    """
    inside, nfa, score = as_mask(mask), np.asarray(log_nfa), np.asarray(anomaly_map)
    if nfa.shape != inside.shape or score.shape != inside.shape:
        raise ValueError(
            f"mask {inside.shape}, log_nfa {nfa.shape} and anomaly_map {score.shape} must have the same shape"
        )
    dtype = np.float32 if nfa.dtype == score.dtype == np.float32 else np.float64
    found = _core.regions(inside, contiguous(nfa, dtype), contiguous(score, dtype))
    return [Region(*values) for values in found]


def _elementwise(function: Any, *arguments: ArrayLike) -> NDArray[np.float64]:
    arrays = np.broadcast_arrays(*(np.asarray(a, np.float64) for a in arguments))
    flat: NDArray[np.float64] = function(*(np.ascontiguousarray(a).ravel() for a in arrays))
    return flat.reshape(arrays[0].shape)


def _sums(
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


def _exceedances(latents: Sequence[Any], quantile: float, threads: int) -> list[NDArray[np.int32]]:
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


def _check_tail(tail: str, quantile: float) -> None:
    if tail not in _TAILS:
        raise ValueError(f"unknown tail {tail!r}; choose one of {', '.join(_TAILS)}")
    if not 0 < quantile < 1:
        raise ValueError(f"quantile must lie between 0 and 1, got {quantile}")
