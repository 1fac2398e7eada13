"""What a detector says of one image: numbers, regions, pictures of itself. Needs no torch and no matplotlib."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .conformal import Verdict
from .files import FileStamp, atomic_write, one_line
from .outline import polygon
from .segmentation import Region, connected_components
from .threshold import DecisionRule, PaperThreshold

__all__ = [
    "DetectedRegion",
    "FailedImage",
    "ModelOrigin",
    "Prediction",
    "mask_outline",
    "overlay",
    "write_json_line",
    "write_prediction",
]

SCHEMA_VERSION = 1  # of `Prediction.to_dict`: docs/prediction.schema.json
OUTLINE_RGB = (0, 255, 255)  # cyan: rare on parts, and far from every colour of the map
# Black over purple and orange to pale yellow, evenly spaced: lightness rises all along, also for the colour-blind.
HEAT_RGB = ((0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85), (227, 89, 51), (249, 140, 10),
            (249, 201, 50), (252, 255, 164))  # fmt: skip
STRIP_PIXELS = 1 << 16  # whose colours are computed together: some megabytes
MAP_OF_NORMAL = 0.5  # below this value of the map, pixels keep their look: normal ones have about 1 - exp(-1/2) = 0.39


@dataclass(frozen=True)
class ModelOrigin:
    """Which file a model is in: its name, and its SHA-256 in hexadecimal.

    Of an exported folder it is the SHA-256 of `model.json`, which holds those of all other files.
    """

    name: str
    sha256: str


@dataclass(frozen=True, eq=False)
class DetectedRegion:
    """A connected part of a prediction's mask.

    Places are x and y in pixels from the upper left corner of the image, as in most annotation formats: the pixel in
    row r and column c goes from (c, r) to (c + 1, r + 1).

    Attributes:
        area: in pixels.
        centroid: (x, y) of its middle.
        box: (x0, y0, x1, y1) of the least rectangle around it: ``mask[y0:y1, x0:x1]`` holds it.
        score: the largest value of the anomaly map in it.
        log_nfa: the lowest log10 Number of False Alarms in it.
        p_value: the share of good images with a region at least as significant; None where nothing was calibrated.
    """

    area: int
    centroid: tuple[float, float]
    box: tuple[int, int, int, int]
    score: float
    log_nfa: float
    p_value: float | None
    _window: NDArray[np.bool_] = field(repr=False)  # of the whole mask, no copy: other regions may show in it

    @classmethod
    def from_mask(cls, region: Region, mask: NDArray[np.bool_], p_value: float | None) -> DetectedRegion:
        """A region that `segmentation.regions` found in a mask (H, W)."""
        top, left, bottom, right = region.bbox
        row, column = region.centroid
        return cls(
            area=region.area,
            centroid=(column + 0.5, row + 0.5),
            box=(left, top, right, bottom),
            score=region.score,
            log_nfa=region.log_nfa,
            p_value=p_value,
            _window=mask[top:bottom, left:right],
        )

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """Its pixels within its box: (y1 - y0, x1 - x0) bool. Computed when first asked."""
        labels, _ = connected_components(self._window)
        # No two 4-connected regions both reach from left to right and from top to bottom: they would cross.
        sides = (labels[0], labels[-1], labels[:, 0], labels[:, -1])
        (own,) = set.intersection(*(set(side.tolist()) for side in sides)) - {0}
        return np.asarray(labels == own)

    @cached_property
    def contours(self) -> list[NDArray[np.float32]]:
        """Its outer ring, then a ring for each hole: (n, 2) float32 each, x and y. Computed when first asked.

        See `outline.polygon`.
        """
        return polygon(self.mask, (self.box[0], self.box[1]))

    def to_dict(self) -> dict[str, Any]:
        """All of it but the mask, ready for JSON."""
        return {
            "area": self.area,
            "centroid": list(self.centroid),
            "box": list(self.box),
            "score": self.score,
            "log_nfa": self.log_nfa,
            "p_value": self.p_value,
            "contours": [ring.tolist() for ring in self.contours],
        }


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """What the detector says of one image; the maps have the image's own size (H, W).

    Attributes:
        score: how anomalous the image is, the largest value of `anomaly_map`.
        is_anomalous: whether any pixel is detected, that is whether ``log_nfa`` falls below 0 anywhere.
        anomaly_map: (H, W) float32 in [0, 1].
        log_nfa: (H, W) float32, log10 of the Number of False Alarms after calibration: below 0 means detected.
        mask: (H, W) bool, the detected pixels.
        regions: the connected components of the mask, lowest log_nfa first.
        image: (H, W, 3) uint8 RGB, the image as it was read.
        path: the file it was read from, if it was one.
        p_value: the share of good images at least as strange, so that ``p_value <= alpha`` is the decision; None for a
            detector that was not calibrated.
        threshold: the decision rule that was applied.
        model: the file that the model is in; None where it is in none, as before it is saved or after calibrating.
        time: when it was predicted.
        content: what `sha256` is of: the file as it was, or its bytes where the image came as such.
    """

    score: float
    is_anomalous: bool
    anomaly_map: np.ndarray
    log_nfa: np.ndarray
    mask: np.ndarray
    regions: list[DetectedRegion]
    image: np.ndarray
    path: Path | None = None
    p_value: float | None = None
    threshold: DecisionRule = field(default_factory=PaperThreshold)
    model: ModelOrigin | None = None
    time: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    content: FileStamp | bytes | None = None

    def __repr__(self) -> str:
        height, width = self.mask.shape
        name = "" if self.path is None else f"{self.path.name}, "
        p_value = "" if self.p_value is None else f"p-value {self.p_value:.3g}, "
        found = f"{len(self.regions)} region{'' if len(self.regions) == 1 else 's'}"
        return (
            f"<Prediction {name}{width} x {height} pixels: {'anomalous' if self.is_anomalous else 'good'}, "
            f"score {self.score:.3f}, {p_value}log10 NFA {float(self.log_nfa.min()):.1f}, {found}>"
        )

    @property
    def verdict(self) -> Verdict:
        """What to do with the part: "good", "look" or "reject", see `conformal.verdict_of`.

        "reject" is what is anomalous, "look" what is beyond the looser limit only, if there is one. Without
        calibration nothing is promised, and it says no more than `is_anomalous`.
        """
        return self.threshold.verdict(float(self.log_nfa.min()))

    @cached_property
    def sha256(self) -> str | None:
        """SHA-256 of the image's file, in hexadecimal; None where it came from none, or the file has changed since.

        Computed when first asked.
        """
        if isinstance(self.content, bytes):
            return hashlib.sha256(self.content).hexdigest()
        return None if self.content is None else self.content.sha256()

    def to_dict(self) -> dict[str, Any]:
        """All but the maps, ready for JSON; docs/prediction.schema.json says what each entry is."""
        return {
            "schema": SCHEMA_VERSION,
            "image": None if self.path is None else str(self.path),
            "sha256": self.sha256,
            "time": self.time.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "model": None if self.model is None else self.model.name,
            "model_sha256": None if self.model is None else self.model.sha256,
            "alpha": self.threshold.alpha,
            "look_alpha": self.threshold.look_alpha,
            "size": list(self.mask.shape),
            "score": self.score,
            "is_anomalous": self.is_anomalous,
            "verdict": self.verdict,
            "p_value": self.p_value,
            "calibration_images": self.threshold.calibration_images,
            "log_nfa": float(self.log_nfa.min()),
            "regions": [region.to_dict() for region in self.regions],
        }


@dataclass(frozen=True)
class FailedImage:
    """An image that could not be judged, and why, where a stream goes on with the next.

    Attributes:
        path: its file, if it was one.
        error: what was raised.
    """

    path: Path | None
    error: Exception

    def to_dict(self) -> dict[str, Any]:
        """The line of JSON in place of a prediction's."""
        return {"image": None if self.path is None else str(self.path), "error": one_line(self.error)}


def overlay(prediction: Prediction) -> Image.Image:
    """The image under its anomaly map, detected regions outlined in cyan; as large as the image."""
    blend = np.empty_like(prediction.image)
    for rows in _strips(prediction.anomaly_map):  # colours of a whole large picture would fill the memory
        values = prediction.anomaly_map[rows]
        weight = 0.7 * np.clip((values - MAP_OF_NORMAL) / (1 - MAP_OF_NORMAL), 0, 1)[..., None]
        blend[rows] = (1 - weight) * prediction.image[rows] + weight * heat_colours(values)
    blend[mask_outline(prediction.mask)] = OUTLINE_RGB
    return Image.fromarray(blend)


def map_picture(anomaly_map: np.ndarray) -> Image.Image:
    """An anomaly map times 255, as a grey picture."""
    grey = np.empty(anomaly_map.shape, np.uint8)
    for rows in _strips(anomaly_map):
        grey[rows] = (anomaly_map[rows] * 255).round()
    return Image.fromarray(grey)


def _strips(values: np.ndarray) -> list[slice]:
    """The rows of a picture, some at a time."""
    height, width = values.shape
    count = max(1, STRIP_PIXELS // width)
    return [slice(top, top + count) for top in range(0, height, count)]


def heat_colours(values: np.ndarray) -> NDArray[np.float32]:
    """Colours of a map with values in [0, 1]: (H, W) -> (H, W, 3) float32 from 0 to 255."""
    stops = np.linspace(0, 1, len(HEAT_RGB))
    channels = [np.interp(values, stops, channel) for channel in np.array(HEAT_RGB).T]
    return np.stack(channels, axis=-1).astype(np.float32)


def mask_outline(mask: np.ndarray) -> np.ndarray:
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
        "mask": Image.fromarray(prediction.mask.astype(np.uint8) * np.uint8(255)),
        "map": map_picture(prediction.anomaly_map),
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


def write_json_line(prediction: Prediction | FailedImage, file: IO[str]) -> None:
    """One line of JSON: what `to_dict` holds."""
    file.write(json.dumps(prediction.to_dict(), allow_nan=False) + "\n")
    file.flush()
