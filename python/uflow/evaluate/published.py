"""Figures of the literature to stand beside one's own; none of them was measured by this program.

Source of all: Tailanian, Pardo, Musé, "U-Flow: A U-shaped Normalizing Flow for Anomaly Detection with Unsupervised
Threshold", JMIV 2024, doi 10.1007/s10851-024-01193-y. Figures are shares of 1.
"""

from __future__ import annotations

__all__ = ["DATASETS", "IMAGES", "METHODS", "METRICS", "MVTEC_AD", "OBJECTS", "SOURCE", "TEXTURES"]

SOURCE = "U-Flow with MS-CaiT at 448 pixels, its epoch chosen on the test set (Tailanian et al., JMIV 2024)"

# The names of the fields of `Evaluation`; miou is at the automatic threshold.
METRICS = ("pixel_auroc", "aupro", "miou", "miou_best")

TEXTURES = ("carpet", "grid", "leather", "tile", "wood")
OBJECTS = (
    *("bottle", "cable", "capsule", "hazelnut", "metal_nut"),
    *("pill", "screw", "toothbrush", "transistor", "zipper"),
)


def _figures(*values: float) -> dict[str, float]:
    return dict(zip(METRICS, values, strict=False))


# U-Flow on MVTec AD.
MVTEC_AD: dict[str, dict[str, float]] = {
    "carpet": _figures(0.9942, 0.9849, 0.5663, 0.5664),
    "grid": _figures(0.9849, 0.9546, 0.4307, 0.4316),
    "leather": _figures(0.9959, 0.9840, 0.4183, 0.4242),
    "tile": _figures(0.9754, 0.9301, 0.6188, 0.6229),
    "wood": _figures(0.9749, 0.9580, 0.5427, 0.5523),
    "bottle": _figures(0.9865, 0.9564, 0.6564, 0.6617),
    "cable": _figures(0.9861, 0.9373, 0.6491, 0.6514),
    "capsule": _figures(0.9902, 0.9502, 0.4124, 0.4182),
    "hazelnut": _figures(0.9930, 0.9735, 0.6511, 0.6546),
    "metal_nut": _figures(0.9882, 0.9432, 0.6267, 0.6307),
    "pill": _figures(0.9935, 0.9718, 0.4803, 0.4815),
    "screw": _figures(0.9949, 0.9733, 0.3726, 0.3811),
    "toothbrush": _figures(0.9879, 0.8880, 0.4121, 0.4188),
    "transistor": _figures(0.9787, 0.9188, 0.7354, 0.7381),
    "zipper": _figures(0.9860, 0.9547, 0.5395, 0.5460),
}

# Images to train on and to test of each category of MVTec AD (Bergmann et al., IJCV 2021).
IMAGES: dict[str, tuple[int, int]] = {
    "carpet": (280, 117),
    "grid": (264, 78),
    "leather": (245, 124),
    "tile": (230, 117),
    "wood": (247, 79),
    "bottle": (209, 83),
    "cable": (224, 150),
    "capsule": (219, 132),
    "hazelnut": (391, 110),
    "metal_nut": (220, 115),
    "pill": (267, 167),
    "screw": (320, 160),
    "toothbrush": (60, 42),
    "transistor": (213, 100),
    "zipper": (240, 151),
}

# U-Flow on other data sets, by their layout: means over all categories, one mIoU.
DATASETS: dict[str, dict[str, float]] = {
    "btad": _figures(0.9813, 0.8179, 0.5482),
    "lgg-mri": _figures(0.9355, 0.7174, 0.1467),
    "shanghaitech": _figures(0.8719, 0.4754, 0.4950),
}

# Other methods, means over the 15 categories of MVTec AD. A method without a threshold of its own has its mIoU at the
# best threshold of the test set, and at a fair one: one false pixel a training image.
METHODS: dict[str, dict[str, float]] = {
    "CFlow": {"pixel_auroc": 0.9863, "miou_best": 0.4302, "miou_fair": 0.3177},
    "FastFlow": {"pixel_auroc": 0.9845, "miou_best": 0.4930, "miou_fair": 0.3825},
    "PatchCore": {"pixel_auroc": 0.9805},
    "PEFM": {"pixel_auroc": 0.9762},
    "PaDiM": {"pixel_auroc": 0.9748},
    "SPADE": {"pixel_auroc": 0.9603},
    "PatchSVDD": {"pixel_auroc": 0.9571},
    "CS-Flow": {"pixel_auroc": 0.9430, "miou_best": 0.3919, "miou_fair": 0.3279},
}
