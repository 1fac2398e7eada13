"""A prediction tells what it should: places of regions, where it comes from, pictures of itself."""

import hashlib
import json
import os
from datetime import datetime, timezone
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import shapely
from PIL import Image

import uflow
from uflow import segmentation
from uflow.outline import polygon
from uflow.prediction import OUTLINE_RGB, DetectedRegion, Prediction, mask_outline, overlay, write_prediction

SCHEMA = json.loads((Path(__file__).parent.parent / "docs/prediction.schema.json").read_text())


def predicted(mask: np.ndarray) -> Prediction:
    """A prediction with this mask, on a grey image."""
    anomaly_map = np.where(mask, 0.9, 0.0).astype(np.float32)
    log_nfa = np.where(mask, -3, 5).astype(np.float32)
    found = segmentation.regions(mask, log_nfa, anomaly_map)
    regions = [DetectedRegion.from_mask(region, mask, None) for region in found]
    image = np.full((*mask.shape, 3), 100, np.uint8)
    return Prediction(float(anomaly_map.max()), bool(mask.any()), anomaly_map, log_nfa, mask, regions, image)


@pytest.fixture
def prediction() -> Prediction:
    mask = np.zeros((40, 60), bool)
    mask[10:20, 30:50] = True
    return predicted(mask)


# Regions --------------------------------------------------------------------------------------------------------------


def test_places_are_x_and_y_from_the_upper_left_corner(prediction: Prediction) -> None:
    (region,) = prediction.regions
    assert region.box == (30, 10, 50, 20)
    assert region.centroid == (40, 15)  # the middle of the box
    (ring,) = region.contours
    assert (*ring.min(axis=0), *ring.max(axis=0)) == (30, 10, 50, 20)
    assert ring.dtype == np.float32
    assert len(ring) == 8  # a rectangle with its corners cut: nothing else
    rest = prediction.mask.copy()
    rest[10:20, 30:50] &= ~region.mask
    assert not rest.any()


def test_polygons_hold_the_pixels_of_their_region_and_no_others() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:24, :30]
    several, with_holes = 0, 0
    for share in np.linspace(0.3, 0.8, 20):
        result = predicted(rng.random((24, 30)) < share)
        covered = np.zeros((24, 30), int)
        for region in result.regions:
            outer, *holes = region.contours
            shape = shapely.Polygon(outer, holes)
            assert shape.is_valid
            inside = shapely.contains_xy(shape, x + 0.5, y + 0.5)
            assert np.count_nonzero(inside) == region.area
            x0, y0, x1, y1 = region.box
            np.testing.assert_array_equal(inside[y0:y1, x0:x1], region.mask)
            assert abs(shape.area - region.area) <= 0.5 * len(region.contours)
            covered += inside
            several += 1
            with_holes += bool(holes)
        np.testing.assert_array_equal(covered, result.mask)
    assert several > 100
    assert with_holes > 10


def test_a_region_around_another_is_told_from_it() -> None:
    mask = np.ones((9, 11), bool)
    mask[1:8, 1:10] = False
    mask[3:6, 3:8] = True
    small, ring = sorted(predicted(mask).regions, key=lambda region: region.area)
    assert ring.area == ring.mask.sum() == 36
    assert len(ring.contours) == 2
    assert small.area == small.mask.sum() == 15
    assert len(small.contours) == 1


def test_a_polygon_goes_around_one_region() -> None:
    with pytest.raises(ValueError, match="around one region, and the mask has 2"):
        polygon(np.array([[True, False, True]]))
    with pytest.raises(ValueError, match="the mask has 0"):
        polygon(np.zeros((3, 3), bool))


# Where it comes from --------------------------------------------------------------------------------------------------


def test_line_of_json_follows_the_schema(detector: uflow.Detector, dataset: Path, tmp_path: Path) -> None:
    detector.save(tmp_path / "grating.uflow")
    model, part = uflow.load(tmp_path / "grating.uflow", "cpu"), dataset / "test/square/00.png"
    before = datetime.now(timezone.utc).replace(microsecond=0)
    line = json.loads(json.dumps(model.predict(part).to_dict()))
    jsonschema.validate(line, SCHEMA)
    assert set(line) == set(SCHEMA["required"]) == set(SCHEMA["properties"])
    assert line["image"] == str(part)
    assert line["sha256"] == hashlib.sha256(part.read_bytes()).hexdigest()
    assert line["model"] == "grating.uflow"
    assert line["model_sha256"] == hashlib.sha256((tmp_path / "grating.uflow").read_bytes()).hexdigest()
    assert before <= datetime.fromisoformat(line["time"].replace("Z", "+00:00")) <= datetime.now(timezone.utc)
    assert line["alpha"] == 0.2
    assert line["size"] == [80, 96]
    assert line["is_anomalous"]
    (region, *_) = line["regions"]
    assert region["log_nfa"] == line["log_nfa"]
    assert region["p_value"] == line["p_value"] <= 0.2
    assert set(region) == set(SCHEMA["properties"]["regions"]["items"]["required"])

    model.calibrate(dataset / "test/good", alpha=0.3)  # no file holds that model
    line = model.predict(np.asarray(Image.open(part))).to_dict()
    jsonschema.validate(line, SCHEMA)
    assert [line[key] for key in ("image", "sha256", "model", "model_sha256")] == [None] * 4
    assert line["alpha"] == 0.3


def test_schema_refuses_what_is_wrong(prediction: Prediction) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(prediction.to_dict(), SCHEMA)
    for key, value in {"schema": 2, "score": 1.5, "p_value": 0, "size": [3], "time": "today", "new": 1}.items():
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**prediction.to_dict(), key: value}, SCHEMA)


def test_digest_of_a_file_that_changed_is_not_told(detector: uflow.Detector, dataset: Path, tmp_path: Path) -> None:
    part = tmp_path / "part.png"
    part.write_bytes((dataset / "test/good/00.png").read_bytes())
    changed, gone, same = detector.predict([part, part, part])
    assert same.to_dict()["sha256"] == hashlib.sha256(part.read_bytes()).hexdigest()
    os.utime(part, (1, 1))
    assert changed.to_dict()["sha256"] is None
    part.unlink()
    assert gone.to_dict()["sha256"] is None
    assert same.sha256  # told once, it stays


def test_repr_is_one_line(prediction: Prediction, detector: uflow.Detector, dataset: Path) -> None:
    assert repr(prediction) == "<Prediction 60 x 40 pixels: anomalous, score 0.900, log10 NFA -3.0, 1 region>"
    found = detector.predict(dataset / "test/good/00.png")
    assert repr(found).startswith("<Prediction 00.png, 96 x 80 pixels: ")
    assert f"p-value {found.p_value:.3g}, log10 NFA {found.log_nfa.min():.1f}, {len(found.regions)} region" in repr(
        found
    )
    assert len(repr([found])) < 140


# Pictures -------------------------------------------------------------------------------------------------------------


def test_outline_is_the_inner_border() -> None:
    mask = np.zeros((9, 9), bool)
    mask[2:7, 3:8] = True
    border = mask_outline(mask)
    expected = mask.copy()
    expected[3:6, 4:7] = False
    np.testing.assert_array_equal(border, expected)
    whole = mask_outline(np.ones((4, 4), bool))
    assert whole.sum() == 12  # the border of the picture is a border


def test_overlay_outlines_regions_and_leaves_normal_pixels(prediction: Prediction) -> None:
    picture = np.asarray(overlay(prediction))
    np.testing.assert_array_equal(picture[10, 30:50], np.tile(OUTLINE_RGB, (20, 1)))
    assert (picture[:8] == 100).all()
    assert picture[15, 40, 0] > 180  # hot


def test_write_prediction_leaves_no_temporary_file(prediction: Prediction, tmp_path: Path) -> None:
    written = write_prediction(prediction, tmp_path / "new/part", arrays=True)
    assert sorted(written) == sorted((tmp_path / "new").iterdir())
    assert len(written) == 5
