"""Pictures and files from predictions: overlays, masks, maps, and the figure of a test set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from .data import atomic_write
from .predictor import Evaluation, Prediction

OUTLINE = (0, 255, 255)  # cyan: rare on parts, and far from every colour of the map


def overlay(prediction: Prediction) -> Image.Image:
    """The image under its anomaly map, detected regions outlined in cyan; as large as the image."""
    colours = mpl.colormaps["inferno"](prediction.anomaly_map)[..., :3] * 255
    # Normal pixels, about 1 - exp(-1/2) = 0.39, keep their look.
    weight = 0.7 * np.clip(2 * prediction.anomaly_map - 1, 0, 1)[..., None]
    blend = (1 - weight) * prediction.image + weight * colours
    blend[outline(prediction.mask)] = OUTLINE
    return Image.fromarray(blend.astype(np.uint8))


def outline(mask: np.ndarray) -> np.ndarray:
    """Pixels of an (H, W) bool mask that touch its outside, as wide as shows on the whole picture."""
    inside = mask.copy()
    for _ in range(max(1, round(max(mask.shape) / 250))):
        padded = np.pad(inside, 1, constant_values=False)
        inside = inside & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.asarray(mask & ~inside)


def write_prediction(prediction: Prediction, stem: Path, arrays: bool = False) -> list[Path]:
    """Write ``<stem>_mask.png`` (0 or 255), ``<stem>_map.png`` (anomaly map times 255), ``<stem>_overlay.png``.

    With `arrays` also ``<stem>_map.npy`` and ``<stem>_log_nfa.npy``, float32. Each file is written whole or not at all.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    pictures = {
        "mask": Image.fromarray(prediction.mask.astype(np.uint8) * 255),
        "map": Image.fromarray((prediction.anomaly_map * 255).round().astype(np.uint8)),
        "overlay": overlay(prediction),
    }
    written = []
    for name, picture in pictures.items():
        written.append(stem.with_name(f"{stem.name}_{name}.png"))
        with atomic_write(written[-1]) as temporary:
            picture.save(temporary)
    if arrays:
        for name, array in {"map": prediction.anomaly_map, "log_nfa": prediction.log_nfa}.items():
            written.append(stem.with_name(f"{stem.name}_{name}.npy"))
            with atomic_write(written[-1]) as temporary:
                np.save(temporary, array)
    return written


def write_json_line(prediction: Prediction, file: IO[str]) -> None:
    """One line of JSON: image, score, is_anomalous, log_nfa (the lowest) and regions."""
    file.write(json.dumps(prediction.to_dict()) + "\n")
    file.flush()


def write_json(content: object, path: Path) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def write_figure(rows: Sequence[tuple[str, Prediction, np.ndarray]], path: Path) -> None:
    """A picture of predictions beside the truth: image with truth outlined, anomaly map, detected mask.

    `rows` holds a title, the prediction, and the truth as (H, W) bool, for each image.
    """
    figure = Figure(figsize=(7.2, 2.4 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), 3, squeeze=False)
    for (title, prediction, truth), (left, middle, right) in zip(rows, axes, strict=True):
        picture = prediction.image.copy()
        picture[outline(truth)] = (255, 0, 0)
        left.imshow(picture)
        left.set_ylabel(title, fontsize=8)
        middle.imshow(prediction.anomaly_map, cmap="inferno", vmin=0, vmax=1)
        right.imshow(prediction.mask, cmap="gray", vmin=0, vmax=1)
        lowest = min((region.log_nfa for region in prediction.regions), default=None)
        right.set_xlabel("nothing detected" if lowest is None else f"log10 NFA {lowest:.1f}", fontsize=8)
        middle.set_xlabel(f"score {prediction.score:.2f}", fontsize=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    for axis, title in zip(axes[0], ("image, truth in red", "anomaly map", "mask at NFA < 1"), strict=True):
        axis.set_title(title, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)


COLUMNS = {
    "pixel AUROC": "pixel_auroc",
    "AUPRO": "aupro",
    "image AUROC": "image_auroc",
    "mIoU": "miou",
    "mIoU best": "miou_best",
}


def table(evaluations: dict[str, Evaluation]) -> list[list[str]]:
    """Header, a row a category, and their mean: figures, and the share of good and of defective images flagged."""
    rows = [["category", *COLUMNS, "good flagged", "defective flagged"]]
    for name, evaluation in evaluations.items():
        figures = [f"{getattr(evaluation, field):.3f}" for field in COLUMNS.values()]
        good = evaluation.flagged.get("good")
        defects = [kind for kind in evaluation.flagged.items() if kind[0] != "good"]
        rows.append([name, *figures, _share([good] if good else []), _share([counts for _, counts in defects])])
    if len(evaluations) > 1:
        means = [np.mean([getattr(e, field) for e in evaluations.values()]) for field in COLUMNS.values()]
        rows.append(["mean", *(f"{mean:.3f}" for mean in means), "", ""])
    return rows


def _share(counts: Sequence[dict[str, float]]) -> str:
    images = sum(c["images"] for c in counts)
    return f"{sum(c['images'] * c['share'] for c in counts) / images:.1%}" if images else "-"
