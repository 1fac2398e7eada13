"""What good images say about the test: a background model of the energies, and a conformal shift of the threshold.

H0 of the paper (independent standard normal latents) is not exactly true of real latents, so the promise "at most
epsilon false alarms" does not hold by itself. Both parts below are learnt from good images only.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from .segmentation import Background


def fit_background(energies: np.ndarray) -> Background:
    """The scaled chi-square that fits the energies of normal images at one scale.

    ``e ~ scale * chi2_dof`` by the two first moments, ``scale = var / (2 mean)`` and ``dof = 2 mean^2 / var``
    (Satterthwaite 1946): heavier tails than standard normal latents have. Cells count as independent
    (`correlation_area` 1): what their correlation does to the number of false alarms is left to the shift, which
    finds it out; divided by their correlation area, small defects lose more than false alarms do.

    Args:
        energies: (N, h, w) energies of N normal images, ``sum over channels of z^2``.

    Raises:
        ValueError: the energies do not vary, so that nothing can be fitted, or are not finite.
    """
    e = np.asarray(energies, np.float64)
    mean, var = float(e.mean()), float(e.var())
    if not (0 < mean < math.inf and 0 < var < math.inf):
        raise ValueError(
            f"the calibration images' energies do not vary or are not finite: mean {mean:g}, variance {var:g}"
        )
    return Background(scale=var / (2 * mean), dof=2 * mean**2 / var, correlation_area=1.0)


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
