"""What the calibrated threshold promises of real parts (magnetic_tile). Minutes; test_threshold.py has it in short."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from uflow.detector import Detector
from uflow.evaluate.datasets import find_categories
from uflow.evaluate.evaluation import evaluate_predictor
from uflow.images import list_images, read_image
from uflow.scoring import Evidence
from uflow.threshold import CalibratedThreshold
from uflow.training import TrainingSettings

pytestmark = pytest.mark.slow  # test_threshold.py keeps the promise on made evidence, in seconds

ALPHAS = (0.02, 0.05, 0.1, 0.2)


def evidence_of(detector: Detector, paths: Sequence[Path], gain: float = 1.0) -> list[Evidence]:
    """Evidence of images as a camera of some gain sees them."""
    images = ((read_image(path) * gain).clip(0, 255).astype(np.uint8) for path in paths)
    return list(detector.predictor.run(images, lambda source, image, evidence: evidence, 16))


def assert_promise_kept(evidence: list[Evidence]) -> None:
    """Of unseen good images, halved at random a hundred times: one half calibrates, the other is judged.

    One split proves little: by luck alone its share moves by 3 to 6 of 100 images. Their mean moves by less than 0.5.
    """
    shares = []
    for seed in range(100):
        order = np.random.default_rng(seed).permutation(len(evidence)).tolist()
        threshold = CalibratedThreshold.from_good_images([evidence[i] for i in order[::2]], ALPHAS[0])
        lowest = [threshold.log_nfa(evidence[i], (), 64).min() - threshold.shift for i in order[1::2]]
        shares.append([np.mean(np.array(lowest) + threshold.at(alpha).shift < 0) for alpha in ALPHAS])
    assert (np.mean(shares, 0) <= np.array(ALPHAS) + 0.01).all(), np.mean(shares, 0)


@pytest.fixture(scope="module")
def unseen(real_images: Path) -> list[Path]:
    """Good images that no detector has seen: those held out of training are in the memory in the end."""
    return list_images(real_images / "magnetic_tile/test/good")


def test_magnetic_tiles(magnetic_tile: Detector, real_images: Path) -> None:
    """Public way: figures reached after half the epochs, and the automatic threshold near the best one."""
    evaluation = evaluate_predictor(magnetic_tile, find_categories(real_images / "magnetic_tile")[0])
    assert evaluation.pixel_auroc >= 0.78
    assert evaluation.image_auroc >= 0.92
    flagged = dict(evaluation.flagged)
    good = flagged.pop("good")
    assert good["share"] <= 0.05 + 2 * np.sqrt(0.05 * 0.95 * (1 / good["images"] + 1 / 105))
    images = sum(kind["images"] for kind in flagged.values())
    # Seeds and rounding move it: 70 to 84 % with the default's epochs.
    assert sum(kind["images"] * kind["share"] for kind in flagged.values()) >= 2 / 3 * images
    assert evaluation.miou >= 0.9 * evaluation.miou_best


@pytest.mark.parametrize("gain", [1.0, 0.8, 1.2])
def test_promise_for_each_alpha_and_another_camera(magnetic_tile: Detector, unseen: list[Path], gain: float) -> None:
    assert_promise_kept(evidence_of(magnetic_tile, unseen, gain))


def test_promise_of_a_flow_stopped_after_one_epoch(real_images: Path, unseen: list[Path]) -> None:
    paths = list_images(real_images / "magnetic_tile/train/good")[::2]  # half of them: for the time it takes
    settings = TrainingSettings(epochs=1, augment=False, memory_size=0)
    detector = Detector.fit(paths, image_size=256, settings=settings, device="cpu", progress=False)
    assert_promise_kept(evidence_of(detector, unseen))
