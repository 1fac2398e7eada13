"""What a detector says of one image: numbers, regions, pictures of itself. Needs no torch and no matplotlib."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import formats, pictures
from .conformal import Verdict
from .files import FileStamp, PathLike, atomic_write, one_line
from .outline import polygon
from .roi import RegionOfInterest
from .segmentation import Region, connected_components
from .threshold import DecisionRule, PaperThreshold

__all__ = [
    "DetectedRegion",
    "FailedImage",
    "ModelOrigin",
    "Prediction",
    "write_prediction",
]

SCHEMA_VERSION = 1  # of `Prediction.to_dict`: docs/prediction.schema.json
PLOT_SIDE = 400  # pixels, the longer side of each picture in `Prediction.plot`
NOTEBOOK_SIDE = 300  # and of those in a notebook
JPEG_QUALITY = 88  # of those in a notebook: three hold at most some 200 kB


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
        score: how anomalous the image is, in [0, 1]: the map's value for the mean of its largest cells, see
            `scoring.Blend.scores`; of the paper's map, its largest value.
        is_anomalous: whether any pixel is detected, that is whether ``log_nfa`` falls below 0 anywhere.
        anomaly_map: (H, W) float32 in [0, 1].
        log_nfa: (H, W) float32, log10 of the Number of False Alarms after calibration: below 0 means detected.
        mask: (H, W) bool, the detected pixels.
        regions: the connected components of the mask, lowest log_nfa first.
        image: (H, W, 3) uint8 RGB, the image as it was read.
        path: the file it was read from, if it was one.
        p_value: the share of good images at least as strange, so that ``p_value <= alpha`` is the decision; where too
            few images support alpha, the least that they do takes its place. None for a detector that was not
            calibrated.
        threshold: the decision rule that was applied.
        model: the file that the model is in; None where it is in none, as before it is saved or after calibrating.
        time: when it was predicted.
        content: what `sha256` is of: the file as it was, or its bytes where the image came as such.
        roi: where the image was judged; None is everywhere.
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
    roi: RegionOfInterest | None = None

    def __repr__(self) -> str:
        height, width = self.mask.shape
        return f"<Prediction {self._summary()}, {width} x {height} pixels>"

    def _summary(self) -> str:
        name = "" if self.path is None else f"{self.path.name}: "
        p_value = "" if self.p_value is None else f"p-value {self.p_value:.3g}, "
        found = f"{len(self.regions)} region{'' if len(self.regions) == 1 else 's'}"
        said, lowest = "anomalous" if self.is_anomalous else self.verdict, self._lowest
        return f"{name}{said}, score {self.score:.3f}, {p_value}log10 NFA {lowest:.1f}, {found}"

    @cached_property
    def _lowest(self) -> float:
        """The lowest log10 NFA; of a large image that is a millisecond, and it is asked for more than once."""
        return float(self.log_nfa.min())

    @property
    def verdict(self) -> Verdict:
        """What to do with the part: "good", "look" or "reject", see `conformal.verdict_of`.

        "reject" is what is anomalous, "look" what is beyond the looser limit only, if there is one. Without
        calibration nothing is promised, and it says no more than `is_anomalous`.
        """
        return self.threshold.verdict(self._lowest)

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
            "log_nfa": self._lowest,
            "regions": [region.to_dict() for region in self.regions],
        }

    def to_coco(self) -> dict[str, Any]:
        """COCO's object detection format, see `formats.to_coco`; `formats.write_coco` takes many."""
        return formats.to_coco([self])

    def to_labelme(self) -> dict[str, Any]:
        """The content of a labelme file, see `formats.to_labelme`."""
        return formats.to_labelme(self)

    def to_geojson(self) -> dict[str, Any]:
        """A GeoJSON FeatureCollection in pixels, see `formats.to_geojson`."""
        return formats.to_geojson(self)

    def to_supervision(self) -> Any:
        """`supervision.Detections`, see `formats.to_supervision`."""
        return formats.to_supervision(self)

    # Pictures ---------------------------------------------------------------------------------------------------------

    @property
    def colours(self) -> pictures.ColourScale:
        """The colours of its map: what good parts reach is calm, and the level of alpha is marked."""
        levels = self.threshold.map_levels()
        return pictures.ColourScale() if levels is None else pictures.ColourScale(*levels)

    @property
    def shown(self) -> np.ndarray:
        """The image as pictures show it: darker outside the region of interest."""
        return self.image if self.roi is None else self.roi.veil(self.image)

    @property
    def rings(self) -> list[NDArray[np.float32]]:
        """The outlines of all regions: `DetectedRegion.contours`, one after another."""
        return [ring for region in self.regions for ring in region.contours]

    def overlay(self) -> Image.Image:
        """The image under its map, regions outlined; as large as the image."""
        return pictures.overlay(self.shown, self.anomaly_map, self.rings, self.colours)

    def panels(self, side: int) -> dict[str, Image.Image]:
        """Pictures of the "image", its "outline", "map" and "mask", their longer side `side` pixels."""
        return pictures.panels(self.shown, self.anomaly_map, self.mask, self.rings, self.colours, side)

    def plot(self, side: int = PLOT_SIDE) -> Image.Image:
        """One picture of it: the image with its regions outlined, its map, its mask.

        Args:
            side: pixels, the longer side of each of the three.
        """
        shown = self.panels(side)
        del shown["image"]
        return pictures.side_by_side(shown, self._summary(), self.colours, self.threshold.alpha)

    def save(self, path: PathLike, side: int = PLOT_SIDE) -> None:
        """Write what `plot` draws, whole or not at all; the name's ending says the format, such as .png or .jpg.

        Raises:
            ValueError: an ending that is no format of pictures.
        """
        path = Path(path)
        if path.suffix.lower() not in Image.registered_extensions():
            raise ValueError(f"{path} does not end in the name of a picture's format: write to {path.stem}.png")
        picture = self.plot(side)
        with atomic_write(path) as temporary:
            picture.save(temporary)

    def _repr_html_(self) -> str:
        """Image, map and outline side by side, in a notebook; it asks nothing from elsewhere."""
        shown = self.panels(NOTEBOOK_SIDE)
        figures = [
            f'<figure style="margin:0"><img alt="{name}" src="{_data_uri(shown[name])}">'
            f"<figcaption>{name}</figcaption></figure>"
            for name in ("image", "map", "outline")
        ]
        row = "".join(figures)
        return f'<p>{html.escape(self._summary())}</p><div style="display:flex;flex-wrap:wrap;gap:8px">{row}</div>'


@dataclass(frozen=True)
class FailedImage:
    """An image that could not be judged, and why, where a stream goes on with the next.

    Attributes:
        path: its file, if it was one.
        error: what was raised.
    """

    path: Path | None
    error: Exception

    @classmethod
    def of(cls, source: object, error: Exception) -> FailedImage:
        """Of what an image was given as."""
        return cls(Path(source) if isinstance(source, str | os.PathLike) else None, error)

    def to_dict(self) -> dict[str, Any]:
        """The line of JSON in place of a prediction's."""
        return {"image": None if self.path is None else str(self.path), "error": one_line(self.error)}


def _data_uri(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def write_prediction(prediction: Prediction, stem: Path, arrays: bool = False) -> list[Path]:
    """Write ``<stem>_mask.png`` (0 or 255), ``<stem>_map.png`` and ``<stem>_overlay.png``, as large as the image.

    The map's picture is to be looked at: its colours are `Prediction.colours`. With `arrays` its values too, float32,
    as ``<stem>_map.npy`` and ``<stem>_log_nfa.npy``. Each file is written whole or not at all.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[], Image.Image]] = {  # made one at a time: each is as large as the image
        "mask": lambda: Image.fromarray(prediction.mask.view(np.uint8) * np.uint8(255)),
        "map": lambda: pictures.map_picture(prediction.anomaly_map, prediction.colours),
        "overlay": prediction.overlay,
    }
    written = []
    for name, make in makers.items():
        written.append(stem.with_name(f"{stem.name}_{name}.png"))
        with atomic_write(written[-1]) as temporary:
            make().save(temporary)
    if arrays:
        for name, array in {"map": prediction.anomaly_map, "log_nfa": prediction.log_nfa}.items():
            written.append(stem.with_name(f"{stem.name}_{name}.npy"))
            with atomic_write(written[-1]) as temporary:
                np.save(temporary, array)
    return written
