"""A data set with made defects and exact masks, from the texture photographs in scikit-image's wheel: no download."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .files import atomic_write, one_line

if TYPE_CHECKING:
    from .detector import Detector
    from .evaluate.evaluation import Evaluation
    from .evaluate.samples import Dataset

__all__ = ["DEFECTS", "TEXTURES", "VISIBLE", "make_demo", "make_line", "run"]

log = logging.getLogger("uflow")

TEXTURES = ("brick", "grass", "gravel")
DEFECTS = ("cut_paste", "hole", "scratch", "stain")
LINE_TEXTURES = ("brick", "grass")  # of `make_line`
LINE_SIZE = 128  # pixels: quick to learn, and fine enough for these
VISIBLE = 6  # grey levels: a pixel belongs to a defect if it changed by at least this much, and no other pixel changed

# Test crops come from the middle of a photograph, training crops from both sides: light and perspective change over the
# picture, and a good part under test must not be stranger than those learnt from. Training crops overlap each other, so
# those that training holds out are too familiar to set the threshold: good crops from the top of the middle do.
MIDDLE = (0.3, 0.7)
TOP = 0.5
N_TRAIN, N_CALIBRATION, N_GOOD, N_DEFECTS = 100, 40, 12, 6  # images per texture; defects: of each kind

Photo = NDArray[np.uint8]
Plane = NDArray[np.float64]
Bitmap = NDArray[np.bool_]
# A defect: clean crop as floats, all photographs by name, name of this one, how many were made before, generator
# -> the crop with the defect in it, and the pixels that may differ.
Maker = Callable[[Plane, dict[str, Photo], str, int, np.random.Generator], tuple[Plane, Bitmap]]


def make_demo(folder: str | os.PathLike[str], seed: int = 0, size: int = 128) -> Path:
    """Write the demo data set, three categories in the MVTec layout, and return its folder.

    `folder/<texture>` for brick, grass and gravel, each with 100 good training crops, 40 good crops to calibrate on
    (`calibration`), 12 good test crops and 6 test crops of each of four made defects: scratch, stain, cut_paste, hole.
    Crops are size x size 8-bit grey PNGs. Training crops (half of them mirrored: the brick photograph leans outwards
    to both sides), calibration crops and test crops come from different parts of a photograph. A mask is exact: every
    pixel in it differs from the clean crop by at least `VISIBLE` grey levels, and no pixel outside it differs at all.
    The same seed and size give the same files; files of the same name are overwritten.

    Raises ModuleNotFoundError without scikit-image, ValueError for a size that the test area cannot hold.
    """
    photos = _photographs()
    widest = min(area.shape[1] for photo in photos.values() for area in _areas(photo).values())
    if not 32 <= size <= widest:
        raise ValueError(f"size must be 32 to {widest} pixels (the width of the test area), not {size}")
    root = Path(folder)
    for number, texture in enumerate(TEXTURES):
        _make_category(root / texture, texture, photos, size, np.random.default_rng([seed, number]))
    return root


def run(
    folder: str | os.PathLike[str], seed: int = 0, device: str = "auto", progress: bool = True
) -> dict[str, Evaluation]:
    """Make the demo data set in `folder`/data, train on each texture, evaluate, save the models and draw pictures.

    Writes `<texture>.uflow`, `<texture>.png` (a good crop and one of each defect with truth, anomaly map and mask) and
    `evaluation.json` into `folder`, and returns the evaluations by texture.
    """
    from .detector import Detector
    from .evaluate.datasets import read_mvtec
    from .evaluate.evaluation import evaluate_predictor
    from .evaluate.tables import write_json
    from .recipe import TrainingSettings

    folder = Path(folder)
    root = make_demo(folder / "data", seed)
    evaluations = {}
    for texture in TEXTURES:
        log.info("%s: learning from %d good crops", texture, N_TRAIN)
        settings = TrainingSettings(seed=seed)
        good = root / texture / "train/good"
        detector = Detector.fit(good, settings=settings, alpha=None, device=device, progress=progress)
        detector.calibrate(root / texture / "calibration")
        detector.save(folder / f"{texture}.uflow")
        dataset = read_mvtec(root / texture)
        evaluations[texture] = evaluate_predictor(detector, dataset)
        _draw(detector, dataset, folder / f"{texture}.png")
    write_json({name: result.to_dict() for name, result in evaluations.items()}, folder / "evaluation.json")
    return evaluations


def make_line(
    folder: str | os.PathLike[str], seed: int = 0, device: str = "auto", progress: bool = True
) -> dict[str, Path]:
    """Make two products for a service to judge: learnt in some seconds each, less well than `run` does it.

    Writes ``products/<texture>.toml`` and ``.uflow`` into `folder`, beside the images in ``data``; what is there stays.

    Returns:
        The folder of test images of each product.
    """
    from .detector import Detector
    from .product import Pictures, Product
    from .recipe import TrainingSettings

    folder = Path(folder)
    products, root = folder / "products", folder / "data"
    products.mkdir(parents=True, exist_ok=True)
    if not root.is_dir():
        make_demo(root, seed)
    for texture in LINE_TEXTURES:
        if not (products / f"{texture}.toml").exists():
            log.info("%s: learning from %d good crops", texture, N_TRAIN)
            good, model = root / texture / "train/good", products / f"{texture}.uflow"
            settings, options = TrainingSettings(seed=seed, epochs=1), {"device": device, "progress": progress}
            detector = Detector.fit(good, image_size=LINE_SIZE, settings=settings, alpha=None, **options)  # type: ignore[arg-type]
            detector.calibrate(root / texture / "calibration", look_alpha=0.15)
            detector.save(model)
            product = Product(texture, model, pictures=Pictures(keep_every=1))
            with atomic_write(products / f"{texture}.toml") as temporary:
                temporary.write_text(product.to_toml(products), encoding="utf-8")
    return {texture: root / texture / "test" for texture in LINE_TEXTURES}


def _draw(detector: Detector, dataset: Dataset, path: Path) -> None:
    """A picture of a good crop, and of one of each made defect."""
    from .evaluate.figures import Example, write_examples

    first = {sample.defect: sample for sample in reversed(dataset.test)}
    rows = []
    for defect, sample in sorted(first.items()):
        (prediction,) = detector.stream([sample.path])
        truth = sample.truth((prediction.mask.shape[0], prediction.mask.shape[1]))
        title = f"{defect.replace('_', ' ')}:  log10 NFA {prediction.log_nfa.min():.1f}"
        rows.append(Example.from_prediction(title, prediction, truth))
    write_examples(rows, path, f"{dataset.name}: a good crop, and one of each made defect")


def _photographs() -> dict[str, Photo]:
    from .extras import pip_install

    try:
        from skimage import data
    except ImportError as error:
        hint = f"the demo images come with scikit-image: {pip_install('demo')}"
        raise ModuleNotFoundError(hint, name="skimage") from error
    return {texture: np.asarray(getattr(data, texture)()) for texture in TEXTURES}


def _areas(photo: Photo) -> dict[str, Photo]:
    """The parts of a photograph that crops come from."""
    first, last = (round(share * photo.shape[1]) for share in MIDDLE)
    top = round(TOP * photo.shape[0])
    middle = photo[:, first:last]
    return {"left": photo[:, :first], "calibration": middle[:top], "test": middle[top:], "right": photo[:, last:]}


def _make_category(folder: Path, texture: str, photos: dict[str, Photo], size: int, rng: np.random.Generator) -> None:
    photo = photos[texture]
    areas = _areas(photo)
    test = areas["test"]
    for i in range(N_CALIBRATION):
        _save(_crop(areas["calibration"], size, rng), folder / f"calibration/{i:03}.png")
    for i in range(N_TRAIN):
        crop = _crop(areas["left" if i % 4 < 2 else "right"], size, rng)
        _save(crop[:, ::-1] if i % 2 else crop, folder / f"train/good/{i:03}.png")
    for i in range(N_GOOD):
        _save(_crop(test, size, rng), folder / f"test/good/{i:03}.png")
    for defect in DEFECTS:
        for i in range(N_DEFECTS):
            clean = _crop(test, size, rng)
            spoiled, where = _MAKERS[defect](clean.astype(np.float64), photos, texture, i, rng)
            _save(_settle(clean, spoiled, where), folder / f"test/{defect}/{i:03}.png")
            _save(np.where(where, np.uint8(255), np.uint8(0)), folder / f"ground_truth/{defect}/{i:03}_mask.png")


def _crop(area: Photo, size: int, rng: np.random.Generator) -> Photo:
    top = int(rng.integers(area.shape[0] - size + 1))
    left = int(rng.integers(area.shape[1] - size + 1))
    return area[top : top + size, left : left + size]


def _save(pixels: Photo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        Image.fromarray(np.ascontiguousarray(pixels)).save(path)
    except OSError as error:
        raise OSError(f"cannot write {path}: {one_line(error)}") from error


def _settle(clean: Photo, spoiled: Plane, where: Bitmap) -> Photo:
    """Round to 8 bits and make the mask exact: at least VISIBLE levels of difference in it, none outside."""
    before = clean.astype(np.int64)
    after = np.clip(np.rint(spoiled), 0, 255).astype(np.int64)
    difference = after - before
    # Where a pasted pixel happens to resemble the old one, push it away, in its own direction if there is room.
    up = np.where(difference == 0, before < 128, difference > 0)
    up = (up & (before + VISIBLE <= 255)) | (before - VISIBLE < 0)
    difference = np.where(np.abs(difference) < VISIBLE, np.where(up, VISIBLE, -VISIBLE), difference)
    return np.where(where, before + difference, before).astype(np.uint8)


# ---- shapes


def _grid(size: int) -> tuple[Plane, Plane]:
    rows, columns = np.mgrid[:size, :size].astype(np.float64)
    return rows, columns


def _centre(size: int, margin: float, rng: np.random.Generator) -> tuple[float, float]:
    row, column = rng.uniform(margin, size - margin, 2)
    return float(row), float(column)


def _blob(size: int, radius: float, roughness: float, rng: np.random.Generator) -> Plane:
    """How far each pixel lies inside a randomly lobed ellipse, in pixels along a ray from its centre; outside: < 0."""
    row, column = _centre(size, radius * 1.1, rng)
    rows, columns = _grid(size)
    turn, flat = rng.uniform(0, np.pi), rng.uniform(0.6, 1.0)
    y, x = rows - row, columns - column
    along, across = x * np.cos(turn) + y * np.sin(turn), (y * np.cos(turn) - x * np.sin(turn)) / flat
    angle = np.arctan2(across, along)
    outline = np.ones_like(angle)
    for lobes in range(2, 7):
        outline += roughness / lobes * rng.normal() * np.cos(lobes * angle + rng.uniform(0, 2 * np.pi))
    inside: Plane = radius * np.clip(outline, 0.4, 1.6) - np.hypot(along, across)
    return inside


def _noise(size: int, coarse: int, rng: np.random.Generator) -> Plane:
    """Smooth noise in about [-1, 1] with details of `coarse` pixels."""
    cells = max(size // coarse, 2)
    small = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)


# ---- defects


def _scratch(
    clean: Plane, photos: dict[str, Photo], texture: str, number: int, rng: np.random.Generator
) -> tuple[Plane, Bitmap]:
    """A thin curved line of varying width; even ones bright with a dark edge, as fresh scratches are, odd ones dark."""
    size = clean.shape[0]
    half = 0.5 * size * rng.uniform(0.4, 0.8)
    row, column = _centre(size, half * 0.8, rng)
    direction, bend = rng.uniform(0, np.pi), rng.uniform(-0.3, 0.3) * half
    t = np.linspace(-1, 1, 4 * size)
    along, aside = half * t, bend * (1 - t * t) + rng.uniform(-0.05, 0.05) * half * np.sin(5 * t)
    line_rows = row + along * np.sin(direction) + aside * np.cos(direction)
    line_columns = column + along * np.cos(direction) - aside * np.sin(direction)
    waves = sum(rng.uniform(0, 0.3) * np.sin(k * np.pi * t + rng.uniform(0, 6)) for k in (1, 2, 5))
    width = size / 160 * rng.uniform(1.8, 2.8) * np.clip(1 + waves, 0.4, None) * np.sqrt(1.02 - t * t)

    cover, edge = np.zeros_like(clean), np.zeros_like(clean)
    rows, columns = _grid(size)
    for y, x, reach in zip(line_rows, line_columns, width, strict=True):
        cover = np.maximum(cover, np.clip(reach + 0.5 - np.hypot(rows - y, columns - x), 0, 1))
        edge = np.maximum(edge, np.clip(reach + 0.5 - np.hypot(rows - y - 1.5, columns - x - 1), 0, 1))
    grain = 12 * _noise(size, 3, rng)
    if number % 2 == 0:
        spoiled = clean * (1 - 0.4 * edge)
        spoiled += cover * (225 + grain - spoiled)
        return spoiled, np.maximum(cover, edge) > 0.3
    return clean + 0.9 * cover * (25 + grain - clean), cover > 0.3


def _stain(
    clean: Plane, photos: dict[str, Photo], texture: str, number: int, rng: np.random.Generator
) -> tuple[Plane, Bitmap]:
    """A soft-edged spot: even ones darken, with the rim of a dried liquid, odd ones bleach what is under them."""
    size = clean.shape[0]
    inside = _blob(size, size * rng.uniform(0.14, 0.24), 0.35, rng) / (size / 160)
    strength = 1 / (1 + np.exp(-inside / 1.5))  # an edge some 6 pixels wide in a crop of 160
    strength *= 1 + 0.25 * _noise(size, 12, rng)
    if number % 2 == 0:
        rim = np.exp(-(((inside - 2.5) / 2) ** 2))
        difference = -rng.uniform(0.5, 0.65) * strength - 0.15 * rim
    else:
        difference = rng.uniform(0.7, 0.9) * strength
    return clean * (1 + difference), np.abs(difference) * clean.mean() >= VISIBLE


def _cut_paste(
    clean: Plane, photos: dict[str, Photo], texture: str, number: int, rng: np.random.Generator
) -> tuple[Plane, Bitmap]:
    """A patch of another texture, turned and pasted in."""
    size = clean.shape[0]
    others = [name for name in TEXTURES if name != texture]
    source = photos[others[number % len(others)]]
    whole = Image.fromarray(source).rotate(rng.uniform(35, 145), Image.Resampling.BICUBIC)
    # The turned photograph keeps its middle: a square of half its width has no black corner in it.
    first, last = source.shape[0] // 4, source.shape[0] * 3 // 4 - size
    top, left = rng.integers(first, last + 1, 2).tolist()
    patch = np.asarray(whole.crop((left, top, left + size, top + size)), dtype=np.float64)

    rows, columns = _grid(size)
    height, width = size * rng.uniform(0.10, 0.20, 2)
    row, column = _centre(size, 1.2 * max(height, width), rng)
    turn = rng.uniform(-0.4, 0.4)
    y, x = rows - row, columns - column
    across, along = np.abs(y * np.cos(turn) - x * np.sin(turn)), np.abs(x * np.cos(turn) + y * np.sin(turn))
    corner = 0.25 * min(height, width)  # a rectangle with rounded corners
    outside = np.hypot(np.clip(across - height + corner, 0, None), np.clip(along - width + corner, 0, None))
    cover = np.clip(corner + 0.5 - outside, 0, 1)
    return clean + cover * (patch - clean), cover > 0.3


def _hole(
    clean: Plane, photos: dict[str, Photo], texture: str, number: int, rng: np.random.Generator
) -> tuple[Plane, Bitmap]:
    """A dark pit lit from the upper left: a black floor, a lighter lower right wall, a shadow around the rim."""
    size = clean.shape[0]
    inside = _blob(size, size * rng.uniform(0.09, 0.14), 0.15, rng) / (size / 160)
    lit_row, lit_column = np.gradient(inside)
    light = -(lit_row + lit_column) / np.maximum(np.hypot(lit_row, lit_column), 1e-9)  # 1 on the lower right side
    floor = 18 + 6 * _noise(size, 4, rng)
    wall = 45 * np.clip(light, 0, None) * np.exp(-(((inside - 2) / 1.5) ** 2))
    cover = np.clip(inside + 0.5, 0, 1)
    shadow = 0.45 * np.exp(-np.clip(-inside, 0, None) / 2.0)
    around = clean * (1 - shadow * (inside < 0))
    return around + cover * (floor + wall - around), (cover > 0.3) | (shadow * clean.mean() >= VISIBLE)


_MAKERS: dict[str, Maker] = {"cut_paste": _cut_paste, "hole": _hole, "scratch": _scratch, "stain": _stain}
