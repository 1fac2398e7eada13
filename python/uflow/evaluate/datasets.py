"""Test sets with truth, in the layouts they are published in: what to learn from, what to test, what is a defect."""

from __future__ import annotations

from pathlib import Path

from ..files import PathLike
from .layouts import LAYOUTS, folders_in, images_in, name_of, read_mvtec
from .samples import Dataset, Sample

__all__ = ["LAYOUTS", "Dataset", "Sample", "find_categories", "read_mvtec"]


def find_categories(root: PathLike, layout: str | None = None, failed: dict[str, str] | None = None) -> list[Dataset]:
    """Read all categories of a data set, by name.

    Args:
        root: the data set, or one of its categories, or a list.
        layout: one of `LAYOUTS`; by default the first that the folder, or folders in it, fit.
        failed: where given, takes the name and the reason of each of several categories that cannot be read, and the
            others are returned; by default the first such category is an error.

    Raises:
        FileNotFoundError: the layout, or a file that it promises, is not there.
        ValueError: a name that is no layout, an empty folder, a wrong list, or nothing to train on or to test.
    """
    root = Path(root).expanduser()
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"there is no layout {layout!r}: choose one of {', '.join(LAYOUTS)}")
    if not root.exists():
        raise FileNotFoundError(f"no such file or folder: {str(root)!r}")
    names = list(LAYOUTS) if layout is None else [layout]
    wrapped = folders_in(root)  # archives often unpack to a folder in a folder
    for place in (root, *wrapped) if len(wrapped) == 1 else (root,):
        for name in names:
            if units := LAYOUTS[name].units(place):
                return sorted(_read(name, units, failed), key=lambda dataset: dataset.name)
    raise _nothing_found(root, layout)


def _read(layout: str, units: list[Path], failed: dict[str, str] | None) -> list[Dataset]:
    datasets: list[Dataset] = []
    for unit in units:
        try:
            if missing := LAYOUTS[layout].missing(unit):
                without = "; read alone, it needs no masks" if missing == ["ground_truth"] else ""
                raise FileNotFoundError(f"{unit} has no {' and no '.join(missing)} (read as {layout}){without}")
            datasets += [_checked(dataset, unit) for dataset in LAYOUTS[layout].read(unit)]
        except (ValueError, OSError) as error:
            if failed is None or len(units) == 1:
                raise
            failed[name_of(unit)] = str(error)
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
        fitting = [name for name, rules in LAYOUTS.items() if not rules.missing(parent)]
        hint = hint or (f"; {parent} is in the layout {fitting[0]}: give that" if fitting else "")
    if layout in (None, "folder") and images_in(root):
        return ValueError(
            f"{root} holds images alone, taken as good ones: there is nothing to test; put them into a folder good, "
            f"beside one folder for each kind of defect{hint}"
        )
    names = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    found = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"
    if layout is None:
        wanted = "; ".join(f"{name} ({', '.join(rules.needs)})" for name, rules in LAYOUTS.items())
        return FileNotFoundError(f"no data set found in {root}{hint}; looked for {wanted}; found {found}")
    nearest = min((LAYOUTS[layout].missing(folder) for folder in (root, *folders_in(root))), key=len)
    missing = " and no ".join(nearest)
    return FileNotFoundError(f"{root} is not in the layout {layout}: no {missing}; found {found}{hint}")
