"""log10 tails of a million values against scipy, of the continuous block test against mpmath."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import mpmath
import numpy as np
import scipy.special
import scipy.stats
from numpy.typing import NDArray
from race import Contest, at_least

from uflow import _core_testing
from uflow.segmentation import log10_binomial_sf, log10_chi2_sf

Array = NDArray[np.float64]
LN10 = math.log(10)
DEGREES: dict[str, list[float]] = {"816": [816], "192": [192], "59 to 816": [59, 76, 112, 160, 192, 816]}
BINOMIAL = {  # smallest and largest n, and what it is a multiple of
    "816 channels, n to 639744": (816, 639744, 816),
    "n from 20 to 100": (20, 100, 1),
    "n from 20 to 10^7": (20, 10**7, 1),
}


def contests(quick: bool) -> Iterator[Contest]:
    """Where scipy is finite (elsewhere the tests compare with mpmath), and the block test's table."""
    count = 20_000 if quick else 1_000_000
    for dofs, values in DEGREES.items():
        yield chi_square(*chi_square_values(values, count), f"{dofs} degrees of freedom")
    for kind in BINOMIAL:
        yield binomial(*binomial_values(kind, count), kind)
    for cells, channels in ((25, 816), (9, 192)):
        yield continuous_block_tail(cells, channels, 5 if quick else 20)


def agree_with_scipy(own: Array, *theirs: Array) -> None:
    """scipy takes the log of a probability: near 1 its log keeps only the absolute error of the probability."""
    for natural in theirs:
        assert np.isfinite(natural).all()
        np.testing.assert_allclose(own, natural / LN10, rtol=1e-9, atol=1e-12)


def chi_square_values(dofs: list[float], count: int) -> tuple[Array, Array]:
    """Mean energies t of 0.6 to 2.2 times the degrees of freedom: where scipy is finite, as almost all cells are."""
    rng = np.random.default_rng(0)
    dof = rng.choice(np.asarray(dofs, float), count)
    return dof * rng.uniform(0.6, 2.2, count), dof


def chi_square(x: Array, dof: Array, case: str) -> Contest:
    """scipy's function, and the one below it, without its checks."""
    text = "chi-square tail: times faster than scipy"
    contestants = {
        "uflow": lambda: log10_chi2_sf(x, dof),
        "scipy.stats.chi2.logsf": lambda: scipy.stats.chi2.logsf(x, dof),
        "log(scipy.special.chdtrc)": lambda: np.log(scipy.special.chdtrc(dof, x)),
    }
    return Contest("chi-square tail", case, contestants, agree_with_scipy, [at_least(10, text, "scipy.stats")])


def binomial_values(kind: str, count: int) -> tuple[Array, Array, Array]:
    """n uniform (over a range beyond 1000 times: its logarithm) and k from 5 deviations below to 30 above the mean."""
    rng = np.random.default_rng(0)
    low, high, step = BINOMIAL[kind]
    if high > 1000 * low:
        n = np.floor(np.exp(rng.uniform(np.log(low), np.log(high), count)))
    else:
        n = step * rng.integers(low // step, high // step + 1, count).astype(float)
    k = np.floor(0.1 * n + rng.uniform(-5, 30, count) * np.sqrt(0.09 * n))
    return np.clip(k, 1, n), n, np.full(count, 0.1)


def binomial(k: Array, n: Array, p: Array, case: str) -> Contest:
    """scipy's function, and the one below it, without its checks."""
    text = "binomial tail: times faster than scipy"
    contestants = {
        "uflow": lambda: log10_binomial_sf(k, n, p),
        "scipy.stats.binom.logsf": lambda: scipy.stats.binom.logsf(k - 1, n, p),
        "log(scipy.special.betainc)": lambda: np.log(scipy.special.betainc(k, n - k + 1, p)),
    }
    return Contest("binomial tail", case, contestants, agree_with_scipy, [at_least(10, text, "scipy.stats")])


def continuous_block_tail(cells: int, channels: int, count: int) -> Contest:
    """uflow makes the table of all counts that the block test reads; mpmath some, in 15 digits; times per value."""
    counts = np.linspace(0, cells * channels - 1, count).astype(int)
    text = "continuous block tail: over mpmath"
    contestants = {
        "uflow": lambda: _core_testing.block_tail_table(cells, channels, 0.1, True),
        "mpmath.quad": lambda: [continuous_tail(c / channels, cells, 0.1) for c in counts],
    }
    return Contest(
        "continuous block tail",
        f"{cells} cells of {channels} channels",
        contestants,
        lambda table, theirs: np.testing.assert_allclose(table[counts], theirs, rtol=1e-9, atol=1e-9),
        [at_least(500, text)],
        work=(cells * channels + 1, count),
        unit="value",
    )


def continuous_tail(x: float, n: int, p: float) -> float:
    """log10 of the integral from x to n of Gamma(n+1) / (Gamma(t+1) Gamma(n-t+1)) p^t (1-p)^(n-t), by quadrature."""

    def density(t: Any) -> Any:
        return mpmath.binomial(n, t) * p**t * (1 - p) ** (n - t)

    high = density(max(x, n * p))  # quad stops at an absolute error: bring the integrand near 1
    return float(mpmath.log10(high * mpmath.quad(lambda t: density(t) / high, [x, min(x + 5, n), n])))
