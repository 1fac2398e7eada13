"""log10 tails of a million values against scipy, of chosen ones and of the continuous block test against mpmath."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
import pytest
import scipy.special
import scipy.stats
from numpy.typing import NDArray

import reference
from conftest import Race, at_least
from uflow import _core

Array = NDArray[np.float64]
LN10 = math.log(10)
DEGREES: dict[str, list[float]] = {"816": [816], "192": [192], "59 to 816": [59, 76, 112, 160, 192, 816]}


def count_of(quick: bool) -> int:
    return 20_000 if quick else 1_000_000


def assert_logs_equal(ours: Array, theirs: Array) -> None:
    # scipy takes the log of a probability: near 1 its log keeps only the absolute error of the probability
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    assert np.isfinite(theirs).all()


def chi2_values(dofs: list[float], count: int) -> tuple[Array, Array]:
    """Mean energies t of 0.6 to 2.2 times the degrees of freedom: where scipy is finite, as almost all cells are."""
    rng = np.random.default_rng(0)
    dof = rng.choice(np.asarray(dofs, float), count)
    return dof * rng.uniform(0.6, 2.2, count), dof


@pytest.mark.parametrize("dofs", DEGREES)
def test_chi2_scipy(race: Race, quick: bool, dofs: str) -> None:
    x, dof = chi2_values(DEGREES[dofs], count_of(quick))
    assert_logs_equal(_core.log10_chi2_sf(x, dof), scipy.stats.chi2.logsf(x, dof) / LN10)
    race(
        lambda: _core.log10_chi2_sf(x, dof),
        lambda: scipy.stats.chi2.logsf(x, dof),
        at_least(10, "chi-square tail of 10^6 values: times faster than `scipy.stats.chi2.logsf`"),
        group=f"chi-square tail, {dofs} degrees of freedom",
        library="scipy.stats.chi2.logsf",
        kind=f"{dofs} degrees of freedom",
        count=len(x),
    )


@pytest.mark.parametrize("dofs", DEGREES)
def test_chi2_scipy_special(race: Race, quick: bool, dofs: str) -> None:
    """The function below logsf, without its checks: no target, for honesty."""
    x, dof = chi2_values(DEGREES[dofs], count_of(quick))
    race(
        lambda: _core.log10_chi2_sf(x, dof),
        lambda: np.log(scipy.special.chdtrc(dof, x)),
        group=f"chi-square tail, {dofs} degrees of freedom",
        library="log(scipy.special.chdtrc)",
        kind=f"{dofs} degrees of freedom",
        count=len(x),
    )


def test_chi2_mpmath(race: Race, quick: bool) -> None:
    """Where scipy returns -inf."""
    dof = np.repeat([59.0, 192.0, 816.0, 3000.0], 3)
    x = dof * np.tile([30.0, 60.0, 400.0], 4)
    with np.errstate(divide="ignore"):
        assert np.isneginf(scipy.stats.chi2.logsf(x, dof)).all()
    theirs = [reference.log10_chi2_sf(a, b) for a, b in zip(x, dof, strict=True)]
    np.testing.assert_allclose(_core.log10_chi2_sf(x, dof), theirs, rtol=1e-10, atol=0)
    race(
        lambda: _core.log10_chi2_sf(x, dof),
        lambda: [reference.log10_chi2_sf(a, b) for a, b in zip(x, dof, strict=True)],
        group="chi-square tail where scipy is -inf",
        library="mpmath.gammainc, 40 digits",
        kind="where scipy is -inf",
        count=len(x),
    )


BINOMIAL = {  # smallest and largest n, and what it is a multiple of
    "regions of 816 channels, n up to 639744": (816, 639744, 816),
    "n from 20 to 100": (20, 100, 1),
    "n from 20 to 10^7": (20, 10**7, 1),
}


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


@pytest.mark.parametrize("kind", BINOMIAL)
def test_binomial_scipy(race: Race, quick: bool, kind: str) -> None:
    k, n, p = binomial_values(kind, count_of(quick))
    assert_logs_equal(_core.log10_binomial_sf(k, n, p), scipy.stats.binom.logsf(k - 1, n, p) / LN10)
    race(
        lambda: _core.log10_binomial_sf(k, n, p),
        lambda: scipy.stats.binom.logsf(k - 1, n, p),
        at_least(10, "binomial tail of 10^6 values: times faster than `scipy.stats.binom.logsf`"),
        group="binomial tail",
        library="scipy.stats.binom.logsf",
        kind=kind,
        count=len(k),
    )


@pytest.mark.parametrize("kind", BINOMIAL)
def test_binomial_scipy_special(race: Race, quick: bool, kind: str) -> None:
    """The function below logsf, without its checks: no target, for honesty."""
    k, n, p = binomial_values(kind, count_of(quick))
    race(
        lambda: _core.log10_binomial_sf(k, n, p),
        lambda: np.log(scipy.special.betainc(k, n - k + 1, p)),
        group="binomial tail",
        library="log(scipy.special.betainc)",
        kind=kind,
        count=len(k),
    )


def test_binomial_mpmath(race: Race, quick: bool) -> None:
    """Where scipy returns -inf."""
    n = np.repeat([1000.0, 2000.0], 3)
    k = np.floor(n * np.tile([0.7, 0.85, 1.0], 2))
    p = np.full(len(n), 0.1)
    with np.errstate(divide="ignore"):
        assert np.isneginf(scipy.stats.binom.logsf(k - 1, n, p)).all()
    theirs = [reference.log10_binomial_sf(*v) for v in zip(k, n, p, strict=True)]
    np.testing.assert_allclose(_core.log10_binomial_sf(k, n, p), theirs, rtol=1e-10, atol=0)
    race(
        lambda: _core.log10_binomial_sf(k, n, p),
        lambda: [reference.log10_binomial_sf(*v) for v in zip(k, n, p, strict=True)],
        group="binomial tail where scipy is -inf",
        library="mpmath, sum of 40 digits",
        kind="where scipy is -inf",
        count=len(k),
    )


def continuous_tail(x: float, n: int, p: float) -> float:
    """log10 of the integral from x to n of Gamma(n+1) / (Gamma(t+1) Gamma(n-t+1)) p^t (1-p)^(n-t), by quadrature."""
    q = 1 - p

    def density(t: Any) -> Any:
        return mpmath.binomial(n, t) * p**t * q ** (n - t)

    high = density(max(x, n * p))  # quad stops at an absolute error: bring the integrand near 1
    return float(mpmath.log10(high * mpmath.quad(lambda t: density(t) / high, [x, min(x + 5, n), n])))


@pytest.mark.parametrize(("n", "channels"), [(25, 816), (9, 192)])
def test_continuous_block_tail(race: Race, quick: bool, n: int, channels: int) -> None:
    """Ours makes the table of all counts that the block test reads; mpmath some, in 15 digits; times per value."""
    counts = np.linspace(0, n * channels - 1, 5 if quick else 20).astype(int)
    table = _core.block_tail_table(n, channels, 0.1, True)
    theirs = [continuous_tail(c / channels, n, 0.1) for c in counts]
    np.testing.assert_allclose(table[counts], theirs, rtol=1e-9, atol=1e-9)
    race(
        lambda: _core.block_tail_table(n, channels, 0.1, True),
        lambda: [continuous_tail(c / channels, n, 0.1) for c in counts],
        at_least(500, 'block test, "continuous" tail, per value: times faster than quadrature in mpmath'),
        scale=len(counts) / len(table),
        per="value",
        group=f"continuous block tail, {n} cells of {channels} channels",
        library="mpmath.quad",
        kind=f"{n} cells of {channels} channels",
        count=len(counts),
    )
