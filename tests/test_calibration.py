"""Background model and conformal shift: parameters recovered, the promise kept on new images."""

import numpy as np
import pytest

from uflow.calibration import conformal_shift, fit_background, supported_alpha


def test_background_recovers_a_scaled_chi_square() -> None:
    energies = 1.7 * np.random.default_rng(0).chisquare(23.0, size=(50, 40, 40))
    background = fit_background(energies)
    assert background.scale == pytest.approx(1.7, rel=0.02)
    assert background.dof == pytest.approx(23.0, rel=0.02)
    assert background.correlation_area == 1.0


def test_constant_energies_are_refused() -> None:
    with pytest.raises(ValueError, match="do not vary"):
        fit_background(np.full((3, 4, 4), 2.0))
    with pytest.raises(ValueError, match="not finite: mean nan"):
        fit_background(np.full((3, 4, 4), np.nan))


def test_shift_is_the_least_that_keeps_the_promise() -> None:
    minima = np.random.default_rng(1).normal(size=99)
    for alpha in (0.01, 0.05, 0.2, 0.5):
        shift = conformal_shift(minima, alpha)
        assert (np.sum(minima + shift < 0) + 1) / 100 <= alpha + 1e-12
        smaller = shift - 1e-9
        assert (np.sum(minima + smaller < 0) + 1) / 100 > alpha


def test_share_of_new_images_flagged_is_at_most_alpha() -> None:
    rng = np.random.default_rng(2)
    for alpha in (0.05, 0.2):
        flagged = []
        for _ in range(3000):
            minima = rng.standard_t(3, size=41)
            flagged.append(minima[0] + conformal_shift(minima[1:], alpha) < 0)
        assert np.mean(flagged) <= alpha + 2 * np.sqrt(alpha / 3000)
        assert np.mean(flagged) >= alpha / 3  # and the promise is used, not avoided


def test_too_few_images_support_a_larger_alpha_only() -> None:
    assert supported_alpha(9) == pytest.approx(0.1)
    assert conformal_shift([2.0, -1.0, 5.0], alpha=0.05) == 1.0  # flags none of the three


@pytest.mark.parametrize(("minima", "alpha"), [([], 0.1), ([1.0, np.nan], 0.1), ([[1.0]], 0.1), ([1.0, 2.0], 1.0)])
def test_bad_minima_and_alpha_are_refused(minima: list, alpha: float) -> None:
    with pytest.raises(ValueError, match=r"one finite number for each image|alpha is a probability"):
        conformal_shift(minima, alpha)
