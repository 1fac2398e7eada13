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
    kept_look_alpha,
    rounded_shift,
    verdict_of,
)
from .outline import Drawing, draw_regions
from .schema import parse
from .scoring import Evidence, EvidenceWeights
from .segmentation import AreaLaw, Background, TailName, TestsName

__all__ = [
    "CalibratedThreshold",
    "DecisionRule",
    "FieldRule",
    "PaperThreshold",
    "judge_fields",
    "learn_from_fields",
    "threshold_from_dict",
    "variance_decay",
]

BLOCK_SIDES = (1, 2, 4, 8)  # cells, of the squares whose means say how fast variance falls: defects are about as large

Size = int | tuple[int, int]


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

    def log_nfa(self, evidence: Evidence, latent_channels: Sequence[int], size: Size = 256) -> NDArray[np.float32]:
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

    def log_nfa(self, evidence: Evidence, latent_channels: Sequence[int], size: Size = 256) -> NDArray[np.float32]:
        """log10 NFA of B images, see `segmentation.log_nfa`: (B, height, width) float32; distances have no part."""
        return segmentation.log_nfa_from_energies(
            evidence.energies, latent_channels, size, tail=self.tail, n_tests=self.n_tests
        )

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
        exponent: g, in [0, 1], learnt from the decay of the variance of regional means (`variance_decay`).
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

        Each image's lowest log10 NFA is under the background of the others: a new image has no part in the background
        that judges it either.

        Raises:
            ValueError: no images; evidence that does not vary, or is not finite.
        """
        weights = EvidenceWeights.from_good_images(evidence)
        cell, exponent, minima = learn_from_fields([weights.field(image) for image in evidence])
        drawing = Drawing.from_good_images([weights.drawing(image) for image in evidence])
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

    def log_nfa(self, evidence: Evidence, latent_channels: Sequence[int], size: Size = 256) -> NDArray[np.float32]:
        """log10 NFA of B images after the shift: (B, height, width) float32.

        Inside the outline of a region that was found (`outline.draw_regions`) it is the region's lowest; outside it is
        not below 0.
        """
        return judge_fields(self, self.weights.field(evidence), self.weights.drawing(evidence), size)

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


class FieldRule(Protocol):
    """The numbers that a field is judged by, see `CalibratedThreshold`."""

    @property
    def cell(self) -> Background: ...

    @property
    def exponent(self) -> float: ...

    @property
    def drawing(self) -> Drawing: ...

    @property
    def shift(self) -> float: ...


def learn_from_fields(fields: Sequence[NDArray[np.float32]]) -> tuple[Background, float, tuple[float, ...]]:
    """What fields of good images, (1, h, w) each, say: the law of a cell, the exponent of the area, and the minima.

    Each image's lowest log10 NFA is under the background of the others.

    Raises:
        ValueError: fields that do not vary, or are not finite.
    """
    exponent = variance_decay(fields)
    moments = np.array([(np.mean(f, dtype=np.float64), np.var(f, dtype=np.float64)) for f in fields])
    minima = []
    for i, field in enumerate(fields):
        others = np.delete(moments, i, axis=0) if len(moments) > 1 else moments
        minima.append(float(_log_nfa_of_cells(field, _background(others), exponent).min()))
    return _background(moments), exponent, tuple(minima)


def judge_fields(
    rule: FieldRule, fields: NDArray[np.float32], drawn_on: NDArray[np.float32], size: Size
) -> NDArray[np.float32]:
    """log10 NFA of B fields after the shift, see `CalibratedThreshold.log_nfa`: (B, height, width) float32.

    Args:
        rule: what is normal.
        fields: (B, h, w).
        drawn_on: (B, h, w), the maps that outlines are drawn on.
        size: of the result.
    """
    cells = _log_nfa_of_cells(fields, rule.cell, rule.exponent) + np.float32(rule.shift)
    maps = segmentation.weighted_sum([cells], [1.0], size)
    for log_nfa, own, values in zip(maps, cells, drawn_on, strict=True):
        found = own < 0
        if found.any():
            mask = draw_regions(values, found, rule.drawing, (log_nfa.shape[0], log_nfa.shape[1]))
            np.maximum(log_nfa, 0, out=log_nfa)
            log_nfa[mask] = _lowest_of_regions(mask, own)
        else:  # resizing flattens the lowest value, which p-values are made of
            log_nfa += own.min() - log_nfa.min()
    return maps


def variance_decay(fields: Sequence[NDArray[np.float32]]) -> float:
    """The exponent g with which the variance of a field's mean over A cells falls, ``A^-g``, on good images.

    By least squares through the log of var(one cell) / var(mean over a square), for squares of 2, 4 and 8 cells a side,
    of all squares of all images together: a region of a new image is exposed to what images differ by as well as to
    what varies within them. 1 for independent cells; the effective area A^g is the number of independent cells whose
    mean would vary as much.

    Args:
        fields: of N images, (1, h, w) each.

    Returns:
        g, in [0, 1]; 0 where no field has 2 x 2 cells, or none varies.
    """
    sums = np.zeros((len(BLOCK_SIDES), 3))  # per side: squares, sum and sum of squares of their means
    for field in fields:
        for row, side in zip(sums, BLOCK_SIDES, strict=True):
            means = _block_means(field[0], side)
            row += means.size, means.sum(), np.square(means).sum()
    counts, totals, squares = sums[sums[:, 0] > 0].T
    variances = squares / counts - np.square(totals / counts)
    if len(variances) < 2 or not variances.min() > 0:
        return 0.0
    log_areas = 2 * np.log(BLOCK_SIDES[1 : len(variances)])
    log_ratios = np.log(variances[0] / variances[1:])
    return float(np.clip(log_areas @ log_ratios / (log_areas @ log_areas), 0, 1))


def _block_means(field: NDArray[np.float32], side: int) -> NDArray[np.float64]:
    """Means over the squares of `side` cells that the part of a field is cut into that the largest squares cover."""
    rows, columns = (n // BLOCK_SIDES[-1] * BLOCK_SIDES[-1] or n // side * side for n in field.shape)
    blocks = field[:rows, :columns].astype(np.float64).reshape(rows // side, side, columns // side, side)
    return np.asarray(blocks.mean(axis=(1, 3)).ravel())


def _lowest_of_regions(mask: NDArray[np.bool_], cells: NDArray[np.float32]) -> NDArray[np.float32]:
    """For each pixel of a mask, the lowest log NFA among the cells that its region covers."""
    labels, count = segmentation.connected_components(mask)
    rows, columns = np.nonzero(mask)
    own = labels[rows, columns]
    lowest = np.full(count + 1, np.float32(np.inf))
    covered = (at * cell // n for at, n, cell in zip((rows, columns), mask.shape, cells.shape, strict=True))
    np.minimum.at(lowest, own, cells[tuple(covered)])
    found: NDArray[np.float32] = lowest[own]
    # An outline may leave the cells that decided: then the image's lowest counts.
    return np.where(found < 0, found, cells.min())


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


def _log_nfa_of_cells(field: NDArray[np.float32], cell: Background, exponent: float) -> NDArray[np.float32]:
    """log10 NFA of each cell of a field, before the shift: (B, h, w) float32."""
    cells = field[0].size
    law = AreaLaw.power(cells, exponent)
    return segmentation.log_nfa_of_field(field, cell, law, field.shape[1:])


def _background(moments: NDArray[np.float64]) -> Background:
    """The scaled chi-square that fits the field of typical normal images, by its two first moments.

    ``scale = var / (2 mean)`` and ``dof = 2 mean^2 / var`` (Satterthwaite 1946), of the medians over the images' (N, 2)
    means and variances, so that one odd image among few does not decide.
    """
    mean, var = map(float, np.median(moments, axis=0))
    if not (0 < mean < math.inf and 0 < var < math.inf):
        raise ValueError(
            f"the calibration images' evidence does not vary or are not finite: mean {mean:g}, variance {var:g}"
        )
    return Background(scale=var / (2 * mean), dof=2 * mean**2 / var, correlation_area=1.0)
