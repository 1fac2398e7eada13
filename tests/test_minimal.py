"""What every wheel runs: numpy, pytest and uflow alone, no torch; and an exported model where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import uflow
from uflow import segmentation


def test_number_of_tests():
    assert abs(segmentation.number_of_tests([784, 196]) - 476.92371) < 5e-6
    assert abs(segmentation.number_of_tests([4096, 1024, 256]) - 2493.2720) < 5e-5


def test_tiny_tree():
    parent, order = segmentation.max_tree(np.array([[0.0, 2.0, 1.0]]))
    assert parent.tolist() == [[0, 2, 0]]
    assert order.tolist() == [0, 2, 1]


def test_blob_is_found_and_nothing_else():
    rng = np.random.default_rng(0)
    latents = [rng.standard_normal((2, 64, 16, 16), np.float32), rng.standard_normal((2, 48, 8, 8), np.float32)]
    latents[0][0, :, 4:8, 8:12] *= 4
    for tail in ("exact", "chernoff", "binomial"):
        log_nfa = segmentation.log_nfa(latents, size=64, tail=tail)
        assert log_nfa.shape == (2, 64, 64)
        assert log_nfa.dtype == np.float32
        assert (log_nfa[0, 18:30, 34:46] < 0).all()
        log_nfa[0, 14:34, 30:50] = 1
        assert (log_nfa > 0).all()


def test_regions():
    mask = np.zeros((6, 8), bool)
    mask[1:3, 2:5] = True
    (region,) = segmentation.regions(mask, np.where(mask, -2.5, 9.0), np.where(mask, 0.75, 0.0))
    assert region.area == 6
    assert region.bbox == (1, 2, 3, 5)
    assert region.centroid == (1.5, 3.0)
    assert (region.log_nfa, region.score) == (-2.5, 0.75)


def test_version_and_no_torch():
    assert uflow.__version__
    code = (
        "import sys, uflow, uflow.segmentation; uflow.segmentation.number_of_tests([4]); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.skipif("UFLOW_EXPORT" not in os.environ, reason="UFLOW_EXPORT names no folder that export_tiny.py wrote")
def test_exported_model_predicts_what_torch_said():
    folder = Path(os.environ["UFLOW_EXPORT"])
    expected = np.load(folder / "expected.npz")
    result = uflow.load(folder / "onnx").predict(expected["image"])
    np.testing.assert_allclose(result.anomaly_map, expected["anomaly_map"], atol=1e-3)
    assert result.is_anomalous
    assert (result.mask != expected["mask"]).mean() < 1e-3
    assert "torch" not in sys.modules
