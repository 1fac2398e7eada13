"""Which files are images: of a folder, a pattern, a list; and which of them are good to learn from."""

from __future__ import annotations

import glob
import logging
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePath

from .files import PathLike, one_line

__all__ = [
    "IMAGE_SUFFIXES",
    "RESULTS_FILE",
    "RESULT_PICTURES",
    "check_regular",
    "is_image_name",
    "is_result",
    "list_good_images",
    "list_images",
]

log = logging.getLogger("uflow")

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
# What `uflow predict` writes into a folder, and the endings of the pictures there: they are not images to be judged.
RESULTS_FILE = "predictions.jsonl"
RESULT_PICTURES = ("_mask.png", "_map.png", "_overlay.png")
MAX_SCANNED_FOLDERS = 1000  # looked into for images that are left out: only a warning depends on it
NO_REGULAR_FILE = "it is no regular file but a device, a pipe or a socket"  # reading one may never end

# Folders of test sets that hold what must not be learnt; `good` and its like beside them say so too.
_GOOD = {"good", "ok", "normal"}
_NOT_GOOD = {"test", "ground_truth", "groundtruth", "test_public", "masks", "anomaly", "bad", "ko", "defect"}


def list_images(source: PathLike | Sequence[PathLike]) -> list[Path]:
    """List the image files of a file, a folder, a glob pattern, or a list of these: sorted, each file once.

    A folder gives the images directly in it; if there are none, all those in its sub-folders, links to folders among
    them. A pattern may hold `*`, `?`, `[...]` and `**`. Only the suffixes in `IMAGE_SUFFIXES` count (upper or lower
    case); hidden files do not, nor do pictures that `uflow predict` wrote there; a file named in full is taken whatever
    its name. A line of the log says what was left out.

    Raises FileNotFoundError when a source is not there or a pattern matches no image, ValueError for a folder
    without images, for a pipe or a device, and for an empty list.
    """
    sources = [source] if isinstance(source, (str, os.PathLike)) else source
    # By its absolute name: a file that is given in two ways is one.
    found = {os.path.abspath(path): path for each in sources for path in _expand(each)}  # noqa: PTH100 (keeps links)
    if not found:
        raise ValueError("no images given: the list of files and folders is empty")
    return sorted(found.values())


def list_good_images(source: PathLike | Sequence[PathLike]) -> list[Path]:
    """`list_images` of images to learn from; ValueError where a folder, or a pattern with **, holds others too.

    The error says what to give. A data set's root, or that of a category, holds test images, defects and masks beside
    the good images.
    """
    for each in [source] if isinstance(source, (str, os.PathLike)) else source:
        root = Path(each).expanduser()
        if root.is_dir():
            _check_all_good(root, list_images(root))
        elif "**" in str(root):  # which takes sub-folders as a folder does
            _check_all_good(_above_pattern(root), list_images(each))
    return list_images(source)


def _check_all_good(root: Path, found: Sequence[Path]) -> None:
    counts: dict[str, int] = {}
    good: dict[Path, int] = {}
    for path in found:
        folders = path.relative_to(root).parts[:-1]
        names = [name.lower() for name in folders]
        if folders:
            counts[folders[0]] = counts.get(folders[0], 0) + 1
        if names and names[-1] in _GOOD and not _NOT_GOOD & set(names):
            good[path.parent] = good.get(path.parent, 0) + 1
    others = any(_NOT_GOOD & set(map(str.lower, path.relative_to(root).parts[:-1])) for path in found)
    if others or (good and sum(good.values()) < len(found)):
        seen = ", ".join(f"{count} in {name}/" for name, count in sorted(counts.items())[:5])
        give = f"give {next(iter(sorted(good)))}" if good else "give the folder of good images"
        raise ValueError(
            f"{root} holds more than good images to learn from ({seen}): {give}, or a pattern of just those you mean"
        )


def check_regular(path: Path) -> None:
    """ValueError for a folder, a pipe and so on; FileNotFoundError where there is nothing."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise ValueError(f"{path} is a folder, not an image: use list_images for what is in it")
    if not stat.S_ISREG(mode):
        raise ValueError(f"cannot read {path}: {NO_REGULAR_FILE}")


def _above_pattern(path: Path) -> Path:
    """The folder that a pattern looks below."""
    return next(parent for parent in path.parents if not glob.has_magic(str(parent)))


def _expand(source: PathLike) -> list[Path]:
    name = os.fspath(source)
    if not isinstance(name, str):
        raise TypeError(f"a path must be text, not {type(name).__name__}: {name!r}")
    path = Path(name).expanduser()
    if name and path.is_file():
        return [path]
    if name and path.is_dir():
        return _images_in(path)
    if name and path.exists():
        check_regular(path)
    if glob.has_magic(name):
        matches = [Path(match) for match in glob.glob(str(path), recursive=True)]  # noqa: PTH207 (takes absolute patterns)
        fixed = _above_pattern(path)
        if images := _without_results(fixed, filter(_is_image, matches)):
            return images
        raise FileNotFoundError(f"no image matches {name!r} ({_suffixes()} are looked for)")
    raise FileNotFoundError(f"no such file or folder: {name!r}")


def _images_in(folder: Path) -> list[Path]:
    try:
        direct = [path for path in folder.iterdir() if _is_image(path)]
    except OSError as error:
        raise ValueError(f"cannot list the folder {folder}: {one_line(error)}") from error
    if not direct:
        direct = [path for below in _folders_below(folder) for path in below.iterdir() if _is_image(path)]
    elif hidden := _first_image_below(folder):
        log.warning(
            "%s holds images directly, and those in its sub-folders (such as %s) are left out; '%s/**' takes all",
            *(folder, hidden.relative_to(folder), folder),
        )
    images = _without_results(folder, direct)
    if not images:
        raise ValueError(f"no images in {folder} ({_suffixes()} are looked for)")
    return images


def _folders_below(folder: Path) -> Iterator[Path]:
    """All folders in a folder, through links too, each once, however links go round."""
    seen = {os.path.realpath(folder)}
    for where, folders, _ in os.walk(folder, followlinks=True):
        kept = []
        for name in sorted(folders):
            real = os.path.realpath(Path(where, name))
            if not name.startswith(".") and real not in seen:
                seen.add(real)
                kept.append(name)
        folders[:] = kept
        yield from (Path(where, name) for name in kept)


def _first_image_below(folder: Path) -> Path | None:
    for below in islice(_folders_below(folder), MAX_SCANNED_FOLDERS):
        for path in below.iterdir():
            if _is_image(path) and not is_result(folder, path):
                return path
    return None


def _without_results(root: Path, images: Iterable[Path]) -> list[Path]:
    """The images but for the pictures that `uflow predict` wrote below `root`."""
    images = list(images)
    kept = [path for path in images if not is_result(root, path)]
    if len(kept) < len(images):
        log.warning("%d pictures below %s are left out: uflow predict wrote them", len(images) - len(kept), root)
    return kept


def is_result(root: Path, path: Path) -> bool:
    """Whether a picture has the name of a result, and lies in a folder of results, or below one."""
    if not path.name.endswith(RESULT_PICTURES):
        return False
    return any((parent / RESULTS_FILE).exists() for parent in path.parents if parent.is_relative_to(root))


def is_image_name(path: PurePath) -> bool:
    """Whether a file of that name is an image, and not a hidden one."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _is_image(path: Path) -> bool:
    return is_image_name(path) and path.is_file()


def _suffixes() -> str:
    return " ".join(IMAGE_SUFFIXES)
