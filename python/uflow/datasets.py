"""Test sets with truth, in the layouts they are published in: what to learn from, what to judge, what is a defect."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .data import IMAGE_SUFFIXES, list_images, read_mask

__all__ = ["LAYOUTS", "Dataset", "Sample", "find_categories", "read_mvtec"]

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Sample:
    """One test image: its file, the name of its defect ("good" for none), and where its truth is.

    Attributes:
        masks: files whose union marks the defect; none for a good image, and none where the truth is not known.
    """

    path: Path
    defect: str
    masks: tuple[Path, ...] = ()

    @property
    def is_anomalous(self) -> bool:
        return self.defect != "good"

    def truth(self, shape: tuple[int, int]) -> NDArray[np.bool_] | None:
        """The defective pixels as (H, W) bool, `shape` being that of the image; None where nothing says which they are.

        Raises what `data.read_mask` raises.
        """
        truth = np.zeros(shape, bool)
        for mask in self.masks:
            truth |= read_mask(mask, shape)
        return truth if self.masks or not self.is_anomalous else None


@dataclass(frozen=True)
class Dataset:
    """One category: the good images to train on, and the test images, good ones and defective ones.

    Attributes:
        layout: the one of `LAYOUTS` it was read as; empty for one that was made otherwise.
    """

    name: str
    train: list[Path]
    test: list[Sample]
    layout: str = ""


# ---- finding the layout


@dataclass(frozen=True)
class _Layout:
    """How to tell a folder in this layout, and how to read it.

    Attributes:
        needs: patterns below the folder that must all be there; the first marks a folder that is meant to be one.
        fits: the rule where patterns cannot say it; `needs` are then its words.
    """

    needs: tuple[str, ...]
    read: Callable[[Path], list[Dataset]]
    fits: Callable[[Path], bool] | None = None

    def missing(self, folder: Path) -> list[str]:
        if self.fits is not None:
            return [] if self.fits(folder) else list(self.needs)
        return [need for need in self.needs if not any(folder.glob(need))]

    def units(self, root: Path) -> list[Path]:
        """The folders to read: the root if it fits, else those in it, if one does, that fit or are meant to."""
        if not self.missing(root):
            return [root]
        missing = {folder: self.missing(folder) for folder in _shown_folders(root)}
        if all(missing.values()):
            return []
        return [folder for folder, lacks in missing.items() if self.needs[0] not in lacks]


def find_categories(root: PathLike, layout: str | None = None) -> list[Dataset]:
    """Read all categories of a data set, by name; `root` is the data set, or one of its categories, or a list.

    layout: one of `LAYOUTS`; by default the first that the folder, or folders in it, fit. docs/datasets.md draws them.

    Raises ValueError for a name that is no layout, FileNotFoundError when the layout, or a file that it promises, is
    not there, ValueError when a folder is empty or a list is wrong (one line each).
    """
    root = Path(root).expanduser()
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"there is no layout {layout!r}: choose one of {', '.join(LAYOUTS)}")
    if not root.exists():
        raise FileNotFoundError(f"no such folder: {str(root)!r}")
    for name in LAYOUTS if layout is None else (layout,):
        datasets: list[Dataset] = []
        for unit in _LAYOUTS[name].units(root):
            if missing := _LAYOUTS[name].missing(unit):
                raise FileNotFoundError(f"{unit} has no {' and no '.join(missing)} (read as {name})")
            datasets += _LAYOUTS[name].read(unit)
        if datasets:
            return sorted(datasets, key=lambda dataset: dataset.name)
    if layout is None:
        raise FileNotFoundError(_nothing_found(root))
    missing = min((_LAYOUTS[layout].missing(folder) for folder in (root, *_shown_folders(root))), key=len)
    raise FileNotFoundError(f"{root} is not in the layout {layout}: it has no {' and no '.join(missing)}")


def _nothing_found(root: Path) -> str:
    wanted = "; ".join(f"{name} ({', '.join(layout.needs)})" for name, layout in _LAYOUTS.items())
    names = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    found = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"
    return f"no data set found in {root}: {_layout_hint(root)}; looked for {wanted}; found {found}"


# ---- MVTec AD


def read_mvtec(root: PathLike) -> Dataset:
    """Read a category in the MVTec AD layout; `root` is the folder that holds `train`, `test` and `ground_truth`.

    `train/good/*`, `test/<defect>/*` (`good` among them), and for each defective image the mask
    `ground_truth/<defect>/<stem>_mask.png`, or `<stem>.png`. Images in sorted order, by defect, then by name.

    Raises FileNotFoundError (one line) when the root, `train/good`, `test` or a mask is not there, ValueError when
    one of the folders is empty.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"no such folder: {str(root)!r}")
    for needed in ("train/good", "test"):
        if not (root / needed).is_dir():
            raise FileNotFoundError(f"{root} has no folder {needed}: {_layout_hint(root)}")
    defects = [folder.name for folder in _shown_folders(root / "test")]
    if not defects:
        raise ValueError(f"{root / 'test'} has no sub-folders: it should hold test/good and test/<defect>")
    test = []
    for defect in defects:
        images = list_images(root / "test" / defect)
        test += _good(images) if defect == "good" else _defective(images, defect, root / "ground_truth" / defect)
    return Dataset(root.resolve().name, list_images(root / "train" / "good"), test, "mvtec")


def _good(images: list[Path]) -> list[Sample]:
    return [Sample(path, "good") for path in images]


def _defective(images: list[Path], defect: str, masks: Path) -> list[Sample]:
    """Samples with a mask each: `<stem>_mask` or `<stem>` in the folder `masks`, in any image format."""
    by_stem = {path.stem: path for path in _images(masks)}
    samples = []
    for path in images:
        mask = by_stem.get(f"{path.stem}_mask", by_stem.get(path.stem))
        if mask is None:
            raise FileNotFoundError(f"{path} has no mask: expected {masks / f'{path.stem}_mask.png'}")
        samples.append(Sample(path, defect, (mask,)))
    return samples


def _layout_hint(root: Path) -> str:
    """Most often the folder given is one too high or too low: say which one to give."""
    for parent in (root, *root.parents)[1:3]:
        if (parent / "train" / "good").is_dir():
            return f"give {parent}"
    below = sorted(folder.name for folder in root.iterdir() if (folder / "train" / "good").is_dir())
    if below:
        return f"give one of the categories in it ({', '.join(below)})"
    return "give the folder of one category, with train/good, test and ground_truth in it"


# ---- folders


def _shown_folders(folder: Path) -> list[Path]:
    """The folders in a folder, by name, without hidden ones and what an archive made on a Mac leaves behind."""
    if not folder.is_dir():
        return []
    shown = [path for path in folder.iterdir() if not path.name.startswith(".") and path.name != "__MACOSX"]
    return sorted(path for path in shown if path.is_dir())


def _images(folder: Path) -> list[Path]:
    """The images directly in a folder, by name; none where it is not there."""
    if not folder.is_dir():
        return []
    files = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in files if not path.name.startswith("."))


_LAYOUTS = {
    "mvtec": _Layout(("train/good", "test", "ground_truth"), lambda root: [read_mvtec(root)]),
}
LAYOUTS = tuple(_LAYOUTS)  # public: what find_categories takes as `layout`, in the order in which it looks
