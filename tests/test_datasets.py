"""datasets.py: every layout, made here as it is published."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uflow.data import image_size
from uflow.datasets import Sample, find_categories, read_mvtec

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RGB[..., 0].copy()


def save(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.fixture
def category(tmp_path: Path) -> Path:
    root = tmp_path / "parts" / "nut"
    for name in ("train/good/1.png", "train/good/0.png", "test/good/0.png", "test/bent/1.jpg", "test/bent/0.png"):
        save(root / name, RGB)
    save(root / "ground_truth/bent/0_mask.png", GREY)
    save(root / "ground_truth/bent/1.png", GREY)
    return root


def test_read_mvtec(category: Path) -> None:
    dataset = read_mvtec(category)
    assert dataset.train == [category / "train/good/0.png", category / "train/good/1.png"]
    assert dataset.test == [
        Sample(category / "test/bent/0.png", "bent", (category / "ground_truth/bent/0_mask.png",)),
        Sample(category / "test/bent/1.jpg", "bent", (category / "ground_truth/bent/1.png",)),
        Sample(category / "test/good/0.png", "good"),
    ]
    assert [sample.is_anomalous for sample in dataset.test] == [True, True, False]
    assert read_mvtec(str(category)) == dataset


def test_read_mvtec_errors(category: Path) -> None:
    cases = [
        (category / "gone", "no such folder: '.*gone'"),
        (category.parent, r"has no folder train/good: give one of the categories in it \(nut\)"),
        (category / "train/good", f"has no folder train/good: give {category}"),
        (category / "ground_truth", "has no folder train/good: give .*nut"),
    ]
    for root, message in cases:
        with pytest.raises(FileNotFoundError, match=message) as error:
            read_mvtec(root)
        one_line(error)
    (category / "ground_truth/bent/1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"bent/1\.jpg has no mask: expected .*ground_truth/bent/1_mask\.png"):
        read_mvtec(category)
    (category / "test").rename(category / "untested")
    with pytest.raises(FileNotFoundError, match="has no folder test: give the folder of one category"):
        read_mvtec(category)
    (category / "test").mkdir()
    with pytest.raises(ValueError, match="test has no sub-folders"):
        read_mvtec(category)
    (category / "test" / "good").mkdir()
    with pytest.raises(ValueError, match=r"no images in .*test/good"):
        read_mvtec(category)


@pytest.mark.parametrize(
    ("name", "train", "good", "defective", "empty"),
    [("magnetic_tile", 700, 252, 392, 4), ("hazelnut_toy", 28, 6, 17, 0)],
)
def test_real_data_sets(real_images: Path, name: str, train: int, good: int, defective: int, empty: int) -> None:
    dataset = read_mvtec(real_images / name)
    assert len(dataset.train) == train
    assert sum(not sample.is_anomalous for sample in dataset.test) == good
    bad = [sample for sample in dataset.test if sample.is_anomalous]
    assert len(bad) == defective
    masks = [sample.truth(image_size(sample.path)) for sample in bad]
    assert sum(not mask.any() for mask in masks) == empty  # the data set itself has a few defects without a mark


def test_find_categories_mvtec(category: Path) -> None:
    for junk in ("__MACOSX/nut", "nut/test/__MACOSX", "nut/test/.cache"):
        (category.parent / junk).mkdir(parents=True)
    (category.parent / "readme.txt").write_text("about")
    assert find_categories(category) == [read_mvtec(category)]
    assert find_categories(category.parent) == [read_mvtec(category)]
    assert find_categories(str(category.parent), layout="mvtec") == [read_mvtec(category)]
