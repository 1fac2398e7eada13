"""Background model and conformal shift: parameters recovered, the promise kept on new images."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from uflow import threshold as calibration
from uflow.segmentation import Background
from uflow.threshold import conformal_shift, fit_background, images_needed, joint_energy, supported_alpha


def good_images(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Energies of two scales; some images are noisier than others, and cells beside each other are alike."""
    noise = 1 + 0.2 * rng.standard_exponential((count, 1, 1))
    fine = ndimage.uniform_filter(rng.chisquare(8, size=(count, 12, 12)), (0, 2, 2))
    return [(e * noise).astype(np.float32) for e in (fine, rng.chisquare(30, size=(count, 6, 6)))]


def test_background_recovers_a_scaled_chi_square() -> None:
    energies = 1.7 * np.random.default_rng(0).chisquare(23.0, size=(50, 40, 40))
    background = fit_background(energies)
    assert background.scale == pytest.approx(1.7, rel=0.02)
    assert background.dof == pytest.approx(23.0, rel=0.02)
    assert background.correlation_area == 1.0


def test_one_odd_image_does_not_decide_the_background() -> None:
    energies = np.random.default_rng(0).chisquare(20.0, size=(11, 16, 16))
    background = fit_background(energies)
    energies[4] *= 100
    assert fit_background(energies).scale == pytest.approx(background.scale, rel=0.1)
    assert fit_background(energies).dof == pytest.approx(background.dof, rel=0.1)


SCALES = [Background(2.0, 3.0, 1.0), Background(0.5, 4.0, 1.0), Background(1.1, 90.0, 1.0)]


@pytest.mark.parametrize(
    "shapes", [[(8, 8), (4, 4)], [(9, 14), (4, 7), (2, 3)], [(1, 5)], [(6, 1), (3, 1)], [(2, 2)], [(1, 1)]]
)
def test_joint_energy_is_the_mean_of_3_x_3_of_the_sum_over_scales(shapes: list[tuple[int, int]]) -> None:
    rng = np.random.default_rng(0)
    energies = [rng.chisquare(5, (3, *shape)).astype(np.float32) for shape in shapes]
    before = [e.copy() for e in energies]
    joint = joint_energy(energies, SCALES[: len(shapes)])
    total = sum(
        F.interpolate(torch.from_numpy(e).double()[:, None] / (b.scale * b.dof), shapes[0], mode="bilinear")
        for e, b in zip(energies, SCALES, strict=False)
    )
    expected = F.avg_pool2d(total, 3, stride=1, padding=1, count_include_pad=False)[:, 0].numpy()
    assert joint.dtype == np.float32
    assert joint.shape == (3, *shapes[0])
    np.testing.assert_allclose(joint, expected, rtol=1e-6)  # some float32 roundings, 6e-8 each
    for one, same in zip(energies, before, strict=True):
        np.testing.assert_array_equal(one, same)
    assert (
        joint_energy([e.astype(float) for e in energies], SCALES[: len(shapes)], threads=1).tobytes() == joint.tobytes()
    )


def test_joint_energy_refuses_bad_energies() -> None:
    good = np.ones((1, 4, 4), np.float32)
    with pytest.raises(ValueError, match="one Background per scale is needed and at least one scale, got 1 scales, 2"):
        joint_energy([good], SCALES[:2])
    with pytest.raises(ValueError, match=r"energies must be \(B, H, W\) and not empty, got shape \(4, 4\)"):
        joint_energy([good[0]], SCALES[:1])
    with pytest.raises(ValueError, match="scales differ in batch size"):
        joint_energy([good, np.ones((2, 2, 2))], SCALES[:2])
    with pytest.raises(ValueError, match=r"not finite, at flat index 0 of shape \(1, 4, 4\)"):
        joint_energy([np.where(good.cumsum().reshape(good.shape) == 1, np.nan, good)], SCALES[:1])


def test_shift_is_added_to_log_nfa() -> None:
    energies = good_images(np.random.default_rng(1), 5)
    background, joint, _ = calibration.fit(energies, [(12, 12)] * 5)
    plain = calibration.log_nfa(energies, background, joint, (20, 24))
    assert (
        calibration.log_nfa(energies, background, joint, (20, 24), shift=-1.7).tobytes()
        == (plain + np.float32(-1.7)).tobytes()
    )


def test_what_follows_the_network_needs_no_torch() -> None:
    code = (
        "import sys, numpy as np, uflow.calibration, uflow.scoring\n"
        "energies = [np.random.default_rng(0).chisquare(4, (9, 6, 6)).astype(np.float32)]\n"
        "background, joint, _ = uflow.calibration.fit(energies, [(12, 12)] * 9)\n"
        "uflow.calibration.log_nfa(energies, background, joint, 12)\n"
        "uflow.scoring.anomaly_map([np.zeros((1, 4, 2, 2), np.float32)], 3)\n"
        "print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_an_image_has_no_part_in_the_background_it_is_judged_by() -> None:
    energies = good_images(np.random.default_rng(5), 9)
    background, joint, minima = calibration.fit(energies, [(12, 12)] * 9)
    others = fit_background(joint_energy(energies, background)[1:])
    expected = calibration.log_nfa([e[:1] for e in energies], background, others, (12, 12)).min()
    assert minima[0] == pytest.approx(expected, rel=1e-6)
    assert joint == fit_background(joint_energy(energies, background))
    assert len(minima) == 9


@pytest.mark.parametrize(("count", "alpha"), [(19, 0.05), (19, 0.2), (60, 0.1)])
def test_new_good_images_are_flagged_as_often_as_promised(count: int, alpha: float) -> None:
    """The whole way from energies to the threshold, over many calibrations and new images."""
    rng = np.random.default_rng(count)
    shares = []
    for _ in range(150):
        background, joint, minima = calibration.fit(good_images(rng, count), [(12, 12)] * count)
        lowest = calibration.log_nfa(good_images(rng, 20), background, joint, (12, 12)).min(axis=(1, 2))
        shares.append(np.mean(lowest + conformal_shift(minima, alpha) < 0))
    error = np.std(shares) / np.sqrt(len(shares))
    assert np.mean(shares) <= alpha + 2 * error
    assert np.mean(shares) >= alpha / 2  # and the promise is used, not avoided


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


@pytest.mark.parametrize("alpha", [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5])
def test_images_needed_are_the_fewest_that_support_alpha(alpha: float) -> None:
    needed = images_needed(alpha)
    assert supported_alpha(needed) <= alpha + 1e-12
    assert supported_alpha(needed - 1) > alpha


def test_too_few_images_support_a_larger_alpha_only() -> None:
    assert supported_alpha(9) == pytest.approx(0.1)
    assert conformal_shift([2.0, -1.0, 5.0], alpha=0.05) == 1.0  # flags none of the three


@pytest.mark.parametrize(("minima", "alpha"), [([], 0.1), ([1.0, np.nan], 0.1), ([[1.0]], 0.1), ([1.0, 2.0], 1.0)])
def test_bad_minima_and_alpha_are_refused(minima: list, alpha: float) -> None:
    with pytest.raises(ValueError, match=r"one finite number for each image|alpha is a probability"):
        conformal_shift(minima, alpha)
