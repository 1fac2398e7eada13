"""Tails of probability, far below what a float can hold, and the number of tests. All logs are log10."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from ..arrays import MAX_INT32


def number_of_tests(sizes: Sequence[int]) -> float:
    """Compute log10 N_T, N_T = sum_l n_l sum_{r=1..n_l} a b^r / r, the number of candidate regions of all scales.

    Args:
        sizes: number of cells n_l = H_l * W_l per scale.

    a b^r / r counts the polyominoes of r cells, a = 0.316915, b = 4.062570 (the paper, section on the number of tests).

    >>> round(number_of_tests([784, 196]), 5)
    476.92371
    """
    counts = [operator.index(n) for n in sizes]
    if max(counts, default=0) > MAX_INT32:
        raise ValueError(f"a scale has at most 2^31 - 1 cells, got {max(counts)}")
    return _core.log10_number_of_tests(counts)


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


def _elementwise(function: Any, *arguments: ArrayLike) -> NDArray[np.float64]:
    arrays = np.broadcast_arrays(*(np.asarray(a, np.float64) for a in arguments))
    flat: NDArray[np.float64] = function(*(np.ascontiguousarray(a).ravel() for a in arrays))
    return flat.reshape(arrays[0].shape)
