"""Which good images are held out of training: the promise of alpha is only as good as this choice.

A new image must be to the detector what a held-out image was. Copies of an image on both sides make held-out images too
familiar, and so does a random choice from a sequence whose light or material drifts: it measures how well the past
predicts the past. Needs no torch.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .conformal import images_needed
from .images import ImageLike
from .recipe import HoldOut

__all__ = ["Fold", "choose_folds", "find_copies", "order_effect"]

MIN_HELD_OUT = 10  # images: with fewer, the choice of the epoch and the threshold are a matter of luck
MORE_FOLDS_TO = 500  # images that all flows together learn from: minutes; beyond, alpha gets the images that it needs
COPY_DISTANCE = 0.1  # of the median distance of two images; different images of six sets came no nearer than 0.13
ORDER_EFFECT = 0.1  # from which order matters: a steady drift of 1.3 standard deviations; six sets have at most 0.08
TIME_SPAN_NS = 3600 * 10**9  # files whose times lie closer together were copied, and their times say nothing
ORDER_BLOCKS = 6  # blocks that a sequence is cut into to see that: about the share that is held out


@dataclass(frozen=True)
class Fold:
    """What is kept out of the training of one flow.

    Attributes:
        held_out: images that the flow does not see, in ascending order.
        judged: those among them that it is judged by, of copies of one image the first; in the order in which they were
            held out, the latest of a sequence first.
    """

    held_out: list[int]
    judged: list[int]


def choose_folds(
    descriptors: NDArray[np.float64],
    sources: Sequence[ImageLike],
    share: float,
    alpha: float | None,
    seed: int,
    how: HoldOut = "auto",
) -> tuple[list[Fold], str]:
    """Which images each flow does not see, and why these: one fold for each flow to be trained.

    A fold holds a `share` of the images, at least 10 and at most a third; copies of an image count once, and stay
    together. There are as many folds, without a common image, as `alpha` needs calibration images, or can be made; in a
    small set in no order as many as it takes that a single odd image does not set the limit. The first fold is that of
    the detector; in a sequence it is the latest block. A share of 0 is one fold of no images.

    Args:
        descriptors: (N, D) a vector of each image, see `features.describe_images`.
        sources: the N images: their names and folders.
        share: of the images, that a fold holds.
        alpha: promised probability that a good image is flagged; None needs one fold.
        seed: of the random choice.
        how: "random"; "last", blocks from the end of the sequence of names; "groups", whole folders; "auto", blocks
            where `order_effect` says that the sequence drifts, else random.

    Raises:
        ValueError: groups where images are no files or lie in fewer than 3 folders.
    """
    if share == 0:
        return [Fold([], [])], "held out: none, as asked for; the flow learns from all images"
    copies = find_copies(descriptors)
    units = _folders(sources) if how == "groups" else copies
    first_of = {unit[0] for unit in copies}
    order, latest_first, why = _choose_order(descriptors, sources, units, seed, how)
    size = min(max(math.ceil(share * len(copies)), MIN_HELD_OUT), max(len(copies) // 3, 1))
    count = _count_folds(alpha, size, len(copies), latest_first)
    folds = _fill_folds([units[i] for i in order], size, count, first_of)
    if len(copies) < len(sources):
        why += f"; {len(sources)} images are {len(copies)} different ones, and copies stay on one side"
    return folds, why


def find_copies(descriptors: NDArray[np.float64]) -> list[list[int]]:
    """Images that are copies or near-copies of each other, together; each image is in one list, lists by their first.

    Two are copies where their descriptors are nearer than `COPY_DISTANCE` of the median distance; a copy of a copy
    counts. Where that would tie more than a third of all together, as frames of a film do, only equal ones count.
    """
    distances = _distances(descriptors)
    typical = np.median(distances[np.triu_indices(len(distances), 1)]) if len(distances) > 1 else 0.0
    groups = _connected(distances <= COPY_DISTANCE * typical)
    if max(map(len, groups)) > max(len(descriptors) // 3, 1):
        groups = _connected(distances <= 1e-6 * typical)
    return groups


def order_effect(descriptors: NDArray[np.float64], order: Sequence[int]) -> float:
    """How much of what distinguishes images lies between the blocks of a sequence: 0 by chance, 1 is all of it.

    Epsilon squared of a one-way analysis of variance over `ORDER_BLOCKS` blocks, ``1 - (within / (N - k)) / (total /
    (N - 1))`` (Kelley, PNAS 1935), of standardised descriptors, averaged over them. Leaving out blocks instead of
    random items is how dependence in time is met in cross-validation (Roberts et al., doi 10.1111/ecog.02881).

    Args:
        descriptors: (N, D) a vector of each image.
        order: the N images in the order that is in question.
    """
    count = len(order)
    if count < 2 * MIN_HELD_OUT:
        return 0.0
    x = _standardised(descriptors)[np.asarray(order)]
    blocks = np.array_split(x, ORDER_BLOCKS)
    between = sum(len(block) * np.square(block.mean(axis=0)).sum() for block in blocks)
    within_share = 1 - between / max(np.square(x).sum(), 1e-12)
    return float(1 - within_share * (count - 1) / (count - ORDER_BLOCKS))


def _choose_order(
    descriptors: NDArray[np.float64],
    sources: Sequence[ImageLike],
    units: Sequence[Sequence[int]],
    seed: int,
    how: HoldOut,
) -> tuple[list[int], bool, str]:
    """The order in which units (copies together, or folders) are held out, whether it is one of time, and why."""
    first = [unit[0] for unit in units]
    by_name = sorted(range(len(units)), key=lambda i: _natural(sources[first[i]], i))
    if how == "last":
        return by_name[::-1], True, "held out: the last block of the sequence of names, as asked for"
    if how == "auto":
        for words, order in (("names", by_name), ("times", _by_time(sources, first))):
            if order and order_effect(descriptors[first], order) > ORDER_EFFECT:
                return order[::-1], True, f"held out: the last block of the sequence of {words}, which drifts"
    order = np.random.default_rng(seed).permutation(len(units)).tolist()
    asked = ", as asked for" if how in ("random", "groups") else ": the order of names tells nothing"
    return order, False, f"held out: {'folders' if how == 'groups' else 'images'} at random{asked}"


def _count_folds(alpha: float | None, size: int, different: int, latest_first: bool) -> int:
    """How many folds of `size` images to make of some different ones.

    Of a sequence as few as alpha needs: each further block is less like what is to come.
    """
    if alpha is None:
        return 1
    for_one, for_two = (math.ceil(images_needed(alpha, flagged) / size) for flagged in (1, 2))
    most = max(different // size, 1)
    if not latest_first and for_two <= most and for_two * different <= MORE_FOLDS_TO:
        return for_two
    return min(for_one, most)


def _fill_folds(units: Sequence[Sequence[int]], size: int, count: int, first_of: set[int]) -> list[Fold]:
    """Folds of `size` different images (whole units: perhaps some more), one after another."""
    folds, held_out = [], list[int]()
    for unit in units:
        held_out += unit
        judged = [i for i in held_out if i in first_of]
        if len(judged) >= size:
            folds.append(Fold(sorted(held_out), judged))
            held_out = []
        if len(folds) == count:
            break
    if not folds or max(len(fold.held_out) for fold in folds) == sum(map(len, units)):
        if len(units) == 1:
            raise ValueError(f"all {len(units[0])} images are copies of one: give different ones")
        raise ValueError("nothing would be left to learn from: give more images, or more groups of them")
    return folds


def _folders(sources: Sequence[ImageLike]) -> list[list[int]]:
    """The images of each folder."""
    folders: dict[str, list[int]] = {}
    for i, source in enumerate(sources):
        if not isinstance(source, str | os.PathLike):
            raise ValueError("holding out groups needs files: a group is what lies in one folder")
        folders.setdefault(str(Path(source).parent), []).append(i)
    if len(folders) < 3:
        raise ValueError(f"holding out groups needs images in at least 3 folders, got {len(folders)}")
    return list(folders.values())


def _natural(source: ImageLike, position: int) -> tuple[object, ...]:
    """Names as people order them, part9 before part10; what is no file keeps its position."""
    if not isinstance(source, str | os.PathLike):
        return (position,)
    parts = re.split(r"(\d+)", os.fspath(source))
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts)


def _by_time(sources: Sequence[ImageLike], first: Sequence[int]) -> list[int]:
    """The order of the files' times; nothing where they lie within an hour, as those of copies do."""
    times = []
    for i in first:
        source = sources[i]
        if not isinstance(source, str | os.PathLike):
            return []
        times.append(Path(source).stat().st_mtime_ns)
    if max(times) - min(times) < TIME_SPAN_NS:
        return []
    return sorted(range(len(times)), key=times.__getitem__)


def _distances(descriptors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Euclidean distances (N, N) of standardised descriptors."""
    x = _standardised(descriptors)
    squares = np.square(x).sum(axis=1)
    return np.asarray(np.sqrt(np.maximum(squares[:, None] + squares - 2 * x @ x.T, 0)))


def _standardised(descriptors: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.asarray(descriptors, np.float64)
    return np.asarray((x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-12))


def _connected(same: NDArray[np.bool_]) -> list[list[int]]:
    """The connected components of a symmetric relation (N, N)."""
    groups, seen = [], np.zeros(len(same), bool)
    for start in range(len(same)):
        if seen[start]:
            continue
        group, waiting = [], [start]
        seen[start] = True
        while waiting:
            group.append(waiting.pop())
            found = np.flatnonzero(same[group[-1]] & ~seen)
            seen[found] = True
            waiting += found.tolist()
        groups.append(sorted(group))
    return groups
