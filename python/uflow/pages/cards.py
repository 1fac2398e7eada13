"""What a page shows of each image: a card with its numbers, outlines and pictures, made as predictions come.

Needs no torch.
"""

from __future__ import annotations

import copy
import heapq
import os
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..images import ImageLike
from ..prediction import FailedImage, Prediction
from ..predictor import OnTiles, Predictor
from ..scoring import Evidence
from ..threshold import CalibratedThreshold
from .pictures import coloured_map, encode_within, svg_path

__all__ = ["Card", "CardMaker", "Finding", "OutlinedRegion", "PictureLimits", "leave_out_pictures"]

LOOSEST_ALPHA = 0.2  # that the slider of a page offers: regions are looked for once, at this alpha
MOST_REGIONS = 100  # drawn of an image: the paper's test can find thousands of specks

# Of a whole page, so that it can be sent and opens at once.
MOST_PICTURES = 3000  # images with a picture; of others there are the numbers alone
PICTURE_BYTES = 36_000_000  # of all pictures; as text in a page they take a third more
PHOTO_SHARE = 0.8  # of an image's bytes; its maps have the rest
PHOTO_SIDE = 1024  # pixels at most, of the longer side
MAP_SIDE = 192


@dataclass(frozen=True)
class OutlinedRegion:
    """A region that was found: its numbers, and its outline as an SVG path in pixels of the image.

    Attributes:
        p_value: the least alpha at which it is found; None where nothing was calibrated.
        area: in pixels of the image.
        score: the largest value of the anomaly map in it.
        path: its outline.
    """

    p_value: float | None
    area: int
    score: float
    path: str

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"p": self.p_value, "area": self.area, "score": round(self.score, 4), "path": self.path}


@dataclass(frozen=True)
class Finding:
    """What one method says of one image.

    Attributes:
        score: how anomalous the image is.
        p_value: the share of good images at least as strange; None for a method that is not calibrated.
        flagged: whether it is flagged as the method is set; None for a method without a threshold.
        levels: (alpha, regions found at that alpha), the strictest first; alpha is None where there is no p-value.
        map_picture: the coloured anomaly map as WebP; None where it is left out.
    """

    score: float
    p_value: float | None = None
    flagged: bool | None = None
    levels: tuple[tuple[float | None, tuple[OutlinedRegion, ...]], ...] = ()
    map_picture: bytes | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, without the picture."""
        return {
            "score": self.score,
            "p": self.p_value,
            "flagged": self.flagged,
            "levels": [
                {"alpha": alpha, "regions": [region.to_dict() for region in regions]} for alpha, regions in self.levels
            ],
        }


@dataclass
class Card:
    """One image on a page.

    Attributes:
        name: shown and searched.
        size: (H, W) in pixels.
        findings: of each method, in the page's order.
        kind: "good", the name of its defect, or None where the truth is not known.
        category: the kind of part, a key of `Report.promises`.
        truth: the labelled defect, an SVG path in pixels; empty for none.
        photo: the image as WebP; None where it is left out.
    """

    name: str
    size: tuple[int, int]
    findings: list[Finding]
    kind: str | None = None
    category: str = ""
    truth: str = ""
    photo: bytes | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, without the pictures."""
        return {
            "name": self.name,
            "size": list(self.size),
            "kind": self.kind,
            "truth": self.truth,
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def leave_out_pictures(self) -> None:
        """Keep the numbers alone."""
        self.photo = None
        self.findings = [Finding(f.score, f.p_value, f.flagged, f.levels) for f in self.findings]

    @property
    def suspicion(self) -> tuple[float, float]:
        """The more suspicious of two cards has the larger one: by p-value, then by score, of the first method."""
        first = self.findings[0]
        return -(first.p_value if first.p_value is not None else 0.0), first.score


def leave_out_pictures(cards: Sequence[Card]) -> None:
    """Keep the pictures of the `MOST_PICTURES` most suspicious images alone."""
    if len(cards) > MOST_PICTURES:
        kept = heapq.nlargest(MOST_PICTURES, cards, key=lambda card: card.suspicion)
        others = {id(card) for card in cards} - {id(card) for card in kept}
        for card in cards:
            if id(card) in others:
                card.leave_out_pictures()


@dataclass(frozen=True)
class PictureLimits:
    """How large the pictures of each image may be, so that those of all keep within `PICTURE_BYTES`.

    Attributes:
        images: how many there are.
        methods: with a map each.
    """

    images: int
    methods: int = 1

    def photo(self, image: NDArray[np.uint8]) -> bytes | None:
        """An (H, W, 3) uint8 image as WebP."""
        return encode_within(Image.fromarray(image), PHOTO_SIDE, int(self._share * PHOTO_SHARE))

    def map_picture(self, colours: NDArray[np.uint8]) -> bytes | None:
        """A coloured map, (h, w, 4) uint8, as WebP."""
        return encode_within(Image.fromarray(colours), MAP_SIDE, int(self._share * (1 - PHOTO_SHARE) / self.methods))

    @property
    def _share(self) -> float:
        return PICTURE_BYTES / max(1, min(self.images, MOST_PICTURES))


class CardMaker:
    """Predicts images as a `Predictor` does, and keeps a card of each.

    Args:
        predictor: what predicts.
        limits: of the pictures.

    Attributes:
        cards: of the images so far, in order, named by their files.
        failed: images that could not be judged.
    """

    def __init__(self, predictor: Predictor, limits: PictureLimits) -> None:
        self.predictor, self.limits = predictor, limits
        self.cards: list[Card] = []
        self.failed: list[FailedImage] = []
        self.loose: Predictor | None = None
        threshold = predictor.threshold
        if isinstance(threshold, CalibratedThreshold) and threshold.alpha < LOOSEST_ALPHA:
            self.loose = copy.copy(predictor)
            self.loose.threshold = threshold.at(LOOSEST_ALPHA)

    def stream(
        self, sources: Iterable[ImageLike], batch_size: int = 8, on_tiles: OnTiles | None = None
    ) -> Generator[Prediction, None, None]:
        """Predict images one after another, see `Predictor.stream`; `cards` grows as predictions are taken."""
        for found in self.predictor.run(sources, self.judge, batch_size, on_tiles):
            yield self._keep(found)

    def stream_all(
        self, sources: Iterable[ImageLike], batch_size: int = 8, on_tiles: OnTiles | None = None
    ) -> Generator[Prediction | FailedImage, None, None]:
        """`stream` that goes on after an image that cannot be used, see `Predictor.stream_all`."""
        for found in self.predictor.run(sources, self.judge, batch_size, on_tiles, recover=FailedImage.of):
            if isinstance(found, FailedImage):
                self.failed.append(found)
                yield found
            else:
                yield self._keep(found)

    def _keep(self, found: tuple[Prediction, Card]) -> Prediction:
        prediction, card = found
        self.cards.append(card)
        if len(self.cards) % MOST_PICTURES == 0:  # pictures of endless streams do not pile up
            leave_out_pictures(self.cards)
        return prediction

    def judge(self, source: ImageLike, image: NDArray[np.uint8], evidence: Evidence) -> tuple[Prediction, Card]:
        """The prediction of an image and its card."""
        found = self.predictor.judge(source, image, evidence)
        levels = [_level(found)]
        if self.loose is not None:
            levels.append(_level(self.loose.judge(source, image, evidence)))
        finding = Finding(
            found.score,
            found.p_value,
            found.is_anomalous,
            tuple(levels),
            self.limits.map_picture(coloured_map(found)),
        )
        name = str(source) if isinstance(source, str | os.PathLike) else "image"
        return found, Card(name, (image.shape[0], image.shape[1]), [finding], photo=self.limits.photo(found.shown))


def _level(prediction: Prediction) -> tuple[float | None, tuple[OutlinedRegion, ...]]:
    """The regions of a prediction, at the alpha of its threshold."""
    size = (prediction.mask.shape[0], prediction.mask.shape[1])
    regions = [
        OutlinedRegion(region.p_value, region.area, region.score, svg_path(region.contours, size))
        for region in prediction.regions[:MOST_REGIONS]
    ]
    return prediction.threshold.alpha, tuple(regions)
