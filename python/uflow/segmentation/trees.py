"""Max-trees, connected components and regions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from ..arrays import as_mask, check_connectivity, contiguous


@dataclass(frozen=True)
class Region:
    """A connected region of a mask; `bbox` is (top, left, bottom, right), half open, `centroid` (row, column)."""

    area: int
    bbox: tuple[int, int, int, int]
    centroid: tuple[float, float]
    log_nfa: float
    score: float


def max_tree(image: ArrayLike, connectivity: int = 4) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Compute the max-tree of an image: the inclusion tree of the components of {image >= level}.

    Args:
        image: (H, W), finite; float32 and float64 as they are, other real dtypes are converted to float64.
        connectivity: 4 or 8 neighbours.

    Returns:
        parent (H, W) int32, flat indices: the canonical pixel of the pixel's component or, for a canonical pixel, of
        the component just below; the root is its own parent. order (H*W,) int32: root first, parents before children.

    Raises:
        ValueError: not 2-D, empty or not finite, or another connectivity.

    Berger et al. 2007, "Effective component tree computation"; the convention is scikit-image's.

    >>> parent, order = max_tree([[0.0, 2.0, 1.0]])
    >>> parent.tolist(), order.tolist()
    ([[0, 2, 0]], [0, 2, 1])
    """
    check_connectivity(connectivity)
    array = np.asarray(image)
    kind, bytes_each = array.dtype.kind, array.dtype.itemsize
    if kind not in "fiub":
        raise TypeError(f"max_tree needs a real image, got dtype {array.dtype}")
    return _core.max_tree(
        contiguous(array, np.float32 if kind == "f" and bytes_each <= 4 else np.float64), connectivity
    )


def connected_components(mask: ArrayLike, connectivity: int = 4) -> tuple[NDArray[np.int32], int]:
    """Label the connected components of a mask: (H, W) int32, 0 outside, 1..n in raster order, and n.

    `connectivity` is 4 or 8 neighbours.

    Raises:
        ValueError: not 2-D or empty, or another connectivity.

    >>> labels, n = connected_components([[1, 0, 1], [1, 0, 1]])
    >>> labels.tolist(), n
    ([[1, 0, 2], [1, 0, 2]], 2)
    """
    check_connectivity(connectivity)
    return _core.connected_components(as_mask(mask), connectivity)


def regions(mask: ArrayLike, log_nfa: ArrayLike, anomaly_map: ArrayLike) -> list[Region]:
    """List the 4-connected regions of a mask, lowest log_nfa first.

    Args:
        mask: (H, W), true inside.
        log_nfa: (H, W), log10; a region keeps its smallest.
        anomaly_map: (H, W) scores; a region keeps its largest.

    Raises:
        ValueError: not 2-D, empty, of different shapes, or NaN inside the mask.

    >>> regions([[1, 0]], [[-3.0, 2.0]], [[0.9, 0.1]])
    [Region(area=1, bbox=(0, 0, 1, 1), centroid=(0.0, 0.0), log_nfa=-3.0, score=0.9)]
    """
    inside, nfa, score = as_mask(mask), np.asarray(log_nfa), np.asarray(anomaly_map)
    if nfa.shape != inside.shape or score.shape != inside.shape:
        raise ValueError(
            f"mask {inside.shape}, log_nfa {nfa.shape} and anomaly_map {score.shape} must have the same shape"
        )
    dtype = np.float32 if nfa.dtype == score.dtype == np.float32 else np.float64
    found = _core.regions(inside, contiguous(nfa, dtype), contiguous(score, dtype))
    return [Region(*values) for values in found]
