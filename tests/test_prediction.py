"""A prediction tells what it should: places of regions, where it comes from, pictures of itself."""

import base64
import hashlib
import io
import json
import os
import re
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
from uflow.prediction import DetectedRegion, FailedImage, Prediction, write_prediction

SCHEMA = json.loads((Path(__file__).parent.parent / "docs/prediction.schema.json").read_text())
OF_PREDICTIONS = SCHEMA["$defs"]["prediction"]


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
    assert set(line) == set(OF_PREDICTIONS["required"]) == set(OF_PREDICTIONS["properties"])
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
    assert set(region) == set(OF_PREDICTIONS["properties"]["regions"]["items"]["required"])

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


def test_line_of_an_image_that_could_not_be_judged_follows_the_schema(prediction: Prediction) -> None:
    for path in (Path("a.png"), None):
        jsonschema.validate(FailedImage(path, ValueError("cut\nshort")).to_dict(), SCHEMA)
    line = {"image": "a.png", "error": "cut short"}
    wrong = [{"error": "cut short"}, {**line, "error": ""}, {**line, "new": 1}, {"image": "a.png"}]
    for content in [*wrong, {**prediction.to_dict(), "error": "cut short"}]:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(content, SCHEMA)


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
    assert repr(prediction) == "<Prediction anomalous, score 0.900, log10 NFA -3.0, 1 region, 60 x 40 pixels>"
    found = detector.predict(dataset / "test/good/00.png")
    assert repr(found).startswith("<Prediction 00.png: ")
    assert f"p-value {found.p_value:.3g}, log10 NFA {found.log_nfa.min():.1f}, {len(found.regions)} region" in repr(
        found
    )
    assert len(repr([found])) < 140


# Pictures -------------------------------------------------------------------------------------------------------------


def test_plot_shows_outline_map_and_mask_and_is_saved(prediction: Prediction, tmp_path: Path) -> None:
    picture = prediction.plot()
    assert picture.mode == "RGB"
    assert picture.width > 3 * 400
    assert picture.height > 400 * 40 / 60
    prediction.save(tmp_path / "part.png")
    with Image.open(tmp_path / "part.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved), np.asarray(picture))
    prediction.save(tmp_path / "part.jpg", side=100)
    with Image.open(tmp_path / "part.jpg") as saved:
        assert saved.width == 420  # the scale of colours needs as much
    with pytest.raises(ValueError, match=r"part.data does not end in the name of a picture's format: write to part"):
        prediction.save(tmp_path / "part.data")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part.jpg", "part.png"]


def test_notebook_shows_three_pictures_that_need_nothing_else() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3000, 2000, 3), np.uint8)
    mask = np.zeros((3000, 2000), bool)
    mask[1000:1400, 500:1900] = True
    from dataclasses import replace

    page = replace(predicted(mask), image=image, path=Path("<b>.png"))._repr_html_()
    sources = re.findall(r'src="(.*?)"', page)
    assert len(sources) == 3
    for source in sources:
        start = "data:image/jpeg;base64,"
        assert source.startswith(start)
        with Image.open(io.BytesIO(base64.b64decode(source.removeprefix(start)))) as picture:
            assert picture.size == (200, 300)
    assert "http" not in page
    assert "&lt;b&gt;.png: anomalous" in page
    assert len(page) < 300_000  # noise is the worst that there is


def test_overlay_outlines_regions_and_leaves_normal_pixels(prediction: Prediction) -> None:
    picture = np.asarray(prediction.overlay()).astype(int)
    assert picture.shape == (40, 60, 3)
    assert (picture[:6] == 100).all()
    assert (picture[8:12, 30:50, 2].max(axis=0) > 180).all()  # cyan along the upper edge
    assert picture[15, 40, 0] > picture[15, 40, 2] + 60  # hot


def test_a_prediction_alone_computes_no_contours_and_no_digest(
    detector: uflow.Detector, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    for name in ("prediction.polygon", "prediction.connected_components", "files.sha256", "prediction.hashlib.sha256"):
        monkeypatch.setattr(f"uflow.{name}", never)
    found = detector.predict(dataset / "test/square/00.png")
    assert found.regions
    with pytest.raises(AssertionError):
        found.to_dict()


def test_bytes_are_traced_by_their_digest(detector: uflow.Detector, dataset: Path) -> None:
    path = dataset / "test/square/01.png"
    content = path.read_bytes()
    with path.open("rb") as file:
        found = [detector.predict(content), *detector.predict([content, path]), detector.predict(file)]
    assert {result.sha256 for result in found} == {hashlib.sha256(content).hexdigest()}
    assert [result.path for result in found] == [None, None, path, None]
    assert len({result.score for result in found[:1] + found[3:]}) == 1


def test_bgr_at_every_call(detector: uflow.Detector, dataset: Path) -> None:
    import torch

    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (80, 96, 3), np.uint8)
    expected = detector.predict(image)
    swapped, tensor = image[..., ::-1], torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)
    for found in (
        detector.predict(swapped, bgr=True),
        detector.predict(tensor, bgr=True),
        *detector.predict([swapped], bgr=True),
        *detector.stream(iter([tensor]), bgr=True),
    ):
        np.testing.assert_array_equal(found.image, image)
        assert found.score == pytest.approx(expected.score, abs=1e-5)
    with pytest.raises(ValueError, match="bgr=True is for arrays and tensors"):
        detector.predict(dataset / "test/good/00.png", bgr=True)
    with pytest.raises(ValueError, match="bgr=True is for arrays and tensors"):
        detector.calibrate(dataset / "test/good", bgr=True)
    with pytest.raises(ValueError, match="bgr=True is for arrays and tensors"):
        uflow.Detector.fit(dataset / "train/good", bgr=True)


def test_write_prediction_leaves_no_temporary_file(prediction: Prediction, tmp_path: Path) -> None:
    written = write_prediction(prediction, tmp_path / "new/part", arrays=True)
    assert sorted(written) == sorted((tmp_path / "new").iterdir())
    assert len(written) == 5
