"""The decision rule: which regions are an anomaly. The paper's test, and one calibrated on good images.

H0 of the paper (independent standard normal latents) is not exactly true of real latents, so the promise "at most
epsilon false alarms" does not hold by itself. `CalibratedThreshold` is learnt from good images only;
docs/notebook/threshold.md says how its parts were chosen. Needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import segmentation
from .scoring import Evidence
from .segmentation import Background, TailName, TestsName, joint_energy

__all__ = [
    "CalibratedThreshold",
    "PaperThreshold",
    "Threshold",
    "check_alpha",
    "conformal_shift",
    "fit_background",
    "images_needed",
    "supported_alpha",
    "threshold_from_dict",
]

ROUNDING_ROOM = 1e-3  # log10 NFA: float32 rounding moves it by less between batches

Size = int | tuple[int, int]


class Threshold(Protocol):
    """A decision rule: a pixel is detected where its log10 NFA is below 0.

    Attributes:
        alpha: promised probability that a good image is flagged; None where nothing is promised on real images.
    """

    @property
    def alpha(self) -> float | None: ...

    def log_nfa(self, evidence: Evidence, latent_channels: Sequence[int], size: Size = 256) -> NDArray[np.float32]:
        """log10 of the Number of False Alarms at each pixel of B images: (B, height, width) float32."""

    def p_value(self, lowest_log_nfa: float) -> float | None:
        """The share of good images at least as strange; None where no good images were seen."""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; `threshold_from_dict` reads it."""


@dataclass(frozen=True)
class PaperThreshold:
    """The published test: latents are independent standard normals, each scale by itself, nothing calibrated.

    Attributes:
        tail, n_tests: see `segmentation.log_nfa`; the defaults are the paper's.

    Raises:
        ValueError: an unknown tail or number of tests.
    """

    tail: TailName = "chernoff"
    n_tests: TestsName = "total"
    alpha: None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("tail", self.tail, get_args(TailName)),
            ("n_tests", self.n_tests, get_args(TestsName)),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")

    def log_nfa(self, evidence: Evidence, latent_channels: Sequence[int], size: Size = 256) -> NDArray[np.float32]:
        """log10 NFA of B images, see `segmentation.log_nfa`: (B, height, width) float32; distances have no part."""
        return segmentation.log_nfa_from_energies(
            evidence.energies, latent_channels, size, tail=self.tail, n_tests=self.n_tests
        )

    def p_value(self, lowest_log_nfa: float) -> None:
        """None: no good images were seen."""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"kind": "paper", "tail": self.tail, "n_tests": self.n_tests}


@dataclass(frozen=True)
class CalibratedThreshold:
    """A test whose idea of normal, and whose promise, come from good images that were not trained on.

    The energies of all scales join on one grid (`segmentation.joint_energy`). For a region R of A cells at level t,
    ``log NFA = A log10 P(scale * chi2_dof >= t) + log10 N(A) + shift``, see `segmentation.log_nfa_from_energies`. The
    shift is the least that keeps the promise (`conformal_shift`).

    Attributes:
        backgrounds: normal energies of each scale.
        joint: normal joint energies.
        minima: the lowest log10 NFA of each calibration image, before the shift: what p-values and other alphas need.
        alpha: promised probability that a good image is flagged.

    Raises:
        ValueError: minima that are empty or not finite, or an alpha outside (0, 1).
    """

    backgrounds: tuple[Background, ...]
    joint: Background
    minima: tuple[float, ...]
    alpha: float

    def __post_init__(self) -> None:
        conformal_shift(self.minima, self.alpha)  # checks both

    @classmethod
    def from_good_images(
        cls, evidence: Sequence[Evidence], sizes: Sequence[tuple[int, int]], alpha: float
    ) -> CalibratedThreshold:
        """Learn from good images that were not trained on.

        Args:
            evidence: of each of N images.
            sizes: (height, width) of each, at which it is predicted: interpolation moves the lowest value of a map a
                little.
            alpha: wished probability that a good image is flagged.

        Each image's lowest log10 NFA is under the joint background of the others: a new image has no part in the
        background that judges it either.

        Raises:
            ValueError: no images; energies that do not vary, or are not finite.
        """
        energies = [[image.energies[scale][0] for image in evidence] for scale in range(len(evidence[0].energies))]
        backgrounds = [fit_background(e) for e in energies]
        joint = [joint_energy(image.energies, backgrounds) for image in evidence]
        moments = _moments(joint)
        minima = []
        for i, size in enumerate(sizes):
            others = np.delete(moments, i, axis=0) if len(moments) > 1 else moments
            minima.append(float(_joint_log_nfa(joint[i], _background(others), size).min()))
        return cls(tuple(backgrounds), _background(moments), tuple(minima), alpha)

    @property
    def shift(self) -> float:
        """What is added to log10 NFA so that the promise is kept."""
        return conformal_shift(self.minima, self.alpha) + ROUNDING_ROOM

    def at(self, alpha: float) -> CalibratedThreshold:
        """The same test for another alpha; needs no images."""
        return replace(self, alpha=alpha)

    def with_images_of(self, others: Sequence[CalibratedThreshold]) -> CalibratedThreshold:
        """The same test, promised by the calibration images of others too (of flows that held out other images)."""
        return replace(self, minima=tuple(m for threshold in (self, *others) for m in threshold.minima))

    def log_nfa(self, evidence: Evidence, latent_channels: Sequence[int], size: Size = 256) -> NDArray[np.float32]:
        """log10 NFA of B images after the shift: (B, height, width) float32; distances have no part."""
        result = _joint_log_nfa(joint_energy(evidence.energies, self.backgrounds), self.joint, size)
        result += np.float32(self.shift)
        return result

    def p_value(self, lowest_log_nfa: float) -> float:
        """The share of good images, the new one among them, at least as strange: (1 + #{minima <= it}) / (n + 1).

        Args:
            lowest_log_nfa: the lowest value of `log_nfa` in the image, after the shift.
        """
        as_strange = np.count_nonzero(np.asarray(self.minima) + self.shift <= lowest_log_nfa)
        return float(1 + as_strange) / (1 + len(self.minima))

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "kind": "calibrated",
            "backgrounds": [asdict(b) for b in self.backgrounds],
            "joint": asdict(self.joint),
            "minima": list(self.minima),
            "alpha": self.alpha,
        }


def threshold_from_dict(content: Any) -> PaperThreshold | CalibratedThreshold:
    """Read what `to_dict` made.

    Raises:
        ValueError: unknown or missing entries, other types, numbers that are not finite or out of range.
    """
    try:
        entries = dict(content)
        kind = entries.pop("kind")
        if kind == "paper":
            return PaperThreshold(**entries)
        if kind == "calibrated":
            return CalibratedThreshold(
                backgrounds=tuple(Background(**b) for b in entries.pop("backgrounds")),
                joint=Background(**entries.pop("joint")),
                minima=tuple(map(float, entries.pop("minima"))),
                **entries,
            )
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"the threshold is damaged: {error}") from None
    raise ValueError(f"the threshold is damaged: unknown kind {kind!r}")


def _joint_log_nfa(energy: NDArray[np.float32], joint: Background, size: Size) -> NDArray[np.float32]:
    return segmentation.log_nfa_from_energies([energy], [1], size, tail="exact", n_tests="by-area", background=[joint])


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
