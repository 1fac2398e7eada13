"""Predictions in other tools' formats, read back by the tools' own libraries: every pixel is where it was."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import geojson
import jsonschema
import numpy as np
import pytest
import shapely
from PIL import Image

from test_prediction import predicted
from uflow.formats import to_coco, write_coco
from uflow.prediction import Prediction

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools

NUMBERS = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
# What labelme 5 and 6 ask of a file when they open it.
LABELME = {
    "type": "object",
    "required": ["version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth"],
    "properties": {
        "version": {"type": "string"},
        "flags": {"type": "object"},
        "imagePath": {"type": "string", "minLength": 1},
        "imageData": {"type": ["string", "null"]},
        "imageHeight": {"type": "integer"},
        "imageWidth": {"type": "integer"},
        "shapes": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["label", "points", "shape_type"],
                "properties": {
                    "label": {"type": "string"},
                    "points": {"type": "array", "items": NUMBERS, "minItems": 1},
                    "shape_type": {"enum": ["polygon", "mask"]},
                    "flags": {"type": "object"},
                    "description": {"type": "string"},
                    "group_id": {"type": ["integer", "null"]},
                    "mask": {"type": ["string", "null"]},
                },
            },
        },
    },
}


def shapes(height: int = 60, width: int = 90) -> np.ndarray:
    """A mask with a disc, a ring, a bar at the border and a slanted strip."""
    y, x = np.mgrid[:height, :width]
    disc, ring = np.hypot(y - 18, x - 20) < 11, np.abs(np.hypot(y - 34, x - 62) - 14) < 4
    strip = (np.abs(y - 52 + x // 8) < 3) & (x < 40)
    return disc | ring | strip | ((y >= height - 5) & (x > 50))


@pytest.fixture
def prediction() -> Prediction:
    result = predicted(shapes())
    assert sorted(len(region.contours) for region in result.regions) == [1, 1, 1, 2]
    return result


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def read_coco(content: dict[str, Any], path: Path) -> Any:
    coco = pytest.importorskip("pycocotools.coco")
    path.write_text(json.dumps(content))
    return coco.COCO(str(path))


def test_coco(prediction: Prediction, tmp_path: Path) -> None:
    coco = read_coco(prediction.to_coco(), tmp_path / "coco.json")
    assert coco.loadImgs([1])[0]["width"] == 90
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[1], catIds=coco.getCatIds(catNms=["anomaly"])))
    assert len(annotations) == 4
    total = np.zeros(prediction.mask.shape, bool)
    for annotation, region in zip(annotations, prediction.regions, strict=True):
        mask = coco.annToMask(annotation).astype(bool)
        total |= mask
        x, y, width, height = annotation["bbox"]
        own = np.zeros_like(mask)
        own[y : y + height, x : x + width] = region.mask
        assert overlap(mask, own) > (0.999 if len(region.contours) > 1 else 0.95)  # its polygons are rounded
        assert annotation["area"] == region.area
        assert annotation["score"] == region.score
    assert overlap(total, prediction.mask) > 0.97


def test_many_predictions_in_one_coco_file(tmp_path: Path) -> None:
    masks = [shapes(), np.zeros((10, 12), bool), np.ones((7, 5), bool)]
    write_coco((predicted(mask) for mask in masks), tmp_path / "all.json")
    content = json.loads((tmp_path / "all.json").read_text())
    assert content == to_coco([predicted(mask) for mask in masks])
    coco = read_coco(content, tmp_path / "all.json")
    assert coco.getImgIds() == [1, 2, 3]
    assert [len(coco.getAnnIds(imgIds=[i])) for i in (1, 2, 3)] == [4, 0, 1]
    assert len(set(coco.getAnnIds())) == 5
    (whole,) = coco.loadAnns(coco.getAnnIds(imgIds=[3]))
    assert coco.annToMask(whole).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.json"]


def test_run_lengths_begin_with_the_outside(tmp_path: Path) -> None:
    mask = np.ones((4, 6), bool)
    mask[1:3, 2:4] = False  # the first pixel is inside
    coco = read_coco(predicted(mask).to_coco(), tmp_path / "coco.json")
    (annotation,) = coco.loadAnns(coco.getAnnIds())
    np.testing.assert_array_equal(coco.annToMask(annotation), mask)


def test_labelme(prediction: Prediction) -> None:
    content = json.loads(json.dumps(prediction.to_labelme()))
    jsonschema.validate(content, LABELME)
    assert (content["imageHeight"], content["imageWidth"]) == (60, 90)
    image = Image.open(io.BytesIO(base64.b64decode(content["imageData"])))  # it came from no file
    np.testing.assert_array_equal(np.asarray(image), prediction.image)
    assert sorted(shape["shape_type"] for shape in content["shapes"]) == ["mask", "polygon", "polygon", "polygon"]
    for shape, region in zip(content["shapes"], prediction.regions, strict=True):
        if shape["shape_type"] == "mask":
            (x0, y0), (x1, y1) = shape["points"]  # both inside
            mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))))
            np.testing.assert_array_equal(mask, region.mask)
            assert mask.shape == (y1 - y0 + 1, x1 - x0 + 1)
        else:
            assert shapely.Polygon(shape["points"]).area == pytest.approx(region.area, abs=0.5)


def test_labelme_opens_it(prediction: Prediction, tmp_path: Path) -> None:
    try:  # its windows' library needs more of the system than a test machine may have
        import labelme
    except ImportError as error:
        pytest.skip(f"labelme is not here, or does not start: {error}")
    path = tmp_path / "part.json"
    path.write_text(json.dumps(prediction.to_labelme()))
    opened = labelme.LabelFile(str(path))
    names = {"anomaly": 1}
    found, _ = labelme.utils.shapes_to_label(prediction.mask.shape, opened.shapes, names)
    assert overlap(found > 0, prediction.mask) > 0.93  # its polygons are drawn with their border


def test_labelme_file_beside_its_image(prediction: Prediction, tmp_path: Path) -> None:
    from dataclasses import replace

    content = replace(prediction, path=tmp_path / "parts/7.png").to_labelme()
    jsonschema.validate(content, LABELME)
    assert (content["imagePath"], content["imageData"]) == ("7.png", None)


def test_geojson(prediction: Prediction) -> None:
    collection = geojson.loads(json.dumps(prediction.to_geojson()))
    assert collection.is_valid, collection.errors()
    y, x = np.mgrid[:60, :90]
    total = np.zeros((60, 90), bool)
    for feature, region in zip(collection["features"], prediction.regions, strict=True):
        polygon = shapely.geometry.shape(feature["geometry"])
        assert polygon.is_valid
        assert polygon.exterior.is_ccw
        inside = shapely.contains_xy(polygon, x + 0.5, y + 0.5)
        assert inside.sum() == region.area == feature["properties"]["area"]
        total |= inside
    np.testing.assert_array_equal(total, prediction.mask)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of its own
def test_supervision(prediction: Prediction) -> None:
    supervision = pytest.importorskip("supervision")
    detections = prediction.to_supervision()
    assert isinstance(detections, supervision.Detections)
    assert len(detections) == 4
    np.testing.assert_array_equal(detections.mask.any(axis=0), prediction.mask)
    np.testing.assert_array_equal(detections.area, [region.area for region in prediction.regions])
    for box, mask in zip(detections.xyxy, detections.mask, strict=True):
        rows, columns = np.nonzero(mask)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    drawn = supervision.PolygonAnnotator().annotate(prediction.image.copy(), detections)
    assert (drawn != prediction.image).any()
    assert len(predicted(np.zeros((5, 5), bool)).to_supervision()) == 0
