"""What a detector says of one image: numbers, regions, pictures of itself. Needs no torch and no matplotlib."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .files import atomic_write
from .segmentation import Region

__all__ = ["Prediction", "mask_outline", "overlay", "write_json_line", "write_prediction"]

OUTLINE_RGB = (0, 255, 255)  # cyan: rare on parts, and far from every colour of the map
# Black over purple and orange to pale yellow, evenly spaced: lightness rises all along, also for the colour-blind.
HEAT_RGB = ((0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85), (227, 89, 51), (249, 140, 10),
            (249, 201, 50), (252, 255, 164))  # fmt: skip
MAP_OF_NORMAL = 0.5  # below this value of the map, pixels keep their look: normal ones have about 1 - exp(-1/2) = 0.39


@dataclass(frozen=True)
class Prediction:
    """What the detector says of one image; the maps have the image's own size (H, W).

    Attributes:
        score: how anomalous the image is, the largest value of `anomaly_map`.
        is_anomalous: whether any pixel is detected, that is whether ``log_nfa`` falls below 0 anywhere.
        anomaly_map: (H, W) float32 in [0, 1].
        log_nfa: (H, W) float32, log10 of the Number of False Alarms after calibration: below 0 means detected.
        mask: (H, W) bool, the detected pixels.
        regions: the connected components of the mask, lowest log_nfa first.
        image: (H, W, 3) uint8, the image as it was read.
        path: the file it was read from, if it was one.
        p_value: the share of good images at least as strange, so that ``p_value <= alpha`` is the decision; None for a
            detector that was not calibrated.
    """

    score: float
    is_anomalous: bool
    anomaly_map: np.ndarray
    log_nfa: np.ndarray
    mask: np.ndarray
    regions: list[Region]
    image: np.ndarray
    path: Path | None = None
    p_value: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The numbers without the maps, ready for JSON."""
        return {
            "image": None if self.path is None else str(self.path),
            "score": self.score,
            "is_anomalous": self.is_anomalous,
            "p_value": self.p_value,
            "log_nfa": float(self.log_nfa.min()),
            "regions": [asdict(region) for region in self.regions],
        }


def overlay(prediction: Prediction) -> Image.Image:
    """The image under its anomaly map, detected regions outlined in cyan; as large as the image."""
    weight = 0.7 * np.clip((prediction.anomaly_map - MAP_OF_NORMAL) / (1 - MAP_OF_NORMAL), 0, 1)[..., None]
    blend = (1 - weight) * prediction.image + weight * heat_colours(prediction.anomaly_map)
    blend[mask_outline(prediction.mask)] = OUTLINE_RGB
    return Image.fromarray(blend.astype(np.uint8))


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
    """One line of JSON: what `Prediction.to_dict` holds."""
    file.write(json.dumps(prediction.to_dict()) + "\n")
    file.flush()
