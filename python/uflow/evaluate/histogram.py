"""How often each score was seen, in bounded memory, for the streaming metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BINS", "ScoreHistogram", "group", "lowest_score", "lowest_scores", "next_above", "to_keys"]

BINS = 1 << 18  # different scores that are kept apart: 2 MB for each number kept of them


class ScoreHistogram:
    """Sums of `columns` values by float32 score, given as the ordered integers of `to_keys`, in bounded memory.

    The grid starts with a bin for each float32 value and loses its last bit, all over, whenever more than `bins` bins
    are in use: so it is fine where all scores are close together, and depends on the scores, not on their order.
    """

    def __init__(self, columns: int, bins: int) -> None:
        self.bins, self.shift = bins, 0
        self._keys = np.empty(0, np.int32)  # ascending, shifted
        self._sums = np.empty((columns, 0))
        self._waiting: list[tuple[NDArray[np.int32], NDArray[np.float64]]] = []
        self._n_waiting = 0

    def count(self, keys: NDArray[np.int32]) -> None:
        """Add 1 for each key."""
        if keys.size:
            self._add(*group(keys >> self.shift))

    def add(self, keys: NDArray[np.int32], values: NDArray[np.float64]) -> None:
        """Add values (columns, n) at n keys."""
        self._add(keys >> self.shift, values)

    def _add(self, keys: NDArray[np.int32], values: NDArray[np.float64]) -> None:
        self._waiting.append((keys, values))
        self._n_waiting += keys.size
        if self._n_waiting > self.bins:  # seldom, because it touches all bins
            self._flush()

    def read(self, shift: int = 0) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """The keys in use, ascending, with at least `shift` bits less than at first, and their sums (columns, n)."""
        self._flush()
        while self.shift < shift:
            self._coarsen()
        return self._keys, self._sums

    def _flush(self) -> None:
        if self._waiting:
            keys, values = zip((self._keys, self._sums), *self._waiting, strict=True)
            self._waiting, self._n_waiting = [], 0
            self._keys, self._sums = group(np.concatenate(keys), np.concatenate(values, axis=1))
        while self._keys.size > self.bins:
            self._coarsen()

    def _coarsen(self) -> None:
        self.shift += 1
        self._keys, self._sums = _group_sorted(self._keys >> 1, self._sums)


def group(
    keys: NDArray[np.int32], values: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """The distinct ones of n keys, ascending, and the sums (columns, distinct) of their values (columns, n) or of 1."""
    low = int(keys.min())
    if int(keys.max()) - low < 4 * keys.size:  # close together: counting is several times quicker than sorting
        places = keys - np.int32(low)
        sums = np.stack([np.bincount(places, column) for column in ([None] if values is None else values)])
        used = np.flatnonzero(sums.any(axis=0))
        return used.astype(np.int32) + np.int32(low), sums[:, used].astype(np.float64)
    if values is None:
        distinct, counts = np.unique(keys, return_counts=True)
        return distinct, counts[None].astype(np.float64)
    order = np.argsort(keys, kind="stable")
    return _group_sorted(keys[order], values[:, order])


def _group_sorted(
    keys: NDArray[np.int32], values: NDArray[np.float64]
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    starts = np.flatnonzero(np.diff(keys, prepend=keys[:1] - 1))
    return keys[starts], np.add.reduceat(values, starts, axis=1)


def to_keys(scores: NDArray[Any]) -> NDArray[np.int32]:
    """float32 scores as integers in the same order: the bits, those after the sign inverted where it is negative."""
    with np.errstate(over="ignore"):  # beyond float32: infinite
        bits = (scores.astype(np.float32) + np.float32(0)).view(np.int32)  # + 0: the two zeros are one
    return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))


_LOWEST_KEY = int(to_keys(np.full(1, -np.inf))[0])


def lowest_score(key: int, shift: int) -> float:
    """The lowest float32 score of a bin."""
    return float(lowest_scores(np.array([key]), shift)[0])


def lowest_scores(keys: NDArray[Any], shift: int) -> NDArray[np.float32]:
    """The lowest float32 score of each of some bins."""
    lowest = np.maximum(keys.astype(np.int64) << shift, _LOWEST_KEY).astype(np.int32)  # below are the NaNs
    bits: NDArray[np.int32] = np.where(lowest >= 0, lowest, lowest ^ np.int32(0x7FFFFFFF))
    return bits.view(np.float32)


def next_above(largest: float) -> float:
    return float(np.nextafter(np.float32(largest), np.float32(np.inf)))
