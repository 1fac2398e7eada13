"""The decision rule: which regions are an anomaly. The paper's test, and one calibrated on good images.

H0 of the paper (independent standard normal latents) is not exactly true of real latents, so the promise "at most
epsilon false alarms" does not hold by itself. `CalibratedThreshold` is learnt from good images only;
docs/notebook/threshold.md says how its parts were chosen. Needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NoReturn, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from . import segmentation
from .conformal import (
    AddedImage,
    Verdict,
    check_look_alpha,
    conformal_p_value,
    conformal_shift,
    images_that_count,
    kept_look_alpha,
    rounded_shift,
    verdict_of,
)
from .fields import inside, judge_fields, learn_from_fields
from .outline import Drawing
from .roi import RegionOfInterest
from .schema import parse
from .scoring import Evidence, EvidenceWeights
from .segmentation import Background, TailName, TestsName

__all__ = [
    "CalibratedThreshold",
    "DecisionRule",
    "PaperThreshold",
    "threshold_from_dict",
]

Size = int | tuple[int, int]
Images = Sequence[NDArray[np.uint8]]  # (H, W, 3) each, of any size


class DecisionRule(Protocol):
    """What decides: a pixel is detected where its log10 NFA is below 0.

    Attributes:
        alpha: promised probability that a good image is flagged; None where nothing is promised on real images.
        look_alpha: promised probability that a good image is not called good; None where there is one limit only.
    """

    @property
    def alpha(self) -> float | None: ...

    @property
    def look_alpha(self) -> float | None: ...

    @property
    def calibration_images(self) -> int | None:
        """How many good images p-values are counted in; None where they are not uniform on good images."""

    def at(self, alpha: float | None = None, look_alpha: float | None = None) -> DecisionRule:
        """The same rule for another alpha, from what is stored; ValueError where no good images were seen."""

    def log_nfa(
        self, evidence: Evidence, latent_channels: Sequence[int], size: Size = 256, images: Images | None = None
    ) -> NDArray[np.float32]:
        """log10 of the Number of False Alarms at each pixel of B images: (B, height, width) float32."""

    def p_value(self, lowest_log_nfa: float) -> float | None:
        """The share of good images at least as strange; None where no good images were seen."""

    def verdict(self, lowest_log_nfa: float) -> Verdict:
        """ "reject" where the image is flagged, "look" beyond the looser limit only, else "good"."""

    def map_levels(self) -> tuple[float, float] | None:
        """What the anomaly map of a good image reaches, typically and with the chance alpha; None where none was seen.

        For pictures alone: no decision is made by them.
        """

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
    look_alpha: None = None
    calibration_images: None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("tail", self.tail, get_args(TailName)),
            ("n_tests", self.n_tests, get_args(TestsName)),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")

    def log_nfa(
        self, evidence: Evidence, latent_channels: Sequence[int], size: Size = 256, images: Images | None = None
    ) -> NDArray[np.float32]:
        """log10 NFA of B images, see `segmentation.log_nfa`: (B, height, width) float32.

        Distances have no part in it, and neither have the images.
        """
        if evidence.roi is not None:
            return self._log_nfa_within(evidence.energies, evidence.roi, latent_channels, size)
        return segmentation.log_nfa_from_energies(
            evidence.energies, latent_channels, size, tail=self.tail, n_tests=self.n_tests
        )

    def _log_nfa_within(
        self, energies: Sequence[NDArray[np.float32]], roi: RegionOfInterest, channels: Sequence[int], size: Size
    ) -> NDArray[np.float32]:
        """`log_nfa` of energies that are 0 outside a region of interest: as many tests as the cells inside have."""
        every = [e[0].size for e in energies]
        counted = [int(roi.cells(e.shape[1:3]).sum()) for e in energies]
        if self.n_tests == "total":
            found = segmentation.log_nfa_from_energies(energies, channels, size, tail=self.tail)
            found += np.float32(segmentation.number_of_tests(counted) - segmentation.number_of_tests(every))
        else:  # L n^2 times the polyominoes of an area, for each of L scales
            found = np.minimum.reduce(
                [
                    segmentation.log_nfa_from_energies([e], [c], size, tail=self.tail, n_tests="by-area")
                    + np.float32(math.log10(len(energies)) + 2 * math.log10(n / all_n))
                    for e, c, n, all_n in zip(energies, channels, counted, every, strict=True)
                ]
            )
        outside = ~roi.pixels((found.shape[1], found.shape[2]))
        found[:, outside] = np.maximum(found[:, outside], 0)
        return found

    def at(self, alpha: float | None = None, look_alpha: float | None = None) -> NoReturn:
        """ValueError: no good images were seen, so no alpha can be promised."""
        raise ValueError("the paper's test has no alpha, so none can be set: calibrate on good images")

    def p_value(self, lowest_log_nfa: float) -> None:
        """None: no good images were seen."""

    def verdict(self, lowest_log_nfa: float) -> Verdict:
        """ "reject" where the image is flagged, else "good": nothing is promised."""
        return verdict_of((), lowest_log_nfa, 0.0, None)

    def map_levels(self) -> None:
        """None: no good images were seen."""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"kind": "paper", "tail": self.tail, "n_tests": self.n_tests}


@dataclass(frozen=True)
class CalibratedThreshold:
    """A test whose idea of normal, of area, and whose promise, come from good images that were not trained on.

    All evidence adds up to one field on the finest grid (`scoring.EvidenceWeights`). For a component R of A cells of
    an upper level set of the field, at level t,

        log NFA(R) = A^g * log10 P(scale * chi2_dof >= t) + log10 N(A) + shift

    N(A) counts the regions of that area that could be tested, see `segmentation.AreaLaw`. A^g is the *effective area*:
    how many independent cells A neighbouring ones are worth. Where cells are independent, g is 1, the paper's test;
    where all cells of a region know the same, 0, and the largest value of the field decides.
    The shift is the least that keeps the promise (`conformal_shift`). docs/theory.md derives it.

    Attributes:
        weights: how evidence adds up to the field.
        cell: the field of a single cell on normal parts.
        exponent: g, in [0, 1], learnt from the decay of the variance of regional means (`area_exponent`).
        drawing: what good images say of the map that outlines are drawn on.
        minima: the lowest log10 NFA of each calibration image, before the shift: what p-values and other alphas need.
        alpha: promised probability that a good image is flagged.
        look_alpha: promised probability that a good image is not called good, see `verdict`; None is one limit only.
        map_maxima: the largest value of the anomaly map of each calibration image: what pictures are coloured by;
            empty where it is not known.
        added: good images that were flagged and have joined since, see `Predictor.add_good`.

    Raises:
        ValueError: minima that are empty or not finite, an alpha outside (0, 1), a look_alpha that is not above it, an
            exponent outside [0, 1].
    """

    weights: EvidenceWeights
    cell: Background
    exponent: float
    drawing: Drawing
    minima: tuple[float, ...]
    alpha: float
    look_alpha: float | None = None
    map_maxima: tuple[float, ...] = ()
    added: tuple[AddedImage, ...] = ()

    def __post_init__(self) -> None:
        conformal_shift(self.minima, self.alpha)  # checks both
        check_look_alpha(self.alpha, self.look_alpha)
        if not 0 <= self.exponent <= 1:
            raise ValueError(f"the exponent of the area lies between 0 and 1, got {self.exponent}")

    @classmethod
    def from_good_images(
        cls,
        evidence: Sequence[Evidence],
        alpha: float,
        look_alpha: float | None = None,
        map_maxima: Sequence[float] = (),
    ) -> CalibratedThreshold:
        """Learn from good images that were not trained on.

        Args:
            evidence: of each of N images.
            alpha: wished probability that a good image is flagged.
            look_alpha: wished probability that a good image is not called good; None is one limit only.
            map_maxima: the largest value of each image's anomaly map, see `scoring.largest_map_values`.

        Raises:
            ValueError: no images; evidence that does not vary, or is not finite.
        """
        weights = EvidenceWeights.from_good_images(evidence)
        masks = [None if image.roi is None else image.roi.cells(image.energies[0].shape[1:3]) for image in evidence]
        cell, exponent, minima = learn_from_fields([weights.field(image) for image in evidence], masks)
        drawn_on = map(inside, (weights.drawing(image) for image in evidence), masks)
        drawing = Drawing.from_good_images(list(drawn_on))
        return cls(weights, cell, exponent, drawing, minima, alpha, look_alpha, tuple(map_maxima))

    @property
    def calibration_images(self) -> int | None:
        """How many good images p-values are counted in; None where flagged ones were added: then they are too large."""
        return None if self.added else len(self.minima)

    @property
    def shift(self) -> float:
        """What is added to log10 NFA so that the promise is kept."""
        return rounded_shift(self.minima, self.alpha, self._added_minima)

    @property
    def _added_minima(self) -> list[float]:
        return [image.lowest_log_nfa for image in self.added]

    def with_added(self, images: Sequence[AddedImage]) -> CalibratedThreshold:
        """The same rule, and further good images that were flagged; those that it has already are left out."""
        known = {image.sha256 for image in self.added}
        new = {image.sha256: image for image in images if image.sha256 not in known}
        return replace(self, added=(*self.added, *new.values()))

    def at(self, alpha: float | None = None, look_alpha: float | None = None) -> CalibratedThreshold:
        """The same rule for another alpha; needs no images.

        Args:
            alpha: probability that a good image is flagged; None keeps it.
            look_alpha: probability that a good image is not called good; None keeps the one that is, where it is
                larger than `alpha`.
        """
        alpha = self.alpha if alpha is None else alpha
        return replace(self, alpha=alpha, look_alpha=kept_look_alpha(alpha, look_alpha, self.look_alpha))

    def with_images_of(self, others: Sequence[CalibratedThreshold]) -> CalibratedThreshold:
        """The same test, promised by the calibration images of others too (of flows that held out other images)."""
        every = (self, *others)
        return replace(
            self,
            minima=tuple(m for threshold in every for m in threshold.minima),
            map_maxima=tuple(m for threshold in every for m in threshold.map_maxima),
        )

    def without_surplus(self) -> CalibratedThreshold:
        """The same rule, promised by as many calibration images as use `alpha` in full (`images_that_count`).

        The first ones: what is left out must not depend on what they look like.
        """
        count = images_that_count(self.alpha, len(self.minima))
        return replace(self, minima=self.minima[:count], map_maxima=self.map_maxima[:count])

    def log_nfa(
        self, evidence: Evidence, latent_channels: Sequence[int], size: Size = 256, images: Images | None = None
    ) -> NDArray[np.float32]:
        """log10 NFA of B images after the shift: (B, height, width) float32.

        Inside the outline of a region that was found (`outline.draw_regions`) it is the lowest of the cells there, and
        in one region the lowest of the image; outside it is not below 0. With `images`, what the evidence is of, the
        outline follows their colours; the lowest value is the same with and without.
        """
        field, drawing = self.weights.field(evidence), self.weights.drawing(evidence)
        return judge_fields(self, field, drawing, size, evidence.roi, images)

    def p_value(self, lowest_log_nfa: float) -> float:
        """The share of good images, the new one among them, at least as strange: (1 + #{minima <= it}) / (n + 1).

        Args:
            lowest_log_nfa: the lowest value of `log_nfa` in the image, after the shift.

        Raises:
            ValueError: NaN, which would count as an image like any other.
        """
        shift = self.shift
        return conformal_p_value(np.add(self.minima, shift), lowest_log_nfa, np.add(self._added_minima, shift))

    def verdict(self, lowest_log_nfa: float) -> Verdict:
        """What to do with an image, see `conformal.verdict_of`; `lowest_log_nfa` as for `p_value`."""
        return verdict_of(self.minima, lowest_log_nfa, self.alpha, self.look_alpha, self._added_minima)

    def map_levels(self) -> tuple[float, float] | None:
        """The median of `map_maxima`, and what a share alpha of good images exceeds; None where they are not known."""
        if not self.map_maxima:
            return None
        exceeded = conformal_shift(np.negative(self.map_maxima), self.alpha)
        return min(float(np.median(self.map_maxima)), exceeded), exceeded

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "kind": "calibrated",
            "weights": asdict(self.weights),
            "cell": asdict(self.cell),
            "exponent": self.exponent,
            "drawing": asdict(self.drawing),
            "minima": list(self.minima),
            "alpha": self.alpha,
            "look_alpha": self.look_alpha,
            "map_maxima": list(self.map_maxima),
            "added": [asdict(image) for image in self.added],
        }


def threshold_from_dict(content: Any) -> PaperThreshold | CalibratedThreshold:
    """Read what `to_dict` made.

    Raises:
        ValueError: unknown or missing entries, other types, numbers that are not finite or out of range.
    """
    kinds: dict[str, type[PaperThreshold | CalibratedThreshold]] = {
        "paper": PaperThreshold,
        "calibrated": CalibratedThreshold,
    }
    if not isinstance(content, Mapping) or content.get("kind") not in list(kinds):
        raise ValueError("the threshold is damaged: it is neither of the kind 'paper' nor 'calibrated'")
    entries = {name: value for name, value in content.items() if name != "kind"}
    if content["kind"] == "paper":
        entries = {"alpha": None, "look_alpha": None, "calibration_images": None, **entries}
    return parse(kinds[content["kind"]], entries, "the threshold is damaged: it")
