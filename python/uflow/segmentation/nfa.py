"""Latents, energies or a field -> log10 Number of False Alarms: phase 4 of the method, the a contrario segmentation.

Equations: Tailanian, Pardo, Musé, "U-Flow", JMIV 2024, doi 10.1007/s10851-024-01193-y. All logs are log10.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from ..arrays import (
    as_counts,
    as_scales,
    check_real,
    contiguous,
    output_size,
    thread_count,
    to_numpy,
)
from .laws import AreaLaw, Background
from .maps import count_exceedances, sum_latents

TailName = Literal["exact", "chernoff", "chernoff-unguarded", "binomial"]
TestsName = Literal["total", "by-area"]


_TAILS = {
    "exact": _core.Tail.exact,
    "chernoff": _core.Tail.chernoff,
    "chernoff-unguarded": _core.Tail.chernoff_unguarded,
    "binomial": _core.Tail.binomial,
}


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
    energy, exceedances = sum_latents(latents, quantile if tail == "binomial" else None, thread_count(threads))
    channels = [int(z.shape[1]) for z in latents]
    models = _models(background, channels, 1 - quantile)
    return _log_nfa(energy, exceedances, models, size, tail, n_tests, threads)


def log_nfa_from_energies(
    energies: Sequence[ArrayLike],
    dof: Sequence[int],
    size: int | tuple[int, int] = 256,
    tail: TailName = "chernoff",
    n_tests: TestsName = "total",
    threads: int | None = None,
    background: Sequence[Background] | Literal["gaussian"] | None = "gaussian",
) -> NDArray[np.float32]:
    """Compute log_nfa from energies: per scale (B, H, W), of `dof` channels each; see :func:`log_nfa`.

    Args:
        energies: as :func:`energies` returns them.
        dof: channels per scale.
        size, n_tests, threads, background: as in :func:`log_nfa`.
        tail: all but "binomial", which counts in the latents themselves.

    Returns:
        (B, H, W) float32, log10.

    >>> log_nfa_from_energies([np.full((2, 4, 4), 16.0)], dof=[16], size=(4, 6)).shape
    (2, 4, 6)
    """
    arrays = as_scales(energies, len(dof), "dof")
    for channels in dof:
        if operator.index(channels) < 1:
            raise ValueError(f"dof must be at least 1, got {channels}")
    _check_tail(tail, 0.9)
    if tail == "binomial":
        raise ValueError("the binomial tail counts channels, and needs latents: use log_nfa")
    return _log_nfa(arrays, None, _models(background, dof, 0.1), size, tail, n_tests, threads)


def log_nfa_of_field(
    field: ArrayLike,
    background: Background,
    law: AreaLaw,
    size: int | tuple[int, int] = 256,
    threads: int | None = None,
) -> NDArray[np.float32]:
    """Compute log10 NFA of the regions of one field, by any law of their area.

    A region of a cells at a level of which one cell has the probability p scores
    ``law.effective_area[a] * log10 p + law.log_tests[a]``; p is the exact tail of the background.

    Args:
        field: (B, h, w), the larger the stranger.
        background: of a cell on normal parts.
        law: what a region of each area is worth, for h * w cells.
        size: of the result: a side or (H, W).
        threads: worker threads, default one per core; the result does not depend on it.

    Returns:
        (B, H, W) float32, log10; bilinearly resized.

    Raises:
        ValueError: wrong shapes, or values that are not finite.

    >>> law = AreaLaw.power(16, exponent=0.5)
    >>> log_nfa_of_field(np.ones((1, 4, 4)), Background(0.5, 4.0, 1.0), law, size=4).shape
    (1, 4, 4)
    """
    (array,) = as_scales([field], 1, "field")
    models = _models([background], [1], 0.1)
    return _log_nfa([array], None, models, size, "exact", "by-area", threads, law)


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

    >>> float(log_nfa_block([np.zeros((1, 4, 8, 8), np.float32)], size=8).round(2).max())
    1.77
    """
    _check_tail("binomial", quantile)
    if operator.index(window) < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    height, width = output_size(size)
    counts = count_exceedances(latents, quantile, thread_count(threads))
    channels = [int(z.shape[1]) for z in latents]
    return _core.log_nfa_block(counts, channels, height, width, window, 1 - quantile, continuous, thread_count(threads))


def _models(
    background: Sequence[Background] | Literal["gaussian"] | None, dof: Sequence[int], exceedance: float
) -> list[_core.Background]:
    if background is None or background == "gaussian":
        background = [Background(1.0, float(channels), 1.0) for channels in dof]
    models: Any = background
    if isinstance(models, str) or not isinstance(models, Sequence) or any(type(b) is not Background for b in models):
        raise ValueError(f"background must be 'gaussian' or a list of one Background per scale, got {background!r}")
    if len(models) != len(dof):
        raise ValueError(f"one Background per scale is needed, got {len(models)} for {len(dof)} scales")
    return [
        _core.Background(b.scale, b.dof, b.correlation_area, channels, exceedance)
        for b, channels in zip(models, dof, strict=True)
    ]


def _log_nfa(  # noqa: PLR0913 (the core's own arguments)
    arrays: list[NDArray[np.float32]],
    counts: list[NDArray[np.int32]] | None,
    models: list[_core.Background],
    size: int | tuple[int, int],
    tail: TailName,
    n_tests: TestsName,
    threads: int | None,
    law: AreaLaw | None = None,
) -> NDArray[np.float32]:
    if n_tests not in ("total", "by-area"):
        raise ValueError(f"unknown n_tests {n_tests!r}; choose 'total' or 'by-area'")
    tables = (None, None) if law is None else ([law.effective_area], [law.log_tests])
    return _core.log_nfa(
        arrays, counts, models, *output_size(size), _TAILS[tail], n_tests == "by-area", thread_count(threads), *tables
    )


def _check_tail(tail: str, quantile: float) -> None:
    if tail not in _TAILS:
        raise ValueError(f"unknown tail {tail!r}; choose one of {', '.join(_TAILS)}")
    if not (isinstance(quantile, Real) and 0 < quantile < 1 and 0 < 1 - quantile < 1):  # 1 - 1e-300 is 1
        raise ValueError(f"quantile must lie between 0 and 1, by more than 1e-16, got {quantile!r}")
