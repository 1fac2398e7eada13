"""Test sets with truth, in the layouts they are published in: what to learn from, what to judge, what is a defect."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..images import IMAGE_SUFFIXES, list_images, read_mask

__all__ = ["LAYOUTS", "Dataset", "Sample", "find_categories", "read_mvtec"]

PathLike = str | os.PathLike[str]

_GOOD = ("good", "ok", "normal")  # what lists and plain folders call an image without a defect, in any case


@dataclass(frozen=True)
class Sample:
    """One test image: its file, the name of its defect ("good" for none), and where its truth is.

    Attributes:
        masks: files whose union marks the defect; none for a good image, and none where the truth is not known.
        above: the grey value above which a mask marks.
        frame: the image's index where the masks are `.npy` arrays (n, H, W) of a whole video, else None.
    """

    path: Path
    defect: str
    masks: tuple[Path, ...] = ()
    above: int = 127
    frame: int | None = None

    @property
    def is_anomalous(self) -> bool:
        return self.defect != "good"

    def truth(self, shape: tuple[int, int]) -> NDArray[np.bool_] | None:
        """The defective pixels as (H, W) bool, `shape` being that of the image; None where nothing says which they are.

        Raises what `read_mask` raises.
        """
        truth = np.zeros(shape, bool)
        for mask in self.masks:
            if self.frame is None:
                truth |= read_mask(mask, shape, self.above)
            else:
                truth |= _read_frame(mask, self.frame, shape) > self.above
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

    @property
    def test_files(self) -> list[Path]:
        """The test images and their masks, each once."""
        return list(dict.fromkeys(path for sample in self.test for path in (sample.path, *sample.masks)))


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
        missing = {folder: self.missing(folder) for folder in _folders(root)}
        if all(missing.values()):
            return []
        return [folder for folder, lacks in missing.items() if self.needs[0] not in lacks]


def find_categories(root: PathLike, layout: str | None = None, failed: dict[str, str] | None = None) -> list[Dataset]:
    """Read all categories of a data set, by name; `root` is the data set, or one of its categories, or a list.

    layout: one of `LAYOUTS`; by default the first that the folder, or folders in it, fit. docs/datasets.md draws them.
    failed: where given, takes the name and the reason of each of several categories that cannot be read, and the others
        are returned; by default the first such category is an error.

    Raises ValueError for a name that is no layout, FileNotFoundError when the layout, or a file that it promises, is
    not there, ValueError when a folder is empty, a list is wrong, or there is nothing to train on or to test (one line
    each).
    """
    root = Path(root).expanduser()
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"there is no layout {layout!r}: choose one of {', '.join(LAYOUTS)}")
    if not root.exists():
        raise FileNotFoundError(f"no such file or folder: {str(root)!r}")
    names = LAYOUTS if layout is None else (layout,)
    wrapped = _folders(root)  # archives often unpack to a folder in a folder
    for place in (root, *wrapped) if len(wrapped) == 1 else (root,):
        for name in names:
            if units := _LAYOUTS[name].units(place):
                return sorted(_read(name, units, failed), key=lambda dataset: dataset.name)
    raise _nothing_found(root, layout)


def _read(layout: str, units: list[Path], failed: dict[str, str] | None) -> list[Dataset]:
    datasets: list[Dataset] = []
    for unit in units:
        try:
            if missing := _LAYOUTS[layout].missing(unit):
                raise FileNotFoundError(f"{unit} has no {' and no '.join(missing)} (read as {layout})")
            datasets += [_checked(dataset, unit) for dataset in _LAYOUTS[layout].read(unit)]
        except (ValueError, OSError) as error:
            if failed is None or len(units) == 1:
                raise
            failed[_name(unit)] = str(error)
    return datasets


def _checked(dataset: Dataset, where: Path) -> Dataset:
    if not dataset.train:
        raise ValueError(f"{where} has no good images to train on (category {dataset.name}, read as {dataset.layout})")
    if not dataset.test:
        raise ValueError(f"{where} has nothing to test (category {dataset.name}, read as {dataset.layout})")
    return dataset


def _nothing_found(root: Path, layout: str | None) -> Exception:
    hint = ""
    for parent in root.absolute().parents[:2]:  # most often the folder given is one too low
        fitting = [name for name, one in _LAYOUTS.items() if not one.missing(parent)]
        hint = hint or (f"; {parent} is in the layout {fitting[0]}: give that" if fitting else "")
    if layout in (None, "folder") and _images(root):
        return ValueError(
            f"{root} holds images alone, taken as good ones: there is nothing to test; put them into a folder good, "
            f"beside one folder for each kind of defect{hint}"
        )
    names = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    found = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"
    if layout is None:
        wanted = "; ".join(f"{name} ({', '.join(one.needs)})" for name, one in _LAYOUTS.items())
        return FileNotFoundError(f"no data set found in {root}{hint}; looked for {wanted}; found {found}")
    nearest = min((_LAYOUTS[layout].missing(folder) for folder in (root, *_folders(root))), key=len)
    missing = " and no ".join(nearest)
    return FileNotFoundError(f"{root} is not in the layout {layout}: no {missing}; found {found}{hint}")


# ---- MVTec AD and its successors


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
    folders = _folders(root / "test")
    if not folders:
        raise ValueError(f"{root / 'test'} has no sub-folders: it should hold test/good and test/<defect>")
    test = []
    for folder in folders:
        test += _good(folder) if folder.name == "good" else _defective(folder, root / "ground_truth" / folder.name)
    return Dataset(_name(root), list_images(root / "train" / "good"), test, "mvtec")


def _layout_hint(root: Path) -> str:
    """Most often the folder given is one too high or too low: say which one to give."""
    for parent in (root, *root.parents)[1:3]:
        if (parent / "train" / "good").is_dir():
            return f"give {parent}"
    below = [folder.name for folder in _folders(root) if (folder / "train" / "good").is_dir()]
    if below:
        return f"give one of the categories in it ({', '.join(below)})"
    return "give the folder of one category, with train/good, test and ground_truth in it"


def _read_mvtec_loco(root: Path) -> list[Dataset]:
    test = []
    for folder in _folders(root / "test"):
        if folder.name == "good":
            test += _good(folder)
            continue
        for path in list_images(folder):
            marks = root / "ground_truth" / folder.name / path.stem  # one mask for each thing that is wrong
            if not (masks := tuple(_images(marks))):
                raise FileNotFoundError(f"{path} has no mask: expected {marks / '000.png'}")
            test.append(Sample(path, folder.name, masks, above=0))  # the grey value is the kind of defect
    return [Dataset(_name(root), _train_and_validation(root), test, "mvtec-loco")]


def _read_mvtec_ad2(root: Path) -> list[Dataset]:
    public = root / "test_public"  # test_private has no truth
    test = _defective(public / "bad", public / "ground_truth" / "bad") + _good(public / "good")
    return [Dataset(_name(root), _train_and_validation(root), test, "mvtec-ad2")]


def _train_and_validation(root: Path) -> list[Path]:
    validation = root / "validation" / "good"
    return list_images(root / "train" / "good") + (list_images(validation) if validation.is_dir() else [])


def _read_btad(root: Path) -> list[Dataset]:
    test = _defective(root / "test" / "ko", root / "ground_truth" / "ko") + _good(root / "test" / "ok")
    return [Dataset(_name(root), list_images(root / "train" / "ok"), test, "btad")]


def _good(folder: Path) -> list[Sample]:
    return [Sample(path, "good") for path in list_images(folder)]


def _defective(folder: Path, masks: Path) -> list[Sample]:
    """The images of a folder named as their defect, with their masks, `<stem>_mask` or `<stem>` in another folder."""
    by_stem = {path.stem: path for path in _images(masks)}
    samples = []
    for path in list_images(folder):
        mask = by_stem.get(f"{path.stem}_mask", by_stem.get(path.stem))
        if mask is None:
            raise FileNotFoundError(f"{path} has no mask: expected {masks / f'{path.stem}_mask.png'}")
        samples.append(Sample(path, folder.name, (mask,)))
    return samples


# ---- a mask beside every image: KolektorSDD, KolektorSDD2, LGG-MRI


def _read_kolektor_sdd(root: Path) -> list[Dataset]:
    items = {folder.name: _judged(folder, "_label", "defect") for folder in _folders(root, "kos*")}
    return [Dataset("kolektor-sdd", *_split_by_group(items), "kolektor-sdd")]


def _read_kolektor_sdd2(root: Path) -> list[Dataset]:
    train, test = (_judged(root / split, "_GT", "defect") for split in ("train", "test"))
    good = [sample.path for sample in train if not sample.is_anomalous]
    return [Dataset("kolektor-sdd2", good, test, "kolektor-sdd2")]


def _read_lgg_mri(root: Path) -> list[Dataset]:
    patients: dict[str, list[Sample]] = {}
    for folder in _folders(root, "TCGA_*"):
        patient = "_".join(folder.name.split("_")[:3])  # without the date of the examination
        patients.setdefault(patient, []).extend(_judged(folder, "_mask", "tumour"))
    return [Dataset("lgg-mri", *_split_by_group(patients), "lgg-mri")]


def _judged(folder: Path, tag: str, defect: str) -> list[Sample]:
    """The images of a folder that holds the masks too, `<stem><tag>`: good where the mask is empty."""
    files = _images(folder)
    masks = {path.stem: path for path in files if path.stem.endswith(tag)}
    samples = []
    for path in files:
        if tag in path.stem:
            continue
        mask = masks.get(path.stem + tag)
        if mask is None:
            raise FileNotFoundError(f"{path} has no mask: expected {path.with_name(path.stem + tag + path.suffix)}")
        samples.append(Sample(path, defect, (mask,)) if _marks(mask) else Sample(path, "good"))
    if not samples:
        raise ValueError(f"no images in {folder}")
    return samples


def _marks(mask: Path) -> bool:
    """Whether a mask marks anything; the extremes of a grey file say so three times faster than `read_mask`."""
    with suppress(Exception), Image.open(mask) as image:  # what is wrong is said below
        high = image.getextrema()[1]
        if image.mode == "L" and (high == 0 or high == 255):
            return high == 255
    return bool(read_mask(mask).any())


def _split_by_group(groups: dict[str, list[Sample]]) -> tuple[list[Path], list[Sample]]:
    """The good images of every other group to train on, all images of the other groups to test."""
    names = sorted(groups, key=_natural)
    train = [sample.path for name in names[::2] for sample in groups[name] if not sample.is_anomalous]
    return train, [sample for name in names[1::2] for sample in groups[name]]


# ---- ShanghaiTech Campus


def _read_shanghaitech(root: Path) -> list[Dataset]:
    if not _folders(root / "training" / "frames"):
        raise FileNotFoundError(
            f"{root} has no folders in training/frames: turn training/videos into frames first, in {root}: "
            "for v in training/videos/*.avi; do f=training/frames/$(basename $v .avi); mkdir -p $f; "
            "ffmpeg -i $v -q:v 2 -start_number 0 $f/%04d.jpg; done"
        )
    train = [path for video in _folders(root / "training" / "frames") for path in _images(video)]
    test = []
    for video in _folders(root / "testing" / "frames"):
        frames = _images(video)
        mask = root / "testing" / "test_pixel_mask" / f"{video.name}.npy"
        labels = _open_array(root / "testing" / "test_frame_mask" / f"{video.name}.npy", video)
        marks = _open_array(mask, video)
        if labels.shape != (len(frames),) or marks.ndim != 3 or len(marks) != len(frames):
            raise ValueError(
                f"{video} has {len(frames)} frames, its frame mask is {labels.shape}, its pixel mask {marks.shape}"
            )
        for i, (path, label) in enumerate(zip(frames, labels.tolist(), strict=True)):
            test.append(Sample(path, "abnormal", (mask,), above=0, frame=i) if label else Sample(path, "good"))
    return [Dataset("shanghaitech", train, test, "shanghaitech")]


def _open_array(path: Path, owner: Path | None = None) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r")  # what is not indexed is not read
        return array
    except FileNotFoundError:
        raise FileNotFoundError(f"{owner or 'a video'} has no mask: expected {path}") from None
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def _read_frame(path: Path, frame: int, shape: tuple[int, int]) -> NDArray[Any]:
    masks = _open_array(path)
    if masks.shape[1:] != tuple(shape):
        seen, wanted = "x".join(map(str, masks.shape[1:])), "x".join(map(str, shape))
        raise ValueError(f"the masks in {path} are {seen} pixels (height x width), the image is {wanted}")
    return np.asarray(masks[frame])


# ---- a list: VisA's, or one's own


def _fits_visa(root: Path) -> bool:
    return _visa_list(root).is_file()


def _visa_list(root: Path) -> Path:
    """The split file, of the whole data set or of one category in it."""
    root = root.absolute()
    return (root.parent if (root / "Data" / "Images").is_dir() else root) / "split_csv" / "1cls.csv"


def _read_visa(root: Path) -> list[Dataset]:
    file, root = _visa_list(root), root.absolute()
    base = file.parent.parent
    rename = {"object": "category", "image": "path"}
    rows = [(where, {rename.get(key, key): value for key, value in row.items()}) for where, row in _rows(file)]
    there = {folder.name for folder in (_folders(base) if root == base else [root])}  # a part of it is enough
    rows = [(where, row) for where, row in rows if row.get("category") in there]
    if not rows:
        raise ValueError(f"{file} lists no image of a folder in {root}")
    return _from_rows(rows, base, root.name, "visa", above=0)  # the grey value is the kind of defect


def _fits_list(file: Path) -> bool:
    return file.is_file() and file.suffix.lower() in (".csv", ".json")


def _read_list(file: Path) -> list[Dataset]:
    return _from_rows(_rows(file), file.parent, file.stem, "list", above=127)


def _rows(file: Path) -> list[tuple[str, dict[str, str]]]:
    """The rows of a CSV file or a JSON list of objects, each with the words that say where it is."""
    rows: list[tuple[str, dict[str, Any]]] = []
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            if file.suffix.lower() == ".json":
                entries = json.load(lines)
                if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
                    raise ValueError("it should be a list of objects, [{...}, {...}]")
                rows = [(f"{file}, entry {i}", entry) for i, entry in enumerate(entries, 1)]
            else:
                reader = csv.DictReader(lines, strict=True)
                for row in reader:
                    rows.append((f"{file}, line {reader.line_num}", row))
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.reader.line_num}: {error}") from error
    except (OSError, ValueError) as error:  # broken JSON and text that is not UTF-8 are ValueErrors
        raise ValueError(f"cannot read {file}: {error}") from error
    if not rows:
        raise ValueError(f"{file} lists nothing")
    for where, row in rows:
        if None in row:
            raise ValueError(f"{where}: more fields than the header names")
    return [(where, {key: str(value or "").strip() for key, value in row.items()}) for where, row in rows]


def _from_rows(
    rows: Iterable[tuple[str, dict[str, str]]], base: Path, name: str, layout: str, above: int
) -> list[Dataset]:
    datasets: dict[str, Dataset] = {}
    seen = set()
    for where, row in rows:
        for column in ("path", "split", "label"):
            if not row.get(column):
                columns = ", ".join(row)
                raise ValueError(f"{where}: no {column}" + ("" if column in row else f" among the columns {columns}"))
        category = row.get("category") or name
        path, split, label, mask = base / row["path"], row["split"].lower(), row["label"], row.get("mask")
        if split not in ("train", "test"):
            raise ValueError(f"{where}: the split must be train or test, not {split!r}")
        for file in [path, base / mask] if mask else [path]:
            if not file.is_file():
                raise FileNotFoundError(f"{where}: no such file: {file}")
        if (category, path) in seen:
            raise ValueError(f"{where}: {path} is listed twice")
        seen.add((category, path))
        dataset = datasets.setdefault(category, Dataset(category, [], [], layout))
        if label.lower() in _GOOD:
            if split == "train":
                dataset.train.append(path)
            else:
                dataset.test.append(Sample(path, "good"))
        elif split == "train":
            raise ValueError(f"{where}: an image to train on must be good, not {label!r}")
        else:
            dataset.test.append(Sample(path, label, (base / mask,) if mask else (), above))
    return list(datasets.values())


# ---- a plain folder


def _fits_folder(root: Path) -> bool:
    if (root.absolute().parent / "train").is_dir():  # a part of a data set: its test folder would make a set of its own
        return False
    return _has_split(root) or bool(_good_folders(root))


def _has_split(root: Path) -> bool:
    return bool(_folders(root / "test") and (_good_folders(root / "train") or _images(root / "train")))


def _good_folders(root: Path) -> list[Path]:
    return [folder for folder in _folders(root) if folder.name.lower() in _GOOD]


def _read_folder(root: Path) -> list[Dataset]:
    tested = root / "test" if _has_split(root) else root
    good = [path for folder in _good_folders(tested) for path in list_images(folder)]
    train: list[Path] = []
    if tested is root:
        good, train = good[::5], [path for i, path in enumerate(good) if i % 5]
    else:
        train = list_images(_good_folders(root / "train") or [root / "train"])
    test = [Sample(path, "good") for path in good]
    for folder in _folders(tested):
        truth = root / "ground_truth" / folder.name
        if folder.name.lower() in _GOOD or folder.name == "ground_truth":
            continue
        test += _defective(folder, truth) if truth.is_dir() else [Sample(p, folder.name) for p in list_images(folder)]
    if tested is root and len(test) == len(good):
        raise ValueError(
            f"{root} holds good images alone: there is nothing to test; add a folder for each kind of defect"
        )
    return [Dataset(_name(root), train, test, "folder")]


# ---- what is in a folder


def _name(root: Path) -> str:
    return root.resolve().name


def _folders(folder: Path, pattern: str = "*") -> list[Path]:
    """The folders in a folder, by name, without hidden ones and what an archive made on a Mac leaves behind."""
    if not folder.is_dir():
        return []
    shown = [path for path in folder.glob(pattern) if not path.name.startswith(".") and path.name != "__MACOSX"]
    return sorted((path for path in shown if path.is_dir()), key=lambda path: _natural(path.name))


def _images(folder: Path) -> list[Path]:
    """The images directly in a folder, by name, 2 before 10; none where it is not there."""
    if not folder.is_dir():
        return []
    files = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
    return sorted((path for path in files if not path.name.startswith(".")), key=lambda path: _natural(path.name))


def _natural(name: str) -> tuple[list[str | int], str]:
    """A key that sorts 2 before 10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))], name


_LAYOUTS = {  # in the order in which they are looked for: what says more about itself comes first
    "list": _Layout(("suffix .csv or .json",), _read_list, _fits_list),
    "mvtec-loco": _Layout(
        ("train/good", "test/logical_anomalies", "test/structural_anomalies", "ground_truth"), _read_mvtec_loco
    ),
    "mvtec-ad2": _Layout(
        ("test_public", "train/good", "test_public/good", "test_public/bad", "test_public/ground_truth/bad"),
        _read_mvtec_ad2,
    ),
    "mvtec": _Layout(("train/good", "test", "ground_truth"), lambda root: [read_mvtec(root)]),
    "visa": _Layout(("split_csv/1cls.csv",), _read_visa, _fits_visa),
    "btad": _Layout(("train/ok", "test/ko", "test/ok", "ground_truth/ko"), _read_btad),
    "kolektor-sdd": _Layout(("kos*/*_label.*",), _read_kolektor_sdd),
    "kolektor-sdd2": _Layout(("train/*_GT.*", "test/*_GT.*"), _read_kolektor_sdd2),
    "lgg-mri": _Layout(("TCGA_*/*_mask.*",), _read_lgg_mri),
    "shanghaitech": _Layout(
        ("testing/frames", "testing/test_frame_mask", "testing/test_pixel_mask"), _read_shanghaitech
    ),
    "folder": _Layout(("sub-folder good, ok or normal",), _read_folder, _fits_folder),
}
LAYOUTS = tuple(_LAYOUTS)  # what find_categories takes as `layout`
