"""What every wheel runs: numpy, pytest and uflow alone, no torch; and an exported model where there is one."""

import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
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


def everything(latents, images):
    """What the core gives for some latents and images: bytes, to be compared."""
    found = [segmentation.log_nfa([scale[i : i + 1] for scale in latents], size=48, threads=1) for i in range(4)]
    found += [array for image in images for array in segmentation.max_tree(image)]
    found += [segmentation.log10_chi2_sf(np.abs(images[0]), 7.0)]
    parts = [array.tobytes() for array in found]
    return [*parts, repr(segmentation.regions(images[0] > 1, images[0], images[1]))]


def test_threads_do_not_disturb_one_another():
    """Eight at once on the same arrays, switched as often as can be; where there is no GIL, truly at once."""
    rng = np.random.default_rng(1)
    latents = [rng.standard_normal((4, 16, side, side), np.float32) for side in (12, 6)]
    images = [rng.standard_normal(shape) for shape in ((40, 56), (40, 56), (9, 200))]
    expected = everything(latents, images)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: everything(latents, images), range(64)))
    finally:
        sys.setswitchinterval(interval)
    assert all(result == expected for result in found)


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python always has a GIL")
def test_importing_the_core_does_not_bring_the_gil_back():
    code = "import sys, uflow.segmentation as s; s.number_of_tests([4]); print(sys._is_gil_enabled())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


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
