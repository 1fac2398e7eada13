"""Figures of the literature to stand beside one's own, from published.json; none was measured by this program.

Source of all: Tailanian, Pardo, Musé, "U-Flow: A U-shaped Normalizing Flow for Anomaly Detection with Unsupervised
Threshold", JMIV 2024, doi 10.1007/s10851-024-01193-y, tables 1, 2, 3, 5, 8. Figures are shares of 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = [
    "CITATION",
    "CONTENT",
    "DATASETS",
    "IMAGES",
    "METHODS",
    "METRICS",
    "MVTEC_AD",
    "OBJECTS",
    "SOURCE",
    "TEXTURES",
    "by_method",
    "categories",
    "is_single",
]

CITATION = "Tailanian, Pardo, Musé, U-Flow, JMIV 2024, doi 10.1007/s10851-024-01193-y, tables 1, 2, 3, 5, 8"

SOURCE = "U-Flow with MS-CaiT at 448 pixels, its epoch chosen on the test set (Tailanian et al., JMIV 2024)"

# The fields of `Evaluation` that the literature gives for U-Flow; miou is at the automatic threshold.
METRICS = ("pixel_auroc", "aupro", "miou", "miou_best")

CONTENT: dict[str, Any] = json.loads(Path(__file__).with_name("published.json").read_bytes())

TEXTURES: tuple[str, ...] = tuple(CONTENT["mvtec"]["textures"])
OBJECTS: tuple[str, ...] = tuple(CONTENT["mvtec"]["objects"])

# U-Flow on each category of MVTec AD.
MVTEC_AD: dict[str, dict[str, float]] = CONTENT["mvtec"]["categories"]["U-Flow"]

# Images to train on and to test of each category of MVTec AD (Bergmann et al., IJCV 2021).
IMAGES: dict[str, tuple[int, int]] = {name: (train, test) for name, (train, test) in CONTENT["mvtec"]["images"].items()}

# U-Flow on other data sets, by their layout: means over all categories.
DATASETS: dict[str, dict[str, float]] = {
    layout: {metric: CONTENT[layout]["means"]["U-Flow"][metric] for metric in METRICS}
    for layout in ("btad", "lgg-mri", "shanghaitech")
}

# Other methods, means over the 15 categories of MVTec AD. A method without a threshold of its own has its mIoU at the
# best threshold of the test set, and at a fair one: one false pixel a training image.
METHODS: dict[str, dict[str, float]] = {
    name: figures for name, figures in CONTENT["mvtec"]["means"].items() if name != "U-Flow"
}


def categories(layout: str) -> tuple[str, ...]:
    """The categories of a data set whose figures were published one by one, in the paper's order.

    >>> categories("btad")
    ('01', '02', '03')
    """
    by_category = CONTENT.get(layout, {}).get("categories", {})
    return tuple(dict.fromkeys(name for figures in by_category.values() for name in figures))


def is_single(layout: str) -> bool:
    """Whether a data set was published as a whole alone."""
    return layout in CONTENT and not categories(layout)


def by_method(layout: str) -> dict[str, dict[str, Mapping[str, float]]]:
    """Figures of each method by category, U-Flow first; under "" those of a data set that was published as a whole.

    >>> by_method("btad")["CFlow"]["02"]["pixel_auroc"], by_method("lgg-mri")["CFlow"][""]["aupro"]
    (0.9613, 0.5947)
    """
    content = CONTENT.get(layout, {})
    if is_single(layout):
        return {method: {"": figures} for method, figures in content["means"].items()}
    return dict(content.get("categories", {}))
