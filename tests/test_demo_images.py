"""The made data set: readable, exact masks, deterministic, and no test pixel among the training pixels."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uflow.demo import (
    DEFECTS,
    N_CALIBRATION,
    N_DEFECTS,
    N_GOOD,
    N_TRAIN,
    TEXTURES,
    VISIBLE,
    _areas,
    _photographs,
    make_demo,
)
from uflow.evaluate.datasets import read_mvtec

pytest.importorskip("skimage")

SIZE = 128


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo(tmp_path_factory.mktemp("demo") / "images")


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def borders(photo: np.ndarray) -> tuple[int, int, int]:
    """Where the middle begins (column), where the test area begins in it (row), where the middle ends."""
    areas = _areas(photo)
    left = areas["left"].shape[1]
    return left, areas["calibration"].shape[0], left + areas["test"].shape[1]


def find(crop: np.ndarray, photo: np.ndarray, known: np.ndarray | None = None) -> tuple[int, int] | None:
    """Where the crop lies in the photograph, comparing only its known pixels; None if nowhere."""
    height, width = crop.shape
    rows, columns = (grid.ravel() for grid in np.mgrid[: photo.shape[0] - height + 1, : photo.shape[1] - width + 1])
    pixels = np.argwhere(np.ones(crop.shape, bool) if known is None else known)
    for y, x in np.random.default_rng(0).permutation(pixels)[:200]:
        same = photo[rows + y, columns + x] == crop[y, x]
        rows, columns = rows[same], columns[same]
    for top, left in zip(rows, columns, strict=True):
        window = photo[top : top + height, left : left + width]
        if (window == crop).all() if known is None else (window == crop)[known].all():
            return int(top), int(left)
    return None


@pytest.mark.parametrize("texture", TEXTURES)
def test_layout(root: Path, texture: str) -> None:
    dataset = read_mvtec(root / texture)
    assert len(dataset.train) == N_TRAIN
    counts = {name: sum(sample.defect == name for sample in dataset.test) for name in ("good", *DEFECTS)}
    assert counts == {"good": N_GOOD, **dict.fromkeys(DEFECTS, N_DEFECTS)}
    assert {read(path).shape for path in dataset.train} == {(SIZE, SIZE)}


@pytest.mark.parametrize("texture", TEXTURES)
def test_masks_are_the_changed_pixels(root: Path, texture: str) -> None:
    photo = _photographs()[texture]
    for sample in read_mvtec(root / texture).test:
        image = read(sample.path)
        mask = sample.truth(image.shape)
        assert mask is not None
        place = find(image, photo, ~mask)
        assert place is not None, sample.path
        left, top, right = borders(photo)
        assert left <= place[1] <= right - SIZE  # out of the training areas
        assert place[0] >= top  # and of the calibration area
        clean = photo[place[0] : place[0] + SIZE, place[1] : place[1] + SIZE]
        change = np.abs(image.astype(int) - clean.astype(int))
        assert ((change > 0) == mask).all()
        if sample.is_anomalous:
            assert change[mask].min() >= VISIBLE
            assert change[mask].mean() > 2 * VISIBLE
            assert 0.002 < mask.mean() < 0.25


@pytest.mark.parametrize("texture", TEXTURES)
def test_training_crops_lie_in_the_training_areas(root: Path, texture: str) -> None:
    photo = _photographs()[texture]
    for i, path in enumerate(read_mvtec(root / texture).train):
        crop = read(path)[:, ::-1] if i % 2 else read(path)
        place = find(crop, photo)
        assert place is not None
        left, _, right = borders(photo)
        assert place[1] + SIZE <= left or place[1] >= right


@pytest.mark.parametrize("texture", TEXTURES)
def test_calibration_crops_lie_in_the_calibration_area(root: Path, texture: str) -> None:
    photo = _photographs()[texture]
    crops = sorted((root / texture / "calibration").iterdir())
    assert len(crops) == N_CALIBRATION
    left, top, right = borders(photo)
    for path in crops:
        place = find(read(path), photo)
        assert place is not None
        assert place[0] + SIZE <= top
        assert left <= place[1] <= right - SIZE


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    root, same = (make_demo(tmp_path / name, size=64) for name in ("first", "same"))
    other = make_demo(tmp_path / "other", size=64, seed=1)
    files = sorted(path.relative_to(root) for path in root.rglob("*.png"))
    assert sorted(path.relative_to(same) for path in same.rglob("*.png")) == files
    assert all((root / name).read_bytes() == (same / name).read_bytes() for name in files)
    differing = sum((root / name).read_bytes() != (other / name).read_bytes() for name in files)
    assert differing > 0.9 * len(files)


def test_size(tmp_path: Path) -> None:
    root = make_demo(tmp_path, size=64)
    assert read(root / "grass/test/hole/000.png").shape == (64, 64)
    with pytest.raises(ValueError, match=r"size must be 32 to 154 pixels .* not 300"):
        make_demo(tmp_path, size=300)


def test_without_scikit_image_the_hint_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "skimage", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "uflow-ad\[demo\]"'):
        make_demo(tmp_path)


def test_products_of_a_line_are_made_once_and_can_be_served(dataset: Path, tmp_path: Path, monkeypatch) -> None:
    """`uflow serve --demo`, on a tiny texture in place of a photograph."""
    from uflow import demo
    from uflow.product import read_product

    monkeypatch.setattr(demo, "LINE_TEXTURES", ("grating",))
    monkeypatch.setattr(demo, "LINE_SIZE", 64)
    category = tmp_path / "data/grating"
    shutil.copytree(dataset, category)
    shutil.copytree(dataset / "test/good", category / "calibration")
    tests = demo.make_line(tmp_path, device="cpu", progress=False)
    assert tests == {"grating": category / "test"}
    file = tmp_path / "products/grating.toml"
    product, written = read_product(file), file.stat().st_mtime_ns
    found = product.load().predict(category / "test/square/00.png")
    assert (found.threshold.alpha, found.threshold.look_alpha, product.pictures.keep_every) == (0.05, 0.15, 1)
    demo.make_line(tmp_path, device="cpu", progress=False)
    assert file.stat().st_mtime_ns == written
