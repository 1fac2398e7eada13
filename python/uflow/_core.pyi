from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from typing_extensions import NotRequired

class Tail:
    exact: Tail
    chernoff: Tail
    chernoff_unguarded: Tail
    binomial: Tail

class Background:
    def __init__(
        self, scale: float, dof: float, correlation_area: float, channels: float, exceedance: float
    ) -> None: ...

class _ComponentTree(TypedDict):
    parent: NDArray[np.int32]
    area: NDArray[np.int32]
    level: NDArray[Any]  # the dtype of the image
    exceedances: NotRequired[NDArray[np.int64]]  # where counts were given
    node_of: NDArray[np.int32]

def max_tree(
    image: NDArray[np.float32] | NDArray[np.float64], connectivity: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]: ...
def component_tree(
    image: NDArray[np.float32] | NDArray[np.float64], connectivity: int, exceedances: NDArray[np.int32] | None = None
) -> _ComponentTree: ...
def select_regions(parent: NDArray[np.int32], value: NDArray[np.float64]) -> NDArray[np.int32]: ...
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
) -> NDArray[np.float32]: ...
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
def joint_energy(
    energies: list[NDArray[np.float32]], backgrounds: list[Background], threads: int
) -> NDArray[np.float32]: ...
def anomaly_map(
    energies: list[NDArray[np.float32]], channels: list[float], height: int, width: int, threads: int
) -> NDArray[np.float32]: ...
def resize_bilinear(maps: NDArray[np.float32], height: int, width: int, threads: int) -> NDArray[np.float32]: ...
def connected_components(mask: NDArray[np.bool_], connectivity: int) -> tuple[NDArray[np.int32], int]: ...
def regions(
    mask: NDArray[np.bool_], log_nfa: NDArray[Any], anomaly_map: NDArray[Any]
) -> list[tuple[int, tuple[int, int, int, int], tuple[float, float], float, float]]: ...  # as segmentation.Region
def log10_chi2_sf(x: NDArray[np.float64], dof: NDArray[np.float64]) -> NDArray[np.float64]: ...
def log10_chi2_chernoff(t: NDArray[np.float64], dof: NDArray[np.float64], guarded: bool) -> NDArray[np.float64]: ...
def log10_binomial_sf(
    k: NDArray[np.float64], n: NDArray[np.float64], p: NDArray[np.float64]
) -> NDArray[np.float64]: ...
def chi2_1_quantile(q: float) -> float: ...
def block_tail_table(n: int, channels: int, p: float, continuous: bool) -> NDArray[np.float64]: ...
def log10_polyominoes(r: NDArray[np.float64]) -> NDArray[np.float64]: ...
def log10_number_of_tests(cells: list[int]) -> float: ...
def log10_number_of_tests_by_area(r: NDArray[np.float64], cells: int, scales: int) -> NDArray[np.float64]: ...
