"""What good images say about the test: how energies of all scales join, their background, a shift of the threshold.

H0 of the paper (independent standard normal latents) is not exactly true of real latents, so the promise "at most
epsilon false alarms" does not hold by itself. All parts below are learnt from good images only; docs/threshold.md
says how they were chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import segmentation
from .segmentation import Background, joint_energy

__all__ = [
    "check_alpha",
    "conformal_shift",
    "fit",
    "fit_background",
    "images_needed",
    "joint_energy",
    "log_nfa",
    "supported_alpha",
]


def fit_background(energies: Sequence[ArrayLike] | ArrayLike) -> Background:
    """The scaled chi-square that fits the energies of typical normal images at one scale.

    ``e ~ scale * chi2_dof`` by the two first moments, ``scale = var / (2 mean)`` and ``dof = 2 mean^2 / var``
    (Satterthwaite 1946): heavier tails than standard normal latents have. The moments are medians over the images, so
    that one odd image among few does not decide. Cells count as independent (`correlation_area` 1): what their
    correlation does to the number of false alarms is left to the shift, which finds it out.

    Args:
        energies: (N, h, w), or N maps (h, w) of any sizes: of N normal images, ``sum over channels of z^2``.

    Raises:
        ValueError: the energies do not vary, so that nothing can be fitted, or are not finite.

    >>> fit_background([[[1.0, 3.0]], [[1.0, 3.0]], [[50.0, 90.0]]])
    Background(scale=0.25, dof=8.0, correlation_area=1.0)
    """
    return _background(_moments(energies))


def _moments(energies: Any) -> NDArray[np.float64]:
    """(N, 2): mean and variance of each image's energies."""
    return np.array([(np.mean(e, dtype=np.float64), np.var(e, dtype=np.float64)) for e in energies])


def _background(moments: NDArray[np.float64]) -> Background:
    mean, var = map(float, np.median(moments, axis=0))
    if not (0 < mean < math.inf and 0 < var < math.inf):
        raise ValueError(
            f"the calibration images' energies do not vary or are not finite: mean {mean:g}, variance {var:g}"
        )
    return Background(scale=var / (2 * mean), dof=2 * mean**2 / var, correlation_area=1.0)


def log_nfa(
    energies: Sequence[NDArray[np.float32]],
    background: Sequence[Background],
    joint: Background,
    size: int | tuple[int, int] = 256,
    shift: float = 0.0,
) -> NDArray[np.float32]:
    """log10 NFA of the joint energies, by area, plus the shift: (B, height, width) float32, detected where below 0.

    For a region R of A cells at level t, ``log NFA = A log10 P(scale * chi2_dof >= t) + log10 N(A)``, see
    `segmentation.log_nfa_from_energies`.
    """
    result = _log_nfa(joint_energy(energies, background), joint, size)
    result += np.float32(shift)
    return result


def _log_nfa(energy: NDArray[np.float32], joint: Background, size: int | tuple[int, int]) -> NDArray[np.float32]:
    return segmentation.log_nfa_from_energies([energy], [1], size, tail="exact", n_tests="by-area", background=[joint])


def fit(
    energies: Sequence[Sequence[NDArray[np.float32]] | NDArray[np.float32]], sizes: Sequence[tuple[int, int]]
) -> tuple[list[Background], Background, list[float]]:
    """Learn the background from normal images, and how low their own log NFA falls.

    Args:
        energies: per scale (N, h, w) float32, or N maps (h, w) where images are tiled and differ in size.
        sizes: (height, width) of each of the N images, at which it is predicted: interpolation moves the lowest value
            of a map a little.

    Returns:
        One `Background` a scale; that of the joint energies; the N images' lowest log10 NFA, each under the joint
        background of the others (a new image has no part in the background that judges it either).
    """
    background = [fit_background(e) for e in energies]
    joint = [joint_energy([e[i][None] for e in energies], background) for i in range(len(sizes))]
    moments = _moments(joint)
    minima = []
    for i, size in enumerate(sizes):
        others = np.delete(moments, i, axis=0) if len(moments) > 1 else moments
        minima.append(float(_log_nfa(joint[i], _background(others), size).min()))
    return background, _background(moments), minima


def conformal_shift(log_nfa_minima: ArrayLike, alpha: float) -> float:
    """The least shift of log10 NFA that keeps the chance of flagging a good image at most `alpha`.

    Conformal risk control (Angelopoulos et al., arXiv 2208.02814) with the loss "this image has a region with
    ``log_nfa + shift < 0``": the least shift whose ``(sum of losses + 1) / (n + 1) <= alpha``. For n images
    exchangeable with the new one the promise holds whatever their distribution.

    Args:
        log_nfa_minima: the lowest log10 NFA of each of n calibration images.
        alpha: probability in (0, 1) that a new good image is flagged.

    Returns:
        The shift to add to log10 NFA. Where n is too small (``alpha < 1 / (n + 1)``) the shift that flags none of the
        n images, which promises ``1 / (n + 1)``; `supported_alpha` tells.

    Raises:
        ValueError: no images, values that are not finite, or an alpha outside (0, 1).

    >>> conformal_shift([-3.0, -1.0, 0.5, 2.0], alpha=0.4)
    1.0
    """
    minima = np.sort(np.asarray(log_nfa_minima, np.float64))
    if minima.ndim != 1 or len(minima) == 0 or not np.isfinite(minima).all():
        raise ValueError(f"conformal_shift needs one finite number for each image, got shape {minima.shape}")
    check_alpha(alpha)
    allowed = max(math.floor(alpha * (len(minima) + 1) - 1 + 1e-9), 0)
    return -float(minima[min(allowed, len(minima) - 1)]) + 0.0


def check_alpha(alpha: float) -> None:
    """ValueError unless `alpha` is a probability in (0, 1)."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is a probability between 0 and 1, got {alpha}")


def supported_alpha(count: int) -> float:
    """The least alpha that `count` calibration images can promise: 1 / (count + 1)."""
    return 1 / (count + 1)


def images_needed(alpha: float) -> int:
    """How many calibration images `alpha` needs: the least n with 1 / (n + 1) <= alpha.

    >>> images_needed(0.05)
    19
    """
    check_alpha(alpha)
    return math.ceil(1 / alpha - 1 - 1e-9)
