"""The extension's log10 tails and numbers of tests against scipy and mpmath: relative error of the log <= 1e-10."""

import math

import mpmath
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from uflow import _core, _core_testing, segmentation

Array = NDArray[np.float64]
TOLERANCE = 1e-10
DIGITS = 40
DOFS = [0.5, 1.0, 1.5, 2.0, 3.0, 10.0, 23.9, 24.0, 59.0, 192.0, 816.0, 3000.0, 1e5]


@pytest.fixture(autouse=True)
def _precision():
    with mpmath.workdps(DIGITS):
        yield


def chi2(x, dof) -> Array:
    x, dof = np.broadcast_arrays(np.asarray(x, float), np.asarray(dof, float))
    return _core.log10_chi2_sf(np.ascontiguousarray(np.atleast_1d(x)), np.ascontiguousarray(np.atleast_1d(dof)))


def chernoff(t, dof, guarded) -> Array:
    t, dof = np.broadcast_arrays(np.asarray(t, float), np.asarray(dof, float))
    t, dof = np.ascontiguousarray(np.atleast_1d(t)), np.ascontiguousarray(np.atleast_1d(dof))
    return _core_testing.log10_chi2_chernoff(t, dof, guarded)


def binomial(k, n, p) -> Array:
    arrays = np.broadcast_arrays(*(np.asarray(v, float) for v in (k, n, p)))
    return _core.log10_binomial_sf(*(np.ascontiguousarray(np.atleast_1d(v)) for v in arrays))


def series(first, ratios) -> mpmath.mpf:
    """first * (1 + r1 + r1 r2 + ...), summed until the terms no longer count."""
    term = total = mpmath.mpf(1)
    for ratio in ratios:
        term *= ratio
        total += term
        if term < total * mpmath.mpf(10) ** -DIGITS:
            break
    return first * total


def chi2_reference(x: float, dof: float) -> mpmath.mpf:
    """log10 Q(a, y) with sums of positive terms only, so that every digit counts (DLMF 8.7.1 below a, 8.8.2 above)."""
    a, y = mpmath.mpf(dof) / 2, mpmath.mpf(x) / 2
    if y <= a:
        first = mpmath.exp(a * mpmath.log(y) - y - mpmath.loggamma(a + 1))
        return mpmath.log1p(-series(first, (y / (a + n) for n in range(1, 10**6)))) / mpmath.log(10)
    steps = max(math.ceil(dof / 2) - 1, 0)  # down to a - steps in (0, 1], whose tail mpmath has
    rest = a - steps
    total = mpmath.gammainc(rest, y, mpmath.inf) / mpmath.gamma(rest)
    if steps:
        first = mpmath.exp((a - 1) * mpmath.log(y) - y - mpmath.loggamma(a))
        total += series(first, ((a - i) / y for i in range(1, steps)))
    return mpmath.log10(total)


def binomial_reference(k: int, n: int, p: float) -> mpmath.mpf:
    """log10 of the plain sum of the tail that does not hold the mean."""
    p = mpmath.mpf(p)

    def upper(k: int, p: mpmath.mpf, q: mpmath.mpf) -> mpmath.mpf:
        log_choose = mpmath.loggamma(n + 1) - mpmath.loggamma(k + 1) - mpmath.loggamma(n - k + 1)
        first = mpmath.exp(log_choose + k * mpmath.log(p) + (n - k) * mpmath.log(q))
        return series(first, ((n - j) * p / ((j + 1) * q) for j in range(k, n)))

    if k > n * p:
        return mpmath.log10(upper(k, p, 1 - p))
    return mpmath.log1p(-upper(n - k + 1, 1 - p, p)) / mpmath.log(10)


def relative_error(value: float, reference: mpmath.mpf) -> float:
    # Logs of probabilities within 1e-290 of 1 are compared absolutely: they reach the denormal numbers.
    return float(abs(value - reference) / max(abs(reference), mpmath.mpf("1e-290")))


def log10_of_scipy(upper: Array, lower: Array) -> Array:
    """log10 of an upper tail that scipy gives with its complement, of which the smaller one has all its digits."""
    small = upper < 0.5
    return np.where(small, np.log(np.where(small, upper, 1.0)), np.log1p(-np.where(small, 0.0, lower))) / np.log(10)


def test_reference_is_mpmaths_own_gammainc() -> None:
    for x, dof in [(0.3, 0.5), (40.0, 7.3), (700.0, 816.0), (1400.0, 816.0)]:
        own = mpmath.log10(mpmath.gammainc(mpmath.mpf(dof) / 2, mpmath.mpf(x) / 2, mpmath.inf, regularized=True))
        assert abs(chi2_reference(x, dof) / own - 1) < 1e-25


def test_reference_is_mpmaths_own_betainc() -> None:
    for k, n, p in [(3, 10, 0.1), (1, 10, 0.3), (500, 1000, 0.1), (60, 1000, 0.1)]:
        own = mpmath.log10(mpmath.betainc(k, n - k + 1, 0, p, regularized=True))
        assert abs(binomial_reference(k, n, p) / own - 1) < 1e-25


@pytest.mark.parametrize("dof", DOFS)
def test_chi2_against_mpmath(dof: float) -> None:
    spread = math.sqrt(2 / dof)
    ts = [1e-8, 1e-3, 0.05, 0.2, 0.6, 0.9, 1.0, 1.1, 1.6, 4.0, 20.0, 100.0]
    ts += [0.39, 0.41, 0.69, 0.71, 1.29, 1.31, 1.99, 2.01]  # beside every switch of method
    ts += [1 + z * spread for z in (-8, -3, -1, -0.1, 0.1, 1, 3, 8) if z * spread > -1]
    values = chi2(dof * np.array(ts), dof)
    for t, value in zip(ts, values, strict=True):
        assert relative_error(value, chi2_reference(dof * t, dof)) <= TOLERANCE, t


def test_chi2_far_below_the_smallest_double() -> None:
    # -7822, -99 700 and -2 billion: probabilities of 1e-5000 and beyond.
    for x, dof in [(40000.0, 816.0), (24000.0, 192.0), (460000.0, 816.0), (1e10, 1e5), (1e10, 0.5)]:
        value = chi2(x, dof)[0]
        assert value < -2000
        assert relative_error(value, chi2_reference(x, dof)) <= TOLERANCE
    assert chi2(40000.0, 816.0)[0] < -5000


@pytest.mark.parametrize("dof", [d for d in DOFS if d <= 3000])
def test_chi2_against_scipy(dof: float) -> None:
    x = scipy.stats.chi2.isf(np.logspace(-280, -0.01, 300), dof)
    expected = log10_of_scipy(scipy.special.chdtrc(dof, x), scipy.special.chdtr(dof, x))
    np.testing.assert_allclose(chi2(x, dof), expected, rtol=TOLERANCE)


# Standard deviations from the mean at which the number of terms of the fraction changes, and where Temme's form ends.
SEAMS = [3.0, 3.57, 4.31, 5.85, 7.69, 14.7]


@pytest.mark.parametrize("dof", [1.9, 2.1, 4.0, 6.9, 7.1, 17.9, 18.1, 79.9, 80.1, 300.0, 2000.0])
def test_chi2_beside_the_seams(dof: float) -> None:
    spread = math.sqrt(2 * dof)
    x = [dof + sign * z * spread * (1 + step) for sign in (-1, 1) for z in SEAMS for step in (-0.003, 0.003)]
    x = np.array([v for v in [*x, 1.99, 2.01, 7.99, 8.01, 27.9, 28.1] if v > 0])
    for at, value in zip(x, chi2(x, dof), strict=True):
        assert relative_error(value, chi2_reference(at, dof)) <= TOLERANCE, at


@pytest.mark.parametrize(("n", "p"), [(60, 0.1), (440, 0.1), (450, 0.1), (5000, 0.1), (5000, 0.93), (100000, 0.001)])
def test_binomial_beside_the_seams(n: int, p: float) -> None:
    mean, spread = n * p, math.sqrt(n * p * (1 - p))
    ks = {round(mean + sign * z * spread) + step for sign in (-1, 1) for z in SEAMS for step in (-1, 0, 1)}
    ks = sorted(k for k in ks if 1 <= k <= n)
    for k, value in zip(ks, binomial(ks, n, p), strict=True):
        assert relative_error(value, binomial_reference(k, n, p)) <= TOLERANCE, k


def test_random_chi2_against_mpmath() -> None:
    rng = np.random.default_rng(0)
    dof = np.exp(rng.uniform(np.log(0.5), np.log(3000), 400))
    dof[::2] = np.ceil(dof[::2])
    x = dof * np.exp(rng.uniform(-2, 2, 400))
    for at, d, value in zip(x, dof, chi2(x, dof), strict=True):
        assert relative_error(value, chi2_reference(at, d)) <= TOLERANCE, (at, d)


def test_random_binomial_against_mpmath() -> None:
    rng = np.random.default_rng(0)
    n = np.ceil(np.exp(rng.uniform(0, np.log(1e5), 400)))
    p = np.where(rng.random(400) < 0.5, 0.1, rng.uniform(0.001, 0.999, 400))
    k = np.clip(np.ceil(n * p * rng.uniform(0.2, 4, 400)), 1, n)
    for at, trials, chance, value in zip(k, n, p, binomial(k, n, p), strict=True):
        assert relative_error(value, binomial_reference(int(at), int(trials), chance)) <= TOLERANCE, (
            at,
            trials,
            chance,
        )


def test_one_law_and_many_counts_is_what_single_counts_are() -> None:
    k = np.random.default_rng(0).integers(-2, 203, 5000).astype(float)
    single = np.array([binomial(v, 200, 0.1)[0] for v in range(-2, 203)])
    np.testing.assert_array_equal(binomial(k, 200, 0.1), single[k.astype(int) + 2])


def test_chi2_limits() -> None:
    np.testing.assert_array_equal(chi2([0.0, -1.0, 1e-300, np.inf], 816.0), [0.0, 0.0, 0.0, -np.inf])
    assert np.isnan(chi2(np.nan, 5.0))[0]


def test_chernoff_is_its_formula() -> None:
    for t in [1e-3, 0.5, 0.69, 1 - 1e-9, 1 + 1e-9, 1.29, 1.31, 2.0, 50.0, 1e5]:
        t_ = mpmath.mpf(t)
        expected = -96 * (t_ - 1 - mpmath.log(t_)) / mpmath.log(10)
        assert relative_error(chernoff(t, 192.0, False)[0], expected) <= TOLERANCE
        assert relative_error(chernoff(t, 192.0, True)[0], expected if t > 1 else mpmath.mpf(0)) <= TOLERANCE
    np.testing.assert_array_equal(chernoff([0.0, -1.0, 1.0], 8.0, False), [-np.inf, -np.inf, 0.0])
    np.testing.assert_array_equal(chernoff([0.0, -1.0, 1.0], 8.0, True), 0.0)


def test_unguarded_chernoff_is_no_bound_below_the_mean() -> None:
    assert chernoff(0.7, 816.0, False)[0] < -10
    assert -1e-6 < chi2(0.7 * 816, 816.0)[0] < 0
    assert chernoff(0.7, 816.0, True)[0] == 0


@pytest.mark.parametrize("p", [1e-3, 1 - 0.9, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("n", [1, 2, 7, 50, 816, 40800, 10**6, 10**7])
def test_binomial_against_mpmath(n: int, p: float) -> None:
    mean, spread = n * p, math.sqrt(n * p * (1 - p))
    ks = {1, n // 2, n - 1, n, int(mean), int(mean) + 1, int(mean + 20 * spread), int(mean * 1.5), int(mean * 5)}
    if n < 10**6:  # near the mean the reference sums thousands of terms
        ks |= {int(mean + z * spread) for z in (-30, -3, -1, 1, 3)}
    else:
        ks -= {int(mean), int(mean) + 1}
        ks |= {int(mean + 6 * spread)}
    ks = sorted(k for k in ks if 1 <= k <= n)
    for k, value in zip(ks, binomial(ks, n, p), strict=True):
        assert relative_error(value, binomial_reference(k, n, p)) <= TOLERANCE, k


def test_binomial_far_below_the_smallest_double() -> None:
    value = binomial(20000, 40800, 0.1)[0]
    assert value < -5000
    assert relative_error(value, binomial_reference(20000, 40800, 0.1)) <= TOLERANCE
    assert binomial(10**9, 10**9, 0.1)[0] == pytest.approx(-(10**9), rel=1e-12)


@pytest.mark.parametrize(("n", "p"), [(10, 0.1), (816, 0.1), (40800, 0.1), (1000, 0.7)])
def test_binomial_against_scipy(n: int, p: float) -> None:
    k = np.unique(np.linspace(1, n, 500).astype(int)).astype(float)
    upper, lower = scipy.stats.binom.sf(k - 1, n, p), scipy.stats.binom.cdf(k - 1, n, p)
    keep = (upper > 1e-280) & (lower > 1e-280)
    assert keep.sum() >= min(n, 20) - 1
    expected = log10_of_scipy(upper[keep], lower[keep])
    np.testing.assert_allclose(binomial(k, n, p)[keep], expected, rtol=TOLERANCE)


def test_binomial_limits() -> None:
    values = binomial([0, -1, 11, 1, 10, 0, 1], [10, 10, 10, 10, 10, 0, 0], [0.1, 0.1, 0.1, 0, 1, 0.1, 0.1])
    np.testing.assert_array_equal(values, [0, 0, -np.inf, -np.inf, 0, 0, -np.inf])
    assert np.isnan(binomial(1, 10, 1.5))[0]


dofs = st.floats(0.5, 1e5)
ratios = st.one_of(st.floats(0, 3), st.floats(0, 100))
SLACK = 1 + 1e-11  # neighbouring arguments may differ in the last digits only


@given(dofs, st.lists(ratios, min_size=2, max_size=20))
@settings(max_examples=200, deadline=None)
def test_chi2_never_rises_with_x(dof: float, ts: list[float]) -> None:
    values = chi2(dof * np.sort(ts), dof)
    assert np.all(values <= 0)
    assert np.all(values[1:] <= values[:-1] / SLACK)


@given(st.floats(1e-3, 1e5), st.lists(dofs, min_size=2, max_size=20))
@settings(max_examples=200, deadline=None)
def test_chi2_never_falls_with_dof(x: float, dofs: list[float]) -> None:
    values = chi2(x, np.sort(dofs))
    assert np.all(values[1:] >= values[:-1] * SLACK)


@given(dofs, ratios)
@settings(max_examples=200, deadline=None)
def test_guarded_chernoff_bounds_the_exact_tail(dof: float, t: float) -> None:
    assert chi2(t * dof, dof)[0] <= chernoff(t, dof, True)[0] / SLACK
    assert chernoff(t, dof, True)[0] <= 0


@given(st.integers(2, 10**6), st.floats(1e-3, 0.999), st.data())
@settings(max_examples=200, deadline=None)
def test_binomial_never_rises_with_k_nor_falls_with_n(n: int, p: float, data: st.DataObject) -> None:
    ks = np.sort(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=20)))
    values = binomial(ks, n, p)
    assert np.all(values <= 0)
    assert np.all(values[1:] <= values[:-1] / SLACK)
    assert np.all(binomial(ks, n + 1, p) >= values * SLACK)


@given(st.integers(1, 10**5), st.floats(1e-3, 0.999), st.data())
@settings(max_examples=100, deadline=None)
def test_binomial_tails_add_up_to_one(n: int, p: float, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n))
    both = 10 ** binomial(k, n, p)[0] + 10 ** binomial(n - k + 1, n, 1 - p)[0]
    assert both == pytest.approx(1, abs=1e-11)


def test_inputs_unchanged() -> None:
    x, dof = np.array([1.0, 900.0]), np.array([3.0, 816.0])
    _core.log10_chi2_sf(x, dof)
    np.testing.assert_array_equal(x, [1.0, 900.0])
    np.testing.assert_array_equal(dof, [3.0, 816.0])


@pytest.mark.parametrize(
    ("cells", "expected", "digits"),
    [([784, 196], 476.92371, 5), ([784], 476.92371, 5), ([196], 118.94935, 5), ([4096, 1024, 256], 2493.2720, 4)],
)
def test_number_of_tests(cells: list[int], expected: float, digits: int) -> None:
    value = _core.log10_number_of_tests(cells)
    assert round(value, digits) == expected
    a, b = mpmath.mpf("0.316915"), mpmath.mpf("4.062570")
    total = sum(n * sum(a * b**r / r for r in range(1, n + 1)) for n in cells)
    assert relative_error(value, mpmath.log10(total)) <= 1e-14


def log10_chi2_sf_of_few(x: float, dof: float) -> mpmath.mpf:
    """By the power series of P (DLMF 8.7.1) or the continued fraction of Q (8.9.2), with digits for 1 - P."""
    with mpmath.workdps(750):
        a, y = mpmath.mpf(dof) / 2, mpmath.mpf(x) / 2
        if y < 30:
            term, series = mpmath.mpf(1), 1 / a
            for n in range(1, 1000):
                term *= -y / n
                series += term / (a + n)
                if abs(term) < mpmath.mpf(10) ** -740:
                    break
            return mpmath.log10(1 - y**a * series / mpmath.gamma(a))
    with mpmath.workdps(40):
        below = y + 401 - a
        for n in range(200, 0, -1):
            below = y + 2 * n - 1 - a - n * (n - a) / below
        return (a * mpmath.log(y) - y - mpmath.log(below) - mpmath.loggamma(a)) / mpmath.log(10)


@pytest.mark.parametrize("dof", [5e-324, 1e-310, 1e-100, 1e-31, 1e-10, 1e-3, 0.01, 0.05, 0.07, 0.1, 0.2499999, 0.25])
def test_chi2_of_few_degrees(dof: float) -> None:
    x = np.array([1e-300, 1e-100, 1e-5, 0.1, 0.9, 1.9, 1.967, 2.0, 2.1, 2.9999, 3.0001, 4.0, 59.0, 1e3, 1e10, 1e300])
    if dof < 0.25:
        x = np.append(x, [5e-324, 1e-310])
    found = chi2(x, np.full(len(x), dof))
    for value, at in zip(found, x.tolist(), strict=True):
        assert relative_error(value, log10_chi2_sf_of_few(at, dof)) <= 1e-11, at
    assert chi2([0.0, -1.0, np.inf], [dof] * 3).tolist() == [0.0, 0.0, -np.inf]


def test_chi2_falls_with_x_and_grows_with_few_degrees() -> None:
    for dof in (1e-300, 1e-9, 1e-3, 0.1, 0.2499999, 0.25):
        values = chi2(np.geomspace(1e-300, 1e4, 20001), np.full(20001, dof))
        assert (np.diff(values) <= 0).all()
        assert (values <= 0).all()
    for x in (1e-9, 0.5, 1.9, 2.0, 2.9, 3.0, 3.1, 40.0):
        assert (np.diff(chi2(np.full(20001, x), np.geomspace(1e-6, 1, 20001))) > 0).all()


def test_number_of_tests_by_area() -> None:
    a, b = mpmath.mpf("0.316915"), mpmath.mpf("4.062570")
    table = _core.log10_number_of_tests_by_area(784, 2)
    assert table.shape == (785,)
    for area in (1, 2, 100, 784):
        assert relative_error(table[area], mpmath.log10(2 * 784**2 * a * b**area / area)) <= 1e-14


@pytest.mark.parametrize(("n", "channels", "p"), [(9, 1, 1 - 0.9), (25, 4, 1 - 0.9), (25, 48, 0.3), (121, 3, 0.01)])
def test_block_table_against_scipy(n: int, channels: int, p: float) -> None:
    table = _core_testing.block_tail_table(n, channels, p, False)
    assert table.shape == (n * channels + 1,)
    x = np.arange(n * channels) // channels
    np.testing.assert_allclose(table[:-1], scipy.stats.binom.logsf(x, n, p) / np.log(10), rtol=TOLERANCE, atol=1e-15)
    expected = log10_of_scipy(scipy.stats.binom.sf(x, n, p), scipy.stats.binom.cdf(x, n, p))
    np.testing.assert_allclose(table[:-1], expected, rtol=TOLERANCE)  # relative near P = 1 too
    assert table[-1] == table[-2]  # scipy has -inf here


@pytest.mark.parametrize(("n", "channels", "p"), [(9, 1, 1 - 0.9), (25, 4, 1 - 0.9), (25, 48, 0.3), (49, 2, 0.999)])
def test_continuous_block_table_against_mpmath(n: int, channels: int, p: float) -> None:
    table = _core_testing.block_tail_table(n, channels, p, True)
    assert table.shape == (n * channels + 1,)
    assert table[-1] == table[-2]
    p_ = mpmath.mpf(p)

    def density(t: mpmath.mpf) -> mpmath.mpf:
        return mpmath.binomial(n, t) * p_**t * (1 - p_) ** (n - t)

    last = n * channels
    for c in {0, 1, last // 10, last // 3, last // 2, last - channels - 1, last - 1}:
        x = mpmath.mpf(c) / channels
        scale = density(max(x, n * p_))  # quad stops at an absolute error: bring the integrand near 1
        with mpmath.workdps(20):
            integral = mpmath.quad(lambda t: density(t) / scale, [x, *range(math.floor(x) + 1, n + 1)])  # noqa: B023
        expected = mpmath.log10(scale * integral)
        # An integral near 1 has a log near 0, known to the 1e-13 of the integral.
        assert abs(table[c] - expected) <= TOLERANCE * abs(expected) + 1e-13, c


def test_block_table_is_finite_far_below_the_smallest_double() -> None:
    for continuous in (False, True):
        table = _core_testing.block_tail_table(400, 2, 1e-3, continuous)
        assert np.all(np.isfinite(table))
        assert table[-1] < -1190


def test_public_tails_broadcast() -> None:
    x = np.array([[3.0], [700.0]])
    result = segmentation.log10_chi2_sf(x, [1, 2, 3])
    assert result.shape == (2, 3)
    np.testing.assert_allclose(result[0], scipy.stats.chi2.logsf(3, [1, 2, 3]) / np.log(10), rtol=1e-12)
    assert np.isfinite(result).all()
    result = segmentation.log10_binomial_sf([[3], [90]], 100, [0.1, 0.2])
    np.testing.assert_allclose(
        result, scipy.stats.binom.logsf(np.array([[3], [90]]) - 1, 100, [0.1, 0.2]) / np.log(10), rtol=1e-9
    )
    assert segmentation.log10_binomial_sf(1, 2, 0.5).shape == ()
    with pytest.raises(ValueError, match="broadcast"):
        segmentation.log10_chi2_sf([1.0, 2.0], [1.0, 2.0, 3.0])
