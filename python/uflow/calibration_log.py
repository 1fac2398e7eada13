"""What is said of a threshold that was learnt: its promise, and where its images are too few or were chosen."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .conformal import ROUNDING_ROOM, AddedImage, supported_alpha
from .files import some_names
from .images import ImageLike
from .threshold import CalibratedThreshold, DecisionRule

__all__ = ["UNCALIBRATED", "log_added", "log_calibration", "warn_of_few", "warn_of_few_images"]

log = logging.getLogger("uflow")

UNCALIBRATED = "the paper's test, which keeps its promise for independent standard normal latents only"


def log_calibration(threshold: CalibratedThreshold, sources: Sequence[ImageLike]) -> None:
    """Say what a threshold promises, and which of the calibration images `sources` it lies at."""
    count = len(threshold.minima)
    at = int(np.argmin(np.abs(np.add(threshold.minima, threshold.shift))))
    name = sources[at] if isinstance(sources[at], str | Path) else f"number {at + 1}"
    log.info("calibrated for alpha %g on %d good images; as unusual as any may be: %s", threshold.alpha, count, name)
    warn_of_few_images(threshold)


def log_added(threshold: CalibratedThreshold, added: Sequence[AddedImage]) -> None:
    """Say what has become of images that were added, and warn where they leave little to flag."""
    still = [image.name for image in added if image.lowest_log_nfa + threshold.shift < 0]
    log.info("added %d good images, %d in all; still flagged: %s", len(added), len(threshold.added), some_names(still))
    ranks = max(int(threshold.alpha * (1 + len(threshold.minima)) + 1e-9), 1)
    below = sum(image.lowest_log_nfa <= ROUNDING_ROOM - threshold.shift for image in threshold.added)
    if below >= ranks:
        log.warning(
            "the limit is where %d added images put it: good parts are flagged more rarely than alpha %g, and defects "
            "too; calibrate on a random sample of good images",
            *(below, threshold.alpha),
        )


def warn_of_few_images(threshold: DecisionRule) -> None:
    """Say where an alpha is asked for that the calibration images are too few to promise."""
    if not isinstance(threshold, CalibratedThreshold):
        return
    warn_of_few(len(threshold.minima), threshold.alpha)


def warn_of_few(count: int, alpha: float, images: str = "calibration images") -> None:
    """Say where `count` images are too few to promise an alpha; `images` is what they are called."""
    if (supported := supported_alpha(count)) > alpha:
        log.warning(
            "%d %s support alpha >= %.3g, not %.3g: a good image may be flagged that often",
            *(count, images, supported, alpha),
        )
