"""Maps of several methods on the same test images, kept as files, and one picture of all: a row a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bit_depth import find_bit_depth
from ..files import atomic_write
from ..images import image_size, read_image, resize_image
from .evaluation import ImageOutput
from .protocols import PAPER_SIZE, published_truth
from .samples import Dataset, Sample

__all__ = ["choose_shown", "draw_methods", "read_maps", "write_maps"]

SHOWN = 8  # test images of a category whose maps are kept
PANEL = 1.3  # inches


def choose_shown(samples: Sequence[Sample], count: int = SHOWN) -> list[int]:
    """Which test images are shown: defective ones, of each kind in turn.

    >>> choose_shown([Sample(Path(str(i)), kind) for i, kind in enumerate(["good", "a", "a", "a", "b"])], count=3)
    [1, 2, 4]
    """
    by_kind: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        if sample.is_anomalous:
            by_kind.setdefault(sample.defect, []).append(i)
    longest = max(map(len, by_kind.values()), default=0)
    in_turn = [kind[rank] for rank in range(longest) for kind in by_kind.values() if rank < len(kind)]
    return sorted(in_turn[:count])


def write_maps(outputs: Mapping[int, ImageOutput], path: Path) -> None:
    """Write what a method says of some test images: ``index`` (n,), ``maps`` (n, H, W) float16, and ``masks`` bool
    where it has a threshold of its own.
    """
    arrays: dict[str, NDArray[Any]] = {
        "index": np.array(list(outputs), np.int64),
        "maps": np.array([output.anomaly_map for output in outputs.values()], np.float16),
    }
    log_nfa = [output.log_nfa for output in outputs.values()]
    if log_nfa and all(values is not None for values in log_nfa):
        arrays["masks"] = np.array([values < 0 for values in log_nfa if values is not None])
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # arrays are named


def read_maps(path: Path) -> dict[str, NDArray[Any]]:
    """What `write_maps` wrote."""
    with np.load(path) as content:
        return dict(content)


def draw_methods(dataset: Dataset, files: Mapping[str, Path], path: Path) -> None:
    """Draw one picture of a category: images, truth, then a row of maps for each method.

    A method's maps are coloured from its lowest value to its highest in this picture: methods have no common scale.

    Args:
        dataset: the category.
        files: of each method, by its name, what `write_maps` wrote.
        path: of the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = {name: read_maps(file) for name, file in files.items()}
    shown = next(iter(found.values()))["index"].tolist()
    paths = [dataset.test[i].path for i in shown]
    bit_depth = find_bit_depth(paths)
    rows: list[tuple[str, Sequence[NDArray[Any]], dict[str, Any]]] = [
        ("image", [resize_image(read_image(path, bit_depth), (PAPER_SIZE, PAPER_SIZE)) for path in paths], {}),
        ("truth", [_truth(dataset.test[i]) for i in shown], {"cmap": "gray", "vmin": 0, "vmax": 1}),
    ]
    for name, arrays in found.items():
        maps = arrays["maps"].astype(np.float32)
        rows.append((name, list(maps), {"cmap": "inferno", "vmin": maps.min(), "vmax": maps.max()}))
        if "masks" in arrays:
            rows.append((f"{name}, mask", list(arrays["masks"]), {"cmap": "gray", "vmin": 0, "vmax": 1}))
    figure = Figure(figsize=(PANEL * len(shown) + 1, PANEL * len(rows)), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(shown), squeeze=False)
    for (name, panels, colours), row in zip(rows, axes, strict=True):
        row[0].set_ylabel(name)
        for axis, panel in zip(row, panels, strict=True):
            axis.imshow(panel, **colours)
            axis.set(xticks=[], yticks=[])
    figure.tight_layout(pad=0.4)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def _truth(sample: Sample) -> NDArray[np.bool_]:
    """The defective pixels at the size of the maps; none where they are not known."""
    truth = sample.truth(image_size(sample.path))
    size = (PAPER_SIZE, PAPER_SIZE)
    return np.zeros(size, bool) if truth is None else published_truth(truth, size)
