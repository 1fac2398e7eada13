"""Copies of an image stay on one side of the hold-out and count once."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uflow.backbones import create_backbone
from uflow.features import ImageFeatures
from uflow.fitting import choose_hold_out
from uflow.holdout import choose_folds, find_copies
from uflow.images import list_images
from uflow.recipe import HoldOut, Recipe

NO_FILES = [np.zeros((2, 2, 3), np.uint8)] * 36  # whose order tells nothing


@pytest.mark.parametrize("noise", [0.0, 0.01])
@pytest.mark.parametrize(("alpha", "count"), [(None, 1), (0.4, 1), (0.2, 3), (0.05, 3)])
def test_copies_stay_on_one_side_and_count_once(noise: float, alpha: float | None, count: int) -> None:
    rng = np.random.default_rng(0)
    different = np.tile(rng.standard_normal((12, 40)), (3, 1))
    descriptors = different + noise * rng.standard_normal(different.shape)
    groups = [[i, i + 12, i + 24] for i in range(12)]
    assert find_copies(descriptors) == groups
    folds, why = choose_folds(descriptors, NO_FILES, 0.15, alpha, 0)
    assert why.endswith("; 36 images are 12 different ones, and copies stay on one side")
    assert len(folds) == count
    for fold in folds:
        held_out = set(fold.held_out)
        assert all(held_out.issuperset(group) or held_out.isdisjoint(group) for group in groups)
        assert sorted(fold.judged) == [group[0] for group in groups if group[0] in held_out]
        assert len(fold.judged) == 4


@pytest.mark.parametrize(("how", "count"), [("auto", 2), ("last", 2), ("random", 4)])
def test_of_a_sequence_the_latest_images_judge_and_no_older_ones_than_needed(how: HoldOut, count: int) -> None:
    """Random choices of a small set are held out of more flows: none of its images is nearer to what is to come."""
    drift = np.linspace(0, 3, 60)[:, None]
    descriptors = drift + 0.3 * np.random.default_rng(0).standard_normal((60, 8))
    folds, _ = choose_folds(descriptors, NO_FILES[:1] * 60, 0.15, 0.05, 0, how)
    assert len(folds) == count
    if how != "random":
        assert [i for fold in folds for i in fold.judged] == list(range(59, 39, -1))
    for fold in folds:
        assert fold.held_out == sorted(fold.judged)


def test_different_images_are_no_copies() -> None:
    descriptors = np.random.default_rng(0).standard_normal((36, 40))
    assert find_copies(descriptors) == [[i] for i in range(36)]
    assert "copies" not in choose_folds(descriptors, NO_FILES, 0.15, 0.05, 0)[1]


def test_an_image_saved_anew_is_found_among_others(dataset: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As it was, in another format, and a grey level brighter."""
    images: list[bytes | np.ndarray] = []
    for path in list_images(dataset / "train/good")[:10]:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        other = io.BytesIO()
        Image.fromarray(pixels).save(other, "BMP")
        images += [path.read_bytes(), other.getvalue(), np.clip(pixels.astype(int) + 1, 0, 255).astype(np.uint8)]
    caplog.set_level(logging.INFO, logger="uflow")
    recipe = Recipe(image_size=64, alpha=None)
    backbone = create_backbone(recipe.backbone, 64)
    with ImageFeatures.compute(backbone, images, False, False, False) as features:
        (fold,) = choose_hold_out(features, images, recipe)
    assert "30 images are 10 different ones, and copies stay on one side" in caplog.text
    assert len(fold.held_out) == 9
    assert {i // 3 for i in fold.held_out} == {i // 3 for i in fold.judged}
    assert len(fold.judged) == 3
