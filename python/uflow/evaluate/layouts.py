"""The layouts that test sets are published in: how to tell a folder in each, and how to read it."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import PathLike
from ..images import IMAGE_SUFFIXES, list_images, open_image, read_mask
from ..schema import read_json
from .samples import Dataset, Sample, open_array

__all__ = ["LAYOUTS", "Layout", "folders_in", "images_in", "name_of", "read_mvtec"]

_GOOD = ("good", "ok", "normal")  # what lists and plain folders call an image without a defect, in any case


@dataclass(frozen=True)
class Layout:
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
        missing = {folder: self.missing(folder) for folder in folders_in(root)}
        if all(missing.values()):
            return []
        return [folder for folder, lacks in missing.items() if self.needs[0] not in lacks]


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
    folders = folders_in(root / "test")
    if not folders:
        raise ValueError(f"{root / 'test'} has no sub-folders: it should hold test/good and test/<defect>")
    test = []
    for folder in folders:
        test += _good(folder) if folder.name == "good" else _defective(folder, root / "ground_truth" / folder.name)
    return Dataset(name_of(root), list_images(root / "train" / "good"), test, "mvtec")


def _layout_hint(root: Path) -> str:
    """Most often the folder given is one too high or too low: say which one to give."""
    for parent in (root, *root.parents)[1:3]:
        if (parent / "train" / "good").is_dir():
            return f"give {parent}"
    below = [folder.name for folder in folders_in(root) if (folder / "train" / "good").is_dir()]
    if below:
        return f"give one of the categories in it ({', '.join(below)})"
    return "give the folder of one category, with train/good, test and ground_truth in it"


def _read_mvtec_loco(root: Path) -> list[Dataset]:
    test = []
    for folder in folders_in(root / "test"):
        if folder.name == "good":
            test += _good(folder)
            continue
        for path in list_images(folder):
            marks = root / "ground_truth" / folder.name / path.stem  # one mask for each thing that is wrong
            if not (masks := tuple(images_in(marks))):
                raise FileNotFoundError(f"{path} has no mask: expected {marks / '000.png'}")
            test.append(Sample(path, folder.name, masks, above=0))  # the grey value is the kind of defect
    return [Dataset(name_of(root), _train_and_validation(root), test, "mvtec-loco")]


def _read_mvtec_ad2(root: Path) -> list[Dataset]:
    public = root / "test_public"  # test_private has no truth
    test = _defective(public / "bad", public / "ground_truth" / "bad") + _good(public / "good")
    return [Dataset(name_of(root), _train_and_validation(root), test, "mvtec-ad2")]


def _train_and_validation(root: Path) -> list[Path]:
    validation = root / "validation" / "good"
    return list_images(root / "train" / "good") + (list_images(validation) if validation.is_dir() else [])


def _read_btad(root: Path) -> list[Dataset]:
    test = _defective(root / "test" / "ko", root / "ground_truth" / "ko") + _good(root / "test" / "ok")
    return [Dataset(name_of(root), list_images(root / "train" / "ok"), test, "btad")]


def _good(folder: Path) -> list[Sample]:
    return [Sample(path, "good") for path in list_images(folder)]


def _defective(folder: Path, masks: Path) -> list[Sample]:
    """The images of a folder named as their defect, with their masks, `<stem>_mask` or `<stem>` in another folder."""
    by_stem = {path.stem: path for path in images_in(masks)}
    samples = []
    for path in list_images(folder):
        mask = by_stem.get(f"{path.stem}_mask", by_stem.get(path.stem))
        if mask is None:
            raise FileNotFoundError(f"{path} has no mask: expected {masks / f'{path.stem}_mask.png'}")
        samples.append(Sample(path, folder.name, (mask,)))
    return samples


# ---- a mask beside every image: KolektorSDD, KolektorSDD2, LGG-MRI


def _read_kolektor_sdd(root: Path) -> list[Dataset]:
    items = {folder.name: _marked_beside(folder, "_label", "defect") for folder in folders_in(root, "kos*")}
    return [Dataset("kolektor-sdd", *_split_by_group(items), "kolektor-sdd")]


def _read_kolektor_sdd2(root: Path) -> list[Dataset]:
    train, test = (_marked_beside(root / split, "_GT", "defect") for split in ("train", "test"))
    good = [sample.path for sample in train if not sample.is_anomalous]
    return [Dataset("kolektor-sdd2", good, test, "kolektor-sdd2")]


def _read_lgg_mri(root: Path) -> list[Dataset]:
    patients: dict[str, list[Sample]] = {}
    for folder in folders_in(root, "TCGA_*"):
        patient = "_".join(folder.name.split("_")[:3])  # without the date of the examination
        patients.setdefault(patient, []).extend(_marked_beside(folder, "_mask", "tumour"))
    return [Dataset("lgg-mri", *_split_by_group(patients), "lgg-mri")]


def _marked_beside(folder: Path, tag: str, defect: str) -> list[Sample]:
    """The images of a folder that holds the masks too, `<stem><tag>`: good where the mask is empty."""
    files = images_in(folder)
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
    with suppress(Exception), open_image(mask) as image:  # what is wrong is said below
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
    if not folders_in(root / "training" / "frames"):
        raise FileNotFoundError(
            f"{root} has no folders in training/frames: turn training/videos into frames first, in {root}: "
            "for v in training/videos/*.avi; do f=training/frames/$(basename $v .avi); mkdir -p $f; "
            "ffmpeg -i $v -q:v 2 -start_number 0 $f/%04d.jpg; done"
        )
    train = [path for video in folders_in(root / "training" / "frames") for path in images_in(video)]
    test = []
    for video in folders_in(root / "testing" / "frames"):
        frames = images_in(video)
        mask = root / "testing" / "test_pixel_mask" / f"{video.name}.npy"
        labels = open_array(root / "testing" / "test_frame_mask" / f"{video.name}.npy", video)
        marks = open_array(mask, video)
        if labels.shape != (len(frames),) or marks.ndim != 3 or len(marks) != len(frames):
            raise ValueError(
                f"{video} has {len(frames)} frames, its frame mask is {labels.shape}, its pixel mask {marks.shape}"
            )
        for i, (path, label) in enumerate(zip(frames, labels.tolist(), strict=True)):
            test.append(Sample(path, "abnormal", (mask,), above=0, frame=i) if label else Sample(path, "good"))
    return [Dataset("shanghaitech", train, test, "shanghaitech")]


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
    there = {folder.name for folder in (folders_in(base) if root == base else [root])}  # a part of it is enough
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
                entries = read_json(lines.read(), "it")
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
    """The categories of some rows; paths in them are below `base`, and `name` is the category where a row has none."""
    datasets: dict[str, Dataset] = {}
    seen = set()
    for where, row in rows:
        _check_row(where, row, base)
        path, label, mask = base / row["path"], row["label"], row.get("mask")
        category = row.get("category") or name
        if (category, path) in seen:
            raise ValueError(f"{where}: {path} is listed twice")
        seen.add((category, path))
        dataset = datasets.setdefault(category, Dataset(category, [], [], layout))
        if row["split"].lower() == "train":
            dataset.train.append(path)
        elif label.lower() in _GOOD:
            dataset.test.append(Sample(path, "good"))
        else:
            dataset.test.append(Sample(path, label, (base / mask,) if mask else (), above))
    return list(datasets.values())


def _check_row(where: str, row: dict[str, str], base: Path) -> None:
    """Raise ValueError or FileNotFoundError, one line, for what a row lacks or names wrongly."""
    for column in ("path", "split", "label"):
        if not row.get(column):
            columns = ", ".join(row)
            raise ValueError(f"{where}: no {column}" + ("" if column in row else f" among the columns {columns}"))
    split = row["split"].lower()
    if split not in ("train", "test"):
        raise ValueError(f"{where}: the split must be train or test, not {split!r}")
    for column in ("path", "mask"):
        if row.get(column) and not (base / row[column]).is_file():
            raise FileNotFoundError(f"{where}: no such file: {base / row[column]}")
    if split == "train" and row["label"].lower() not in _GOOD:
        raise ValueError(f"{where}: an image to train on must be good, not {row['label']!r}")


# ---- a plain folder


def _fits_folder(root: Path) -> bool:
    if (root.absolute().parent / "train").is_dir():  # a part of a data set: its test folder would make a set of its own
        return False
    return _has_split(root) or bool(_good_folders(root))


def _has_split(root: Path) -> bool:
    return bool(folders_in(root / "test") and (_good_folders(root / "train") or images_in(root / "train")))


def _good_folders(root: Path) -> list[Path]:
    return [folder for folder in folders_in(root) if folder.name.lower() in _GOOD]


def _read_folder(root: Path) -> list[Dataset]:
    tested = root / "test" if _has_split(root) else root
    good = [path for folder in _good_folders(tested) for path in list_images(folder)]
    train: list[Path] = []
    if tested is root:
        good, train = good[::5], [path for i, path in enumerate(good) if i % 5]
    else:
        train = list_images(_good_folders(root / "train") or [root / "train"])
    test = [Sample(path, "good") for path in good]
    for folder in folders_in(tested):
        truth = root / "ground_truth" / folder.name
        if folder.name.lower() in _GOOD or folder.name == "ground_truth":
            continue
        test += _defective(folder, truth) if truth.is_dir() else [Sample(p, folder.name) for p in list_images(folder)]
    if tested is root and len(test) == len(good):
        raise ValueError(
            f"{root} holds good images alone: there is nothing to test; add a folder for each kind of defect"
        )
    return [Dataset(name_of(root), train, test, "folder")]


# ---- what is in a folder


def name_of(root: Path) -> str:
    return root.resolve().name


def folders_in(folder: Path, pattern: str = "*") -> list[Path]:
    """The folders in a folder, by name, without hidden ones and what an archive made on a Mac leaves behind."""
    if not folder.is_dir():
        return []
    shown = [path for path in folder.glob(pattern) if not path.name.startswith(".") and path.name != "__MACOSX"]
    return sorted((path for path in shown if path.is_dir()), key=lambda path: _natural(path.name))


def images_in(folder: Path) -> list[Path]:
    """The images directly in a folder, by name, 2 before 10; none where it is not there."""
    if not folder.is_dir():
        return []
    files = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
    return sorted((path for path in files if not path.name.startswith(".")), key=lambda path: _natural(path.name))


def _natural(name: str) -> tuple[list[str | int], str]:
    """A key that sorts 2 before 10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))], name


LAYOUTS = {  # in the order in which they are looked for: what says more about itself comes first
    "list": Layout(("suffix .csv or .json",), _read_list, _fits_list),
    "mvtec-loco": Layout(
        ("train/good", "test/logical_anomalies", "test/structural_anomalies", "ground_truth"), _read_mvtec_loco
    ),
    "mvtec-ad2": Layout(
        ("test_public", "train/good", "test_public/good", "test_public/bad", "test_public/ground_truth/bad"),
        _read_mvtec_ad2,
    ),
    "mvtec": Layout(("train/good", "test", "ground_truth"), lambda root: [read_mvtec(root)]),
    "visa": Layout(("split_csv/1cls.csv",), _read_visa, _fits_visa),
    "btad": Layout(("train/ok", "test/ko", "test/ok", "ground_truth/ko"), _read_btad),
    "kolektor-sdd": Layout(("kos*/*_label.*",), _read_kolektor_sdd),
    "kolektor-sdd2": Layout(("train/*_GT.*", "test/*_GT.*"), _read_kolektor_sdd2),
    "lgg-mri": Layout(("TCGA_*/*_mask.*",), _read_lgg_mri),
    "shanghaitech": Layout(
        ("testing/frames", "testing/test_frame_mask", "testing/test_pixel_mask"), _read_shanghaitech
    ),
    "folder": Layout(("sub-folder good, ok or normal",), _read_folder, _fits_folder),
}
