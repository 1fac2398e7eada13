"""Predictions in the formats of annotation tools: COCO, labelme, GeoJSON, supervision. Numpy and Pillow are enough.

Places are x and y in pixels from the upper left corner of the image in all of them, as in `DetectedRegion`.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .extras import require
from .files import PathLike, atomic_write

if TYPE_CHECKING:
    from .prediction import DetectedRegion, Prediction

__all__ = ["LABEL", "to_coco", "to_geojson", "to_labelme", "to_supervision", "write_coco"]

LABEL = "anomaly"  # the one class of regions
LABELME_VERSION = "5.5.0"  # whose form is written: later ones read it


def to_coco(predictions: Iterable[Prediction]) -> dict[str, Any]:
    """COCO's object detection format: one image a prediction, one annotation a region, the category `LABEL`.

    A region without holes is a polygon, one with holes a run-length code, which is exact; both with `iscrowd` 0. The
    area is in pixels, and annotations have `score`, `p_value` and `log_nfa` besides. An image that came from no file
    is named by its number.

    Args:
        predictions: any number, a stream too.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, prediction in enumerate(predictions, 1):
        height, width = prediction.mask.shape
        name = f"{number:06}" if prediction.path is None else str(prediction.path)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for region in prediction.regions:
            identity = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0}
            annotations.append(identity | _coco_region(region, (height, width)))
    categories = [{"id": 1, "name": LABEL, "supercategory": ""}]
    return {"info": {"description": "uflow"}, "images": images, "categories": categories, "annotations": annotations}


def write_coco(predictions: Iterable[Prediction], path: PathLike) -> None:
    """Write one COCO file of all predictions, see `to_coco`; whole or not at all."""
    content = json.dumps(to_coco(predictions), allow_nan=False)
    with atomic_write(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def _coco_region(region: DetectedRegion, size: tuple[int, int]) -> dict[str, Any]:
    x0, y0, x1, y1 = region.box
    segmentation: Any
    if len(region.contours) == 1:
        segmentation = [region.contours[0].ravel().tolist()]
    else:
        segmentation = {"size": list(size), "counts": _run_lengths(_whole_mask(region, size))}
    return {"segmentation": segmentation, "area": region.area, "bbox": [x0, y0, x1 - x0, y1 - y0], **_numbers(region)}


def _numbers(region: DetectedRegion) -> dict[str, Any]:
    return {"score": region.score, "p_value": region.p_value, "log_nfa": region.log_nfa}


def _whole_mask(region: DetectedRegion, size: tuple[int, int]) -> NDArray[np.bool_]:
    x0, y0, x1, y1 = region.box
    whole = np.zeros(size, bool)
    whole[y0:y1, x0:x1] = region.mask
    return whole


def _run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed code: lengths of runs of outside and inside, in turn, column by column."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs: list[int] = np.diff([0, *changes, flat.size]).tolist()
    return [0, *runs] if flat[0] else runs


def to_labelme(prediction: Prediction) -> dict[str, Any]:
    """The content of a labelme file: one shape a region, labelled `LABEL`.

    A region without holes is a polygon, one with holes a mask. The file belongs beside the image: it names the image
    without its folder. An image that came from no file is in it, as PNG.
    """
    height, width = prediction.mask.shape
    shapes = [_labelme_shape(region) for region in prediction.regions]
    return {
        "version": LABELME_VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": "image.png" if prediction.path is None else prediction.path.name,
        "imageData": _png(prediction.image) if prediction.path is None else None,
        "imageHeight": height,
        "imageWidth": width,
    }


def _labelme_shape(region: DetectedRegion) -> dict[str, Any]:
    x0, y0, x1, y1 = region.box
    whole = len(region.contours) == 1
    found = f"score {region.score:.3f}, log10 NFA {region.log_nfa:.1f}"
    return {
        "label": LABEL,
        "points": region.contours[0].tolist() if whole else [[x0, y0], [x1 - 1, y1 - 1]],
        "group_id": None,
        "description": found if region.p_value is None else f"p-value {region.p_value:.3g}, {found}",
        "shape_type": "polygon" if whole else "mask",
        "flags": {},
        "mask": None if whole else _png(region.mask),
    }


def _png(array: NDArray[Any]) -> str:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    return base64.b64encode(file.getvalue()).decode()


def to_geojson(prediction: Prediction) -> dict[str, Any]:
    """A GeoJSON FeatureCollection: one polygon with holes a region. Coordinates are pixels of the image, y downward."""
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [[*ring.tolist(), ring[0].tolist()] for ring in region.contours],
            },
            "properties": {"label": LABEL, "area": region.area, **_numbers(region)},
        }
        for region in prediction.regions
    ]
    return {"type": "FeatureCollection", "features": features}


def to_supervision(prediction: Prediction) -> Any:
    """`supervision.Detections`: boxes, masks of the image's size, scores as confidence, the class `LABEL` as 0.

    Raises:
        ModuleNotFoundError: supervision is not installed.
    """
    require("supervision", "supervision")
    import supervision

    regions = prediction.regions
    if not regions:
        return supervision.Detections.empty()
    size = (prediction.mask.shape[0], prediction.mask.shape[1])
    return supervision.Detections(
        xyxy=np.array([region.box for region in regions], np.float32),
        mask=np.stack([_whole_mask(region, size) for region in regions]),
        confidence=np.array([region.score for region in regions], np.float32),
        class_id=np.zeros(len(regions), int),
        data={
            "class_name": np.array([LABEL] * len(regions)),
            "p_value": np.array([region.p_value for region in regions], np.float64),
            "log_nfa": np.array([region.log_nfa for region in regions]),
        },
    )
