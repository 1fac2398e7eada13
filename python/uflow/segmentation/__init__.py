"""The a contrario segmentation: latents to log NFA, mask and regions. The only rooms that import the compiled core."""

from .laws import AreaLaw, Background
from .maps import anomaly_map_from_energies, energies, weighted_sum
from .nfa import TailName, TestsName, log_nfa, log_nfa_block, log_nfa_from_energies, log_nfa_of_field, log_pfa_tree
from .outlines import draw_regions
from .tails import log10_binomial_sf, log10_chi2_sf, number_of_tests
from .trees import Region, connected_components, max_tree, regions

__all__ = [
    "AreaLaw",
    "Background",
    "Region",
    "TailName",
    "TestsName",
    "anomaly_map_from_energies",
    "connected_components",
    "draw_regions",
    "energies",
    "log10_binomial_sf",
    "log10_chi2_sf",
    "log_nfa",
    "log_nfa_block",
    "log_nfa_from_energies",
    "log_nfa_of_field",
    "log_pfa_tree",
    "max_tree",
    "number_of_tests",
    "regions",
    "weighted_sum",
]
