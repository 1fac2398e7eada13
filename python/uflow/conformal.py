"""What calibration images promise: shifts, p-values and verdicts from the lowest log10 NFA of each. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

__all__ = [
    "ROUNDING_ROOM",
    "AddedImage",
    "Verdict",
    "check_alpha",
    "check_look_alpha",
    "conformal_p_value",
    "conformal_shift",
    "images_needed",
    "images_that_count",
    "kept_look_alpha",
    "limit_rank",
    "rounded_shift",
    "supported_alpha",
    "verdict_of",
]

ROUNDING_ROOM = 1e-3  # log10 NFA: float32 rounding moves it by less between batches

Verdict = Literal["good", "look", "reject"]


@dataclass(frozen=True)
class AddedImage:
    """A good image that was flagged, and that somebody has added to the good ones.

    Attributes:
        name: of its file; its place in the list where it was none.
        sha256: of its file, in hexadecimal; of its pixels where it was none.
        lowest_log_nfa: its lowest log10 NFA before the shift, when its features had joined the memory.

    Raises:
        ValueError: a number that is not finite.
    """

    name: str
    sha256: str
    lowest_log_nfa: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.lowest_log_nfa):
            raise ValueError(f"{self.name} cannot be added: its lowest log10 NFA is {self.lowest_log_nfa}")


def conformal_shift(log_nfa_minima: ArrayLike, alpha: float, added: ArrayLike = ()) -> float:
    """The least shift of log10 NFA that keeps the chance of flagging a good image at most `alpha`.

    Conformal risk control (Angelopoulos et al., arXiv 2208.02814) with the loss "this image has a region with
    ``log_nfa + shift < 0``": the least shift whose ``(sum of losses + 1) / (n + 1) <= alpha``. For n images
    exchangeable with the new one the promise holds whatever their distribution.

    Args:
        log_nfa_minima: the lowest log10 NFA of each of n calibration images.
        alpha: probability in (0, 1) that a new good image is flagged.
        added: of good images that were chosen because they were flagged. They are no random choice, so n stays what it
            is: each can only lower the limit, and the promise holds whatever they are.

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
    rank = max(limit_rank(alpha, len(minima)), 1)
    return -float(np.sort(np.append(minima, added))[min(rank, len(minima)) - 1]) + 0.0


def rounded_shift(log_nfa_minima: ArrayLike, alpha: float, added: ArrayLike = ()) -> float:
    """`conformal_shift`, and room for the rounding of a batch."""
    return conformal_shift(log_nfa_minima, alpha, added) + ROUNDING_ROOM


def conformal_p_value(log_nfa_minima: ArrayLike, lowest_log_nfa: float, added: ArrayLike = ()) -> float:
    """The share of good images, the new one among them, at least as strange: (1 + #{minima <= it}) / (n + 1).

    Args:
        log_nfa_minima: the lowest log10 NFA of each calibration image, after the shift.
        lowest_log_nfa: the lowest of the new image, after the same shift.
        added: of good images that were chosen because they were flagged, after the same shift: they are counted too,
            but not in n; the sum is at most 1.

    Raises:
        ValueError: NaN, which would count as an image like any other.

    >>> conformal_p_value([-1.0, 2.0, 3.0], 2.5)
    0.75
    """
    if math.isnan(lowest_log_nfa):
        raise ValueError("p_value needs the lowest log10 NFA of an image, got NaN")
    minima = np.append(log_nfa_minima, added)
    # With the room that the shift has: an added image knows itself, and ``p_value <= alpha`` is the decision.
    as_strange = np.count_nonzero(minima <= lowest_log_nfa + ROUNDING_ROOM)
    return min(float(1 + as_strange) / (1 + np.size(log_nfa_minima)), 1.0)


def verdict_of(
    log_nfa_minima: ArrayLike,
    lowest_log_nfa: float,
    alpha: float,
    look_alpha: float | None,
    added: ArrayLike = (),
) -> Verdict:
    """ "reject" beyond the limit of `alpha`, "look" beyond that of `look_alpha` only, "good" for all others.

    Each limit is set by `rounded_shift`, so each has its promise: a new good image is rejected with a chance of at
    most `alpha`, and is not called good with a chance of at most `look_alpha`.

    Args:
        log_nfa_minima: the lowest log10 NFA of each calibration image, before any shift.
        lowest_log_nfa: the lowest of the new image, after the shift of `alpha`.
        alpha, look_alpha: the two chances; no `look_alpha` is one limit only.
        added: see `conformal_shift`; before any shift.

    Raises:
        ValueError: NaN.

    >>> [verdict_of([-3.0, -1.0, 0.5, 2.0], lowest + 1, alpha=0.4, look_alpha=0.6) for lowest in (-1.5, 0.0, 1.0)]
    ['reject', 'look', 'good']
    """
    if math.isnan(lowest_log_nfa):
        raise ValueError("a verdict needs the lowest log10 NFA of an image, got NaN")
    if lowest_log_nfa < 0:
        return "reject"
    if look_alpha is None:
        return "good"
    further = rounded_shift(log_nfa_minima, look_alpha, added) - rounded_shift(log_nfa_minima, alpha, added)
    return "look" if lowest_log_nfa + further < 0 else "good"


def check_alpha(alpha: float) -> None:
    """ValueError unless `alpha` is a probability in (0, 1)."""
    if not (isinstance(alpha, Real) and 0 < alpha < 1):
        raise ValueError(f"alpha is a probability between 0 and 1, got {alpha!r}")


def check_look_alpha(alpha: float | None, look_alpha: float | None) -> None:
    """ValueError unless the limit of "look at it" is a probability above `alpha`, or there is none."""
    if look_alpha is None:
        return
    if alpha is None:
        raise ValueError(f"look_alpha {look_alpha} is a second limit beside alpha, and there is no alpha: give both")
    if not (isinstance(look_alpha, Real) and alpha < look_alpha < 1):
        raise ValueError(f"look_alpha is a probability between alpha {alpha:g} and 1, got {look_alpha}")


def kept_look_alpha(alpha: float, asked: float | None, before: float | None) -> float | None:
    """The limit of "look at it" beside a new `alpha`: what is asked, or the one before where it is still looser."""
    if asked is None and before is not None and before > alpha:
        return before
    return asked


def supported_alpha(count: int) -> float:
    """The least alpha that `count` calibration images can promise: 1 / (count + 1)."""
    return 1 / (count + 1)


def images_needed(alpha: float, flagged: int = 1) -> int:
    """How many calibration images `alpha` needs for a limit at the `flagged`-th strangest of them.

    The least n with ``flagged / (n + 1) <= alpha``. Such a number uses alpha in full. With fewer than needed for the
    next the promise is stricter than asked for, and fewer defects are flagged: 38 images promise 1 / 39, 39 promise
    2 / 40.

    >>> images_needed(0.05), images_needed(0.05, flagged=2)
    (19, 39)
    """
    check_alpha(alpha)
    return math.ceil(flagged / alpha - 1 - 1e-9)


def limit_rank(alpha: float, count: int) -> int:
    """Which of `count` calibration images, the strangest first, the limit of `alpha` lies at; 0 where they are too few.

    >>> limit_rank(0.05, 38), limit_rank(0.05, 39), limit_rank(0.05, 10)
    (1, 2, 0)
    """
    check_alpha(alpha)
    return math.floor(alpha * (count + 1) + 1e-9)


def images_that_count(alpha: float, count: int) -> int:
    """The most of `count` calibration images that use `alpha` in full; all where they are too few for it.

    >>> images_that_count(0.05, 48), images_that_count(0.05, 10)
    (39, 10)
    """
    rank = limit_rank(alpha, count)
    return images_needed(alpha, rank) if rank > 0 else count
