"""Pages that show results: a report in one file, and the parts of it that other pages use. Needs no torch."""

from .cards import Card, CardMaker, Finding, OutlinedRegion, PictureLimits
from .facts import model_facts
from .pictures import coloured_values, mask_path
from .report import Facts, PageTable, Promise, Report, write_report

__all__ = [
    "Card",
    "CardMaker",
    "Facts",
    "Finding",
    "OutlinedRegion",
    "PageTable",
    "PictureLimits",
    "Promise",
    "Report",
    "coloured_values",
    "mask_path",
    "model_facts",
    "write_report",
]
