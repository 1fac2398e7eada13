"""A prediction's pictures show what they should: outlines on the border of the mask, files complete."""

from pathlib import Path

import numpy as np
import pytest

from uflow.prediction import OUTLINE_RGB, Prediction, mask_outline, overlay, write_prediction


@pytest.fixture
def prediction() -> Prediction:
    anomaly_map = np.zeros((40, 60), np.float32)
    anomaly_map[10:20, 30:50] = 0.9
    mask = anomaly_map > 0.5
    log_nfa = np.where(mask, -3, 5).astype(np.float32)
    return Prediction(0.9, True, anomaly_map, log_nfa, mask, [], np.full((40, 60, 3), 100, np.uint8))


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
