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


def assert_promise_kept(known: list[Evidence], new: list[Evidence]) -> None:
    """Evidence of unseen good images, halved at random ten times: one half calibrates, the other is judged.

    A little more than alpha is flagged, 1.26 times at most when this was written: the weights of the sources and the
    worth of an area are learnt from the very images that set the level (docs/notebook/mask.md).
    """
    evidence, shares = [*known, *new], []
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(len(evidence)).tolist()
        threshold = CalibratedThreshold.from_good_images([evidence[i] for i in order[::2]], ALPHAS[0])
        others = [evidence[i] for i in order[1::2]]
        shares.append([np.mean([threshold.at(a).log_nfa(e, (), 256).min() < 0 for e in others]) for a in ALPHAS])
    assert (np.mean(shares, 0) <= 1.5 * np.array(ALPHAS)).all(), np.mean(shares, 0)


@pytest.fixture(scope="module")
def halves(real_images: Path) -> tuple[list[Path], list[Path]]:
    """Good images that no detector has seen: those held out of training are in the memory in the end."""
    paths = list_images(real_images / "magnetic_tile/test/good")
    order = np.random.default_rng(0).permutation(len(paths)).tolist()
    return [paths[i] for i in order[::2]], [paths[i] for i in order[1::2]]


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
def test_promise_for_each_alpha_and_another_camera(
    magnetic_tile: Detector, halves: tuple[list[Path], list[Path]], gain: float
) -> None:
    known, new = (evidence_of(magnetic_tile, half, gain) for half in halves)
    assert_promise_kept(known, new)


def test_promise_of_a_flow_stopped_after_one_epoch(real_images: Path, halves: tuple[list[Path], list[Path]]) -> None:
    paths = list_images(real_images / "magnetic_tile/train/good")[::2]  # half of them: for the time it takes
    settings = TrainingSettings(epochs=1, augment=False, memory_size=0)
    detector = Detector.fit(paths, image_size=256, settings=settings, device="cpu", progress=False)
    known, new = (evidence_of(detector, half) for half in halves)
    assert_promise_kept(known, new)
