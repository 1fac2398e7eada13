"""What is normal: the law of a cell, and what a region of each area is worth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

POLYOMINOES, POLYOMINO_GROWTH = 0.316915, 4.062570  # connected regions of r cells number about a0 b^r / r


@dataclass(frozen=True)
class Background:
    """Energies of one scale on normal parts: e ~ scale * chi2_dof, cells correlated over correlation_area cells.

    The log-probability of a region of A cells is then (A / correlation_area) * log10 sf(e / scale; dof). The paper's
    model is scale 1, dof the number of channels, correlation_area 1. The binomial tail uses correlation_area only.
    """

    scale: float
    dof: float
    correlation_area: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"Background.{name} must be positive and finite, got {value}")


@dataclass(frozen=True)
class AreaLaw:
    """What a region of each area is worth, in a map of n cells.

    Attributes:
        effective_area: (n + 1,) float64, entry a: how many independent cells a region of a cells is worth.
        log_tests: (n + 1,) float64, entry a: log10 of the number of tests that a region of a cells stands for.
    """

    effective_area: NDArray[np.float64]
    log_tests: NDArray[np.float64]

    @classmethod
    def power(cls, cells: int, exponent: float, places: int | None = None) -> AreaLaw:
        """Effective areas f(a) = a^exponent, and as many tests as regions of so many independent cells would be.

        ``N(a) = n * n^exponent * a0 b^f(a) / f(a)``: a place for each of the n cells, an equal share of the false
        alarms for each of the n^exponent effective areas, and the polyominoes of f(a) cells (`number_of_tests`).
        Exponent 1 is independence, the paper's number by area; 0 says that all cells of a region know the same.
        `places`: n, where not all cells of the map are tested.
        """
        areas = np.arange(cells + 1, dtype=np.float64)
        areas[0] = 1  # no region has area 0: any number does
        effective = areas**exponent
        log_polyominoes = math.log10(POLYOMINOES) + effective * math.log10(POLYOMINO_GROWTH) - np.log10(effective)
        places = cells if places is None else places
        return cls(effective, (1 + exponent) * math.log10(places) + log_polyominoes)
