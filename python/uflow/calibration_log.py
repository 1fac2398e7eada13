"""What is said of a threshold that was learnt: its promise, and where its images are too few or were chosen."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .conformal import ROUNDING_ROOM, AddedImage, images_needed, images_that_count, limit_rank, supported_alpha
from .fields import inside
from .files import some_names
from .images import ImageLike
from .scoring import Evidence
from .threshold import CalibratedThreshold, DecisionRule

__all__ = [
    "UNCALIBRATED",
    "log_added",
    "log_calibration",
    "warn_of_few",
    "warn_of_few_images",
    "warn_of_learnt_images",
]

log = logging.getLogger("uflow")

UNCALIBRATED = "the paper's test, which keeps its promise for independent standard normal latents only"

KNOWN_CELL = 1e-3  # of an image's median distance: a cell as near is one that the memory holds, but for rounding
# Interquartile ranges beyond a quartile: twice Tukey's outer fence (Exploratory Data Analysis, 1977), as log NFA has a
# long tail. Where that is exponential, 3 to 5 % of sets have an image beyond it by chance.
FAR_OUT = 6.0
FEWEST_TO_COMPARE = 10  # images whose quartiles say something
CALM_SIGMAS = 3.0  # by which ranks must differ from those of images like the ones that were held out


def log_calibration(threshold: CalibratedThreshold, sources: Sequence[ImageLike]) -> None:
    """Say what a threshold promises, and which of the calibration images `sources` it lies at."""
    count, minima, limit = len(threshold.minima), np.array(threshold.minima), -threshold.shift
    log.info(
        "calibrated for alpha %g on %d good images; as unusual as any may be: %s",
        *(threshold.alpha, count, _name(sources, int(np.argmin(np.abs(minima - limit))))),
    )
    lower, upper = np.quantile(minima, (0.25, 0.75))
    odd = np.flatnonzero(minima < lower - FAR_OUT * (upper - lower))
    if len(odd) > 0 and count >= FEWEST_TO_COMPARE:
        log.warning(
            "far stranger than the other good images, so that weaker defects pass: %s; take out what does not belong "
            "to the good images, and learn again",
            some_names([_name(sources, int(i)) for i in odd]),
        )
    if images_that_count(threshold.alpha, count) < count:
        rank = limit_rank(threshold.alpha, count)
        promised, more = rank / (count + 1), images_needed(threshold.alpha, rank + 1)
        log.info(
            "%d images make alpha %.3g; with %d it is %g, and more defects are found",
            *(count, promised, more, threshold.alpha),
        )
    warn_of_few_images(threshold)


def _name(sources: Sequence[ImageLike], number: int) -> str:
    source = sources[number]
    return str(source) if isinstance(source, str | Path) else f"number {number + 1}"


def log_added(threshold: CalibratedThreshold, added: Sequence[AddedImage]) -> None:
    """Say what has become of images that were added, and warn where they leave little to flag."""
    still = [image.name for image in added if image.lowest_log_nfa + threshold.shift < 0]
    log.info(
        "good images added: now %d, in all %d different ones; still flagged: %s",
        *(len(added), len(threshold.added), some_names(still)),
    )
    ranks = max(limit_rank(threshold.alpha, len(threshold.minima)), 1)
    below = sum(image.lowest_log_nfa <= ROUNDING_ROOM - threshold.shift for image in threshold.added)
    if below >= ranks:
        log.warning(
            "the limit is where %d added images put it: good parts are flagged more rarely than alpha %g, and defects "
            "too; calibrate on a random sample of good images",
            *(below, threshold.alpha),
        )


def warn_of_few_images(threshold: DecisionRule) -> None:
    """Say where an alpha is asked for that the calibration images are too few to promise, or a second one to tell."""
    if not isinstance(threshold, CalibratedThreshold):
        return
    count = len(threshold.minima)
    warn_of_few(count, threshold.alpha)
    if threshold.look_alpha is not None:
        rank = max(limit_rank(threshold.alpha, count), 1)
        if limit_rank(threshold.look_alpha, count) <= rank:
            can = f"{count} calibration images can tell {(rank + 1) / (count + 1):.3g} from it"
            log.warning(
                "look_alpha %g is the limit of alpha again, and no part is one to look at: %s",
                *(threshold.look_alpha, can if rank < count else "calibrate on more images"),
            )


def warn_of_few(count: int, alpha: float, images: str = "calibration images") -> None:
    """Say where `count` images are too few to promise an alpha; `images` is what they are called."""
    if (supported := supported_alpha(count)) > alpha:
        log.warning(
            "%d %s support alpha >= %.3g, not %.3g: of good images up to a share of %.3g may be flagged",
            *(count, images, supported, alpha, supported),
        )


def warn_of_learnt_images(earlier: DecisionRule, evidence: Sequence[Evidence], latent_channels: Sequence[int]) -> None:
    """Say where calibration images seem to be those that the model has learnt from: new ones will look stranger.

    Two things must be: most images have cells that the memory holds exactly, and all together are calmer than the
    images that the model's own calibration held out (Mann and Whitney's rank test). Either alone can be by nature: a
    black ground is the same in every image, and a better camera makes calmer ones.

    Args:
        earlier: the threshold that the model came with; without good images in it nothing can be compared.
        evidence: of each calibration image.
        latent_channels: of each scale's latents.
    """
    if not isinstance(earlier, CalibratedThreshold) or not evidence[0].distances:
        return
    masks = [None if image.roi is None else image.roi.cells(image.distances[0].shape[1:3]) for image in evidence]
    nearest = [inside(image.distances[0], mask) for image, mask in zip(evidence, masks, strict=True)]
    known = [bool((d <= KNOWN_CELL * np.median(d)).any()) for d in nearest]
    lowest = [_lowest(earlier, image, latent_channels) - earlier.shift for image in evidence]
    if 2 * sum(known) > len(known) and _rank_excess(lowest, earlier.minima) > CALM_SIGMAS:
        log.warning(
            "the model seems to have learnt from these calibration images: its memory holds cells of %d of %d, and "
            "they are calmer than those held out of its training; then new good parts are flagged more often than "
            "promised: calibrate on others",
            *(sum(known), len(known)),
        )


def _lowest(threshold: CalibratedThreshold, image: Evidence, latent_channels: Sequence[int]) -> float:
    size = (image.energies[0].shape[1], image.energies[0].shape[2])
    return float(threshold.log_nfa(image, latent_channels, size).min())


def _rank_excess(values: Sequence[float], others: Sequence[float]) -> float:
    """By how many standard deviations the ranks of values among others are higher than those of equals would be."""
    n, m = len(values), len(others)
    pairs = np.sign(np.subtract.outer(values, others)).sum() / 2
    return float(pairs / np.sqrt(n * m * (n + m + 1) / 12))
