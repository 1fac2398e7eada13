from typing import Any

import numpy as np
from numpy.typing import NDArray

class Tail:
    exact: Tail
    chernoff: Tail
    chernoff_unguarded: Tail
    binomial: Tail

class Background:
    def __init__(
        self, scale: float, dof: float, correlation_area: float, channels: float, exceedance: float
    ) -> None: ...

def max_tree(
    image: NDArray[np.float32] | NDArray[np.float64], connectivity: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]: ...
def energies(latents: NDArray[Any], threads: int) -> NDArray[Any]: ...  # float32 or float64, as the latents
def energies_and_exceedances(
    latents: NDArray[Any], tau: float, threads: int
) -> tuple[NDArray[Any], NDArray[np.int32]]: ...
def exceedances(latents: NDArray[Any], tau: float, threads: int) -> tuple[NDArray[np.int32], bool]: ...
def log_pfa(
    energy: NDArray[np.float32] | NDArray[np.float64],
    exceedances: NDArray[np.int32] | None,
    tail: Tail,
    background: Background,
    threads: int,
) -> NDArray[np.float32]: ...
def log_nfa(
    energies: list[NDArray[np.float32]],
    exceedances: list[NDArray[np.int32]] | None,
    backgrounds: list[Background],
    height: int,
    width: int,
    tail: Tail,
    by_area: bool,
    threads: int,
    effective_area: list[NDArray[np.float64]] | None = None,
    log_tests: list[NDArray[np.float64]] | None = None,
) -> NDArray[np.float32]:
    """log10 NFA (B, height, width): a region of a cells at a level of log10 probability p scores
    effective_area[a] * p / correlation_area + log_tests[a], and nested regions are chosen among by these scores.

    effective_area: per scale (cells + 1,): how many independent cells a region of a cells is worth, positive for
    a > 0; default a itself; not with the binomial tail, whose probability is that of a whole region.
    log_tests: per scale (cells + 1,): log10 of the number of tests for each area, log_tests[1] that of a cell outside
    the final regions; default log10_number_of_tests_by_area; only with by_area. The values of area 0 are not used.
    """

def log_nfa_block(
    exceedances: list[NDArray[np.int32]],
    channels: list[int],
    height: int,
    width: int,
    window: int,
    exceedance: float,
    continuous: bool,
    threads: int,
) -> NDArray[np.float64]: ...
def anomaly_map(
    energies: list[NDArray[np.float32]], means: list[float], height: int, width: int, threads: int
) -> NDArray[np.float32]: ...
def resize_bilinear(maps: NDArray[np.float32], height: int, width: int, threads: int) -> NDArray[np.float32]: ...
def connected_components(mask: NDArray[np.bool_], connectivity: int) -> tuple[NDArray[np.int32], int]: ...
def draw_regions(
    map: NDArray[np.float32],
    found: NDArray[np.bool_],
    usual: float,
    quiet: float,
    height: int,
    width: int,
    counted: NDArray[np.bool_] | None = None,
    image: NDArray[np.uint8] | None = None,
) -> NDArray[np.bool_]: ...
def regions(
    mask: NDArray[np.bool_], log_nfa: NDArray[Any], anomaly_map: NDArray[Any]
) -> list[tuple[int, tuple[int, int, int, int], tuple[float, float], float, float]]: ...  # as segmentation.Region
def log10_chi2_sf(x: NDArray[np.float64], dof: NDArray[np.float64]) -> NDArray[np.float64]: ...
def log10_binomial_sf(
    k: NDArray[np.float64], n: NDArray[np.float64], p: NDArray[np.float64]
) -> NDArray[np.float64]: ...
def chi2_1_quantile(q: float) -> float: ...
def log10_number_of_tests(cells: list[int]) -> float: ...
def log10_number_of_tests_by_area(cells: int, scales: int) -> NDArray[np.float64]:
    """log10(scales * cells^2 * a b^area / area) for area = 0 .. cells (that of area 0 means nothing): (cells + 1,)."""
