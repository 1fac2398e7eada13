"""A calibrated threshold for anomaly maps that any model made: numpy in, numpy out. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import segmentation
from .arrays import as_image
from .conformal import (
    Verdict,
    check_alpha,
    check_look_alpha,
    conformal_p_value,
    conformal_shift,
    kept_look_alpha,
    rounded_shift,
    verdict_of,
)
from .fields import judge_fields, learn_from_fields
from .files import PathLike, atomic_write
from .monitor import Monitor
from .outline import Drawing
from .prediction import DetectedRegion
from .schema import content_sha256, parse, read_json, write_json
from .segmentation import Background

__all__ = ["Judgement", "Threshold"]

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Judgement:
    """What a threshold says of one anomaly map; arrays have the size that was asked for, (H, W).

    Attributes:
        is_anomalous: whether any pixel is detected.
        verdict: "good", "look" or "reject", see `conformal.verdict_of`.
        p_value: the share of good maps at least as strange, so that ``p_value <= alpha`` is the decision.
        score: the largest value of the map.
        log_nfa: (H, W) float32, log10 of the Number of False Alarms: below 0 means detected.
        mask: (H, W) bool, the detected pixels.
        regions: the connected components of the mask, lowest log_nfa first, each with its p-value and its contours;
            their scores are of the map.
    """

    is_anomalous: bool
    verdict: Verdict
    p_value: float
    score: float
    log_nfa: NDArray[np.float32]
    mask: NDArray[np.bool_]
    regions: list[DetectedRegion]

    def to_dict(self) -> dict[str, Any]:
        """The numbers without the maps, ready for JSON."""
        regions = [region.to_dict() for region in self.regions]
        kept = {name: getattr(self, name) for name in ("is_anomalous", "verdict", "p_value", "score")}
        return kept | {"log_nfa": float(self.log_nfa.min()), "regions": regions}


@dataclass(frozen=True)
class Threshold:
    """A decision rule for the anomaly maps of any model, learnt from maps of good images alone.

    It is `threshold.CalibratedThreshold` on one map: what a single spot of a good image may be, how much a region's
    size counts, and a limit that a share `alpha` of new good images passes at most. The images must not have been
    trained on, and the new ones must be like them. Larger values of a map mean stranger.

    Attributes:
        low: what is subtracted from maps: the lowest value of a typical good map.
        cell: the law of a pixel of good maps.
        exponent: g, how the effective area grows with the area, see `threshold.CalibratedThreshold`.
        drawing: what good maps say of outlines.
        minima: the lowest log10 NFA of each good map, before the shift.
        alpha: promised probability that a good image is flagged.
        look_alpha: promised probability that a good image is not called good; None is one limit only.

    Raises:
        ValueError: numbers that are not finite or out of their range.

    >>> good = np.random.default_rng(0).random((39, 16, 16))
    >>> threshold = Threshold.from_good_maps(good, alpha=0.05)
    >>> strange = good[0].copy()
    >>> strange[4:8, 6:10] += 2
    >>> found = threshold.apply(strange)
    >>> found.is_anomalous, found.p_value, [region.box for region in found.regions]
    (True, 0.025, [(6, 4, 10, 8)])
    """

    low: float
    cell: Background
    exponent: float
    drawing: Drawing
    minima: tuple[float, ...]
    alpha: float
    look_alpha: float | None = None

    def __post_init__(self) -> None:
        conformal_shift(self.minima, self.alpha)  # checks both
        check_look_alpha(self.alpha, self.look_alpha)
        if not (0 <= self.exponent <= 1 and abs(self.low) <= float(np.finfo(np.float32).max)):  # as maps are judged
            raise ValueError(f"exponent must lie between 0 and 1 and low be finite, got {self.exponent}, {self.low}")

    @classmethod
    def from_good_maps(
        cls, maps: Iterable[ArrayLike], alpha: float = 0.05, look_alpha: float | None = None
    ) -> Threshold:
        """Learn from maps of good images that the model was not trained on.

        Args:
            maps: (H, W) each, of any real dtype; an (N, H, W) array is N maps. Their sizes may differ.
            alpha: wished probability that a good image is flagged; n maps promise no less than 1 / (n + 1).
            look_alpha: wished probability that a good image is not called good; None is one limit only.

        Raises:
            ValueError: no maps; maps that are not 2-D, not finite, or do not vary.
        """
        check_alpha(alpha)
        arrays = [_as_map(values, f"map {number}") for number, values in enumerate(maps, 1)]
        if not arrays:
            raise ValueError("from_good_maps needs the map of at least one good image, got none")
        low = float(np.median([values.min() for values in arrays]))
        fields = [_field(values, low) for values in arrays]
        try:
            cell, exponent, minima = learn_from_fields(fields)
        except ValueError:
            raise ValueError(f"the {len(fields)} good maps do not vary: are they all the same constant?") from None
        return cls(low, cell, exponent, Drawing.from_good_images(fields), minima, alpha, look_alpha)

    @property
    def calibration_images(self) -> int:
        """How many good maps p-values are counted in."""
        return len(self.minima)

    @property
    def shift(self) -> float:
        """What is added to log10 NFA so that the promise is kept."""
        return rounded_shift(self.minima, self.alpha)

    def at(self, alpha: float | None = None, look_alpha: float | None = None) -> Threshold:
        """The same rule for another alpha; needs no maps. See `threshold.CalibratedThreshold.at`."""
        alpha = self.alpha if alpha is None else alpha
        return replace(self, alpha=alpha, look_alpha=kept_look_alpha(alpha, look_alpha, self.look_alpha))

    def apply(
        self,
        anomaly_map: ArrayLike,
        size: tuple[int, int] | None = None,
        image: NDArray[np.uint8] | None = None,
    ) -> Judgement:
        """Judge one map.

        Args:
            anomaly_map: (H, W), made as the good ones were.
            size: (height, width) of mask and log NFA, such as the image's where the map is coarser; None is the map's.
            image: what the map is of, (h, w, 3) uint8 of any size: outlines follow its colours, see
                `outline.draw_regions`. It has no part in the decision.

        Raises:
            ValueError: a map that is not 2-D, empty, not real, or not finite; an image of another shape or dtype.
        """
        values = _as_map(anomaly_map, "the map")
        field = _field(values, self.low)
        size = (values.shape[0], values.shape[1]) if size is None else size
        (log_nfa,) = judge_fields(self, field, field, size, images=None if image is None else [as_image(image)])
        (scores,) = segmentation.weighted_sum([values[None]], [1.0], size)
        mask, lowest = log_nfa < 0, float(log_nfa.min())
        regions = segmentation.regions(mask, log_nfa, scores)
        return Judgement(
            is_anomalous=bool(mask.any()),
            verdict=self.verdict(lowest),
            p_value=self.p_value(lowest),
            score=float(values.max()),
            log_nfa=log_nfa,
            mask=mask,
            regions=[DetectedRegion.from_mask(each, mask, self.p_value(each.log_nfa)) for each in regions],
        )

    def p_value(self, lowest_log_nfa: float) -> float:
        """The share of good maps, the new one among them, at least as strange, see `conformal.conformal_p_value`."""
        return conformal_p_value(np.add(self.minima, self.shift), lowest_log_nfa)

    def verdict(self, lowest_log_nfa: float) -> Verdict:
        """What to do with an image, see `conformal.verdict_of`."""
        return verdict_of(self.minima, lowest_log_nfa, self.alpha, self.look_alpha)

    def monitor(self, false_alarm: float = 0.01, defective: float = 0.1, seed: int = 0) -> Monitor:
        """What watches p-values for a change of the line, see `monitor.Monitor`."""
        return Monitor(len(self.minima), self.alpha, false_alarm=false_alarm, defective=defective, seed=seed)

    # Files ------------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; `from_dict` reads it."""
        return {"kind": "maps", "version": FORMAT_VERSION, **asdict(self), "minima": list(self.minima)}

    @classmethod
    def from_dict(cls, content: Any) -> Threshold:
        """Read what `to_dict` made.

        Raises:
            ValueError: another kind or version, missing entries, numbers that are not finite or out of range.
        """
        try:
            entries = dict(content)
            kind, version = entries.pop("kind"), entries.pop("version")
            if (kind, version) != ("maps", FORMAT_VERSION):
                raise ValueError(f"kind {kind!r} of version {version}, where 'maps' of {FORMAT_VERSION} is expected")
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"the threshold is damaged: {error}") from None
        return parse(cls, entries, "the threshold is damaged: it")

    def save(self, path: PathLike) -> None:
        """Write a JSON file, whole or not at all, with a digest over all that it says."""
        content = self.to_dict()
        content["sha256"] = content_sha256(content)
        with atomic_write(path) as temporary:
            temporary.write_text(write_json(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: PathLike) -> Threshold:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError, ValueError: no such file, not that of a threshold, or changed since.
        """
        content = Path(path).read_bytes()
        try:
            entries = parse(dict[str, Any], read_json(content, "it"), "it")
            if entries.pop("sha256", None) != content_sha256(entries):
                raise ValueError("its SHA-256 is not the one in it; copy or learn it again")
            return cls.from_dict(entries)
        except ValueError as error:
            raise ValueError(f"{path} is not a threshold that Threshold.save wrote: {error}") from None


def _as_map(values: ArrayLike, name: str) -> NDArray[np.float32]:
    array = np.asarray(values)
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must be real numbers of shape (height, width), got {array.dtype} {array.shape}")
    with np.errstate(over="ignore"):
        found = array.astype(np.float32)
    if not np.isfinite(found).all():
        raise ValueError(f"{name} holds values that are not finite: it cannot be judged")
    return found


def _field(values: NDArray[np.float32], low: float) -> NDArray[np.float32]:
    """What is tested: a map from its usual lowest value on, (1, h, w)."""
    with np.errstate(over="ignore"):
        field: NDArray[np.float32] = np.maximum(values - np.float32(low), 0)[None]
    if not np.isfinite(field).all():
        raise ValueError(f"values up to {values.max():g} cannot be judged by a threshold whose lowest is {low:g}")
    return field
