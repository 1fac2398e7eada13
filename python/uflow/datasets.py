"""Test sets with truth, in the layouts they are published in: what to learn from, what to judge, what is a defect."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .data import list_images, read_mask

__all__ = ["Dataset", "Sample", "find_categories", "read_mvtec"]

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
    """One category: the good images to train on, and the test images, good ones and defective ones."""

    name: str
    train: list[Path]
    test: list[Sample]


def find_categories(root: PathLike, layout: str | None = None) -> list[Dataset]:
    """All categories in a folder: itself where it is one, else those below it, by name."""
    raise NotImplementedError


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
    defects = sorted(folder.name for folder in (root / "test").iterdir() if _is_shown_folder(folder))
    if not defects:
        raise ValueError(f"{root / 'test'} has no sub-folders: it should hold test/good and test/<defect>")
    test = []
    for defect in defects:
        for path in list_images(root / "test" / defect):
            masks = () if defect == "good" else (_find_mask(root, defect, path),)
            test.append(Sample(path, defect, masks))
    return Dataset(root.resolve().name, list_images(root / "train" / "good"), test)


def _find_mask(root: Path, defect: str, path: Path) -> Path:
    folder = root / "ground_truth" / defect
    for candidate in (folder / f"{path.stem}_mask.png", folder / f"{path.stem}.png"):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{path} has no mask: expected {folder / f'{path.stem}_mask.png'}")


def _layout_hint(root: Path) -> str:
    """Most often the folder given is one too high or too low: say which one to give."""
    for parent in (root, *root.parents)[1:3]:
        if (parent / "train" / "good").is_dir():
            return f"give {parent}"
    below = sorted(folder.name for folder in root.iterdir() if (folder / "train" / "good").is_dir())
    if below:
        return f"give one of the categories in it ({', '.join(below)})"
    return "give the folder of one category, with train/good, test and ground_truth in it"


def _is_shown_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")
