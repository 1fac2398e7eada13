"""From images to predictions, whatever runs the network. Needs no torch."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import segmentation, tiling
from .calibration_log import UNCALIBRATED, log_added, log_calibration, warn_of_few_images, warn_of_learnt_images
from .conformal import AddedImage, check_alpha, check_look_alpha
from .files import FileStamp, PathLike
from .grey_levels import check_bit_depth, check_gain
from .images import (
    ImageLike,
    as_source,
    batches,
    image_sha256,
    image_size,
    is_one_image,
    list_good_sources,
    list_images,
    read_image,
)
from .model_header import PredictorEntry
from .monitor import Monitor
from .outline import drop_small_regions
from .prediction import DetectedRegion, FailedImage, ModelOrigin, Prediction
from .recipe import check_whole_number
from .roi import RegionOfInterest, Roi, as_roi, effective_roi
from .schema import parse
from .scoring import Blend, Evidence, anomaly_map_from_energies, largest_map_values
from .sources import as_source_or_itself, name_of
from .stream import Steps, ordered_stream
from .threshold import CalibratedThreshold, DecisionRule, PaperThreshold, Size, threshold_from_dict

__all__ = ["Network", "Predictor"]

log = logging.getLogger("uflow")

MAX_HELD_BYTES = 1 << 30  # of images and maps that are on their way, see `Predictor.stream`
MAX_BATCH_SIZE = 1 << 30
BYTES_A_PIXEL = 24  # of an image and its maps, while they are made

Pixels = NDArray[np.uint8]  # (H, W, 3)
Result = TypeVar("Result")
OnTiles = Callable[[int, int], None]


class Network(Protocol):
    """What turns images into evidence: `detector.TorchNetwork`, `deploy.exported.ExportedNetwork`.

    Attributes:
        image_size: (H, W) of the images it takes.
        strides: pixels a cell of each scale, finest first.
        latent_channels: of each scale's latents: the degrees of freedom of a cell's energy under H0.
    """

    image_size: tuple[int, int]
    strides: tuple[int, ...]
    latent_channels: tuple[int, ...]

    def evidence(self, images: NDArray[np.uint8]) -> Evidence:
        """Evidence of (B, H, W, 3) images of `image_size`."""

    def phases(self) -> list[tuple[str, Callable[[Any], Any]]]:
        """The network in parts that can be timed, each fed with what the one before gives; together `evidence`."""


class Predictor:
    """A network, the threshold that judges what it says, and how images pass through it.

    Attributes:
        network: turns images into evidence.
        threshold: the decision rule, as `calibrate` sets it.
        blend: the anomaly map of all evidence; None is the paper's, of the latents alone.
        tile: whether images are cut into tiles of the network's size, not shrunk to it.
        bit_depth: of the 16-bit images that it takes: by how many bits these are scaled to 8, see `bit_depth`.
        gain: how many times brighter the images that it takes are than those that were learnt from.
        roi: where images are judged; None is everywhere.
        min_area: pixels of the image: a region that is smaller is not detected. It is no part of a model's file.
        selected_on_test: whether the epoch was chosen on the test set: then no figure measured on it is fair.
        origin: the file that the model is in, as predictions tell; None where it is in none.
    """

    def __init__(  # noqa: PLR0913 (keywords with defaults)
        self,
        network: Network,
        threshold: DecisionRule | None = None,
        blend: Blend | None = None,
        *,
        tile: bool = False,
        selected_on_test: bool = False,
        bit_depth: int = 16,
        gain: float = 1,
        roi: RegionOfInterest | None = None,
    ) -> None:
        self.network = network
        self.threshold: DecisionRule = threshold or PaperThreshold()
        self.blend = blend
        self.tile = tile
        self.selected_on_test = selected_on_test
        check_bit_depth(bit_depth)
        check_gain(gain)
        self.bit_depth, self.gain = bit_depth, gain
        self.roi = effective_roi(roi)
        self.min_area = 0
        self.origin: ModelOrigin | None = None

    def to_dict(self) -> dict[str, Any]:
        """All but the network, ready for JSON; the keyword arguments of `Predictor.from_dict`."""
        content = {
            "threshold": self.threshold.to_dict(),
            "blend": None if self.blend is None else self.blend.to_dict(),
            "tile": self.tile,
            "selected_on_test": self.selected_on_test,
            "bit_depth": self.bit_depth,
        } | ({} if self.gain == 1 else {"gain": self.gain})
        return content if self.roi is None else content | {"roi": self.roi.to_dict()}

    @classmethod
    def from_dict(cls, network: Network, content: Mapping[str, Any]) -> Predictor:
        """Read what `to_dict` made.

        Raises:
            ValueError: unknown or missing entries, or values out of range.
        """
        entries = parse(PredictorEntry, content, "the predictor is damaged: it")
        options: dict[str, Any] = dict(entries)
        blend = None if options["blend"] is None else Blend.from_dict(options["blend"])
        return cls(network, **{**options, "threshold": threshold_from_dict(options["threshold"]), "blend": blend})

    # Predicting -------------------------------------------------------------------------------------------------------

    def predict(
        self, source: ImageLike | Iterable[ImageLike], batch_size: int = 8, *, bgr: bool = False
    ) -> Prediction | list[Prediction] | Generator[Prediction, None, None]:
        """Anomaly map, mask and regions.

        Args:
            source: one image gives one Prediction; a list of images gives a list; a folder, a file name pattern, or any
                other iterable gives an iterator, see `stream`. An image is a file's path, its bytes, an open file, a
                PIL image, an (H, W, 3) uint8 array, or a (3, H, W) uint8 tensor; see `images.read_image`.
            batch_size: images, or tiles, that pass through the network together.
            bgr: whether arrays and tensors hold blue first, as OpenCV's do; without it they hold red first.

        Raises:
            ValueError, FileNotFoundError: an image cannot be used; one line says which and why.
        """
        check_whole_number("batch_size", batch_size, least=1, most=MAX_BATCH_SIZE)
        if is_one_image(source):
            one = as_source(source, bgr)  # type: ignore[arg-type]
            image = self.read(one)
            return self.judge(one, image, self.evidence([image], batch_size)[0])
        if isinstance(source, list | tuple):
            return list(self.stream(source, batch_size, bgr=bgr))
        return self.stream(source, batch_size, bgr=bgr)  # type: ignore[arg-type]

    def stream(
        self,
        source: PathLike | Iterable[ImageLike],
        batch_size: int = 8,
        on_tiles: OnTiles | None = None,
        *,
        bgr: bool = False,
    ) -> Generator[Prediction, None, None]:
        """Predict images one after another, while the next are read and the last are segmented.

        Reading, network and segmentation work at the same time, in threads; the predictions come in the order of the
        images. No more than ``2 * batch_size + 1`` images (tiled: 3) are held, and of large ones no more than take a
        gigabyte with their maps: `source` waits until predictions are taken. What is ready passes through the network
        together, at most `batch_size` images: a camera is not kept waiting for a batch to fill. Maps do not depend on
        the batch but for float32 rounding.

        Args:
            source: a folder, a file name pattern, or any iterable of images (see `predict`), endless ones too. It is
                iterated in another thread.
            batch_size: images, or tiles, that pass through the network together.
            on_tiles: called, from another thread, with how many tiles of the images at work are done and how many
                there are; for a progress bar over large images.
            bgr: see `predict`.

        Raises:
            What reading an image or `source` raises, after the predictions of the images before it.
        """
        images = _images_of(source)
        return self.run((as_source(image, bgr) for image in images), self.judge, batch_size, on_tiles)

    def stream_all(
        self, source: PathLike | Iterable[ImageLike], batch_size: int = 8, on_tiles: OnTiles | None = None
    ) -> Generator[Prediction | FailedImage, None, None]:
        """`stream` that goes on: an image that cannot be used gives a `FailedImage` in its place."""
        images = _images_of(source)
        return self.run(map(as_source_or_itself, images), self.judge, batch_size, on_tiles, recover=FailedImage.of)

    def run(
        self,
        sources: Iterable[ImageLike],
        finish: Callable[[ImageLike, Pixels, Evidence], Result],
        batch_size: int = 8,
        on_tiles: OnTiles | None = None,
        recover: Callable[[ImageLike, Exception], Any] | None = None,
    ) -> Generator[Result, None, None]:
        """``finish(source, image, evidence)`` of each image, in order, as `stream` does it with `judge`.

        What `recover` makes of an image and an error stands in its place; without it the error is raised.
        """
        check_whole_number("batch_size", batch_size, least=1, most=MAX_BATCH_SIZE)
        steps = Steps(
            self.read, lambda images: self.evidence(images, batch_size, on_tiles), finish, _bytes_held, recover
        )
        return ordered_stream(
            sources,
            steps,
            batch_size=1 if self.tile else batch_size,
            capacity=3 if self.tile else 2 * batch_size + 1,
            max_weight=MAX_HELD_BYTES,
        )

    def read(self, image: ImageLike) -> Pixels:
        """An image as 8-bit RGB, 16 bits scaled as those of the images learnt from."""
        pixels = read_image(image, self.bit_depth, self.gain)
        if self.roi is not None:
            self.roi.check_size((pixels.shape[0], pixels.shape[1]), name_of(image))
        return pixels

    def seen(self, image: Pixels) -> Pixels:
        """What the network is shown of an image: nothing of what lies outside the region of interest."""
        return image if self.roi is None else self.roi.paint(image)

    def evidence(self, images: Sequence[Pixels], batch_size: int, on_tiles: OnTiles | None = None) -> list[Evidence]:
        """Evidence of each of some (H, W, 3) images of any size; `batch_size` tiles pass through together."""
        tilings = [self.tiling(image) for image in images]
        total = sum(map(len, tilings))
        tiles = chain.from_iterable(t.cut(self.seen(image)) for t, image in zip(tilings, images, strict=True))
        found, done = [], 0
        for batch in batches(tiles, batch_size):
            found.append(self.network.evidence(np.stack(batch)))
            done += len(batch)
            if on_tiles is not None:
                on_tiles(done, total)
        return tiling.evidence_of_tiles(tilings, found, self.roi)

    def tiling(self, image: Pixels) -> tiling.Tiling:
        """How an image passes through the network: whole, or in tiles."""
        size, stride = self.network.image_size, self.network.strides[-1]
        if self.tile:
            return tiling.tiled((image.shape[0], image.shape[1]), size, stride)
        return tiling.whole(size, stride)

    def judge(self, source: ImageLike, image: Pixels, evidence: Evidence) -> Prediction:
        """What the evidence of an image says of it."""
        size = (image.shape[0], image.shape[1])
        anomaly_map, log_nfa = self.anomaly_map(evidence, size), self.log_nfa(evidence, size, image)
        if not (np.isfinite(anomaly_map).all() and np.isfinite(log_nfa).all()):  # NaN would count as normal
            raise ValueError(
                f"{name_of(source)} cannot be judged: its maps hold values that are not finite; is the model damaged?"
            )
        mask = log_nfa < 0
        if self.min_area > 1 and mask.any():
            drop_small_regions(mask, log_nfa, self.min_area)
        path = Path(source) if isinstance(source, str | os.PathLike) else None
        return Prediction(
            score=self.score(evidence, anomaly_map),
            is_anomalous=bool(mask.any()),
            anomaly_map=anomaly_map,
            log_nfa=log_nfa,
            mask=mask,
            regions=[
                DetectedRegion.from_mask(region, mask, self.threshold.p_value(region.log_nfa))
                for region in segmentation.regions(mask, log_nfa, anomaly_map)
            ],
            image=image,
            path=path,
            p_value=self.threshold.p_value(float(log_nfa.min())),
            threshold=self.threshold,
            model=self.origin,
            content=source if isinstance(source, bytes) else None if path is None else FileStamp.now(path),
            roi=evidence.roi,
        )

    def score(self, evidence: Evidence, anomaly_map: NDArray[np.float32]) -> float:
        """How anomalous one image is, in [0, 1]: see `scoring.Blend.scores`; of the paper's map, its largest value."""
        if self.blend is None:
            return float(anomaly_map.max())
        height, width = self.network.image_size
        (score,) = self.blend.scores(evidence, height * width // self.network.strides[0] ** 2)
        return float(score)

    def anomaly_map(self, evidence: Evidence, size: Size) -> NDArray[np.float32]:
        """The anomaly map of one image: (height, width) float32 in [0, 1]; 0 outside the region of interest."""
        values: NDArray[np.float32]
        if self.blend is None:
            (values,) = anomaly_map_from_energies(evidence.energies, self.network.latent_channels, size)
        else:
            (values,) = self.blend.anomaly_map(evidence, size)
        if evidence.roi is not None:
            values[~evidence.roi.pixels((values.shape[0], values.shape[1]))] = 0
        return values

    def log_nfa(self, evidence: Evidence, size: Size, image: Pixels | None = None) -> NDArray[np.float32]:
        """log10 NFA of one image: (height, width) float32, detected where below 0; outlines follow its colours."""
        values: NDArray[np.float32]
        images = None if image is None else [image]
        (values,) = self.threshold.log_nfa(evidence, self.network.latent_channels, size, images)
        return values

    # Calibrating ------------------------------------------------------------------------------------------------------

    def at(self, alpha: float | None = None, look_alpha: float | None = None) -> Predictor:
        """The same predictor for another alpha, from what calibration has stored: it needs no images.

        Args:
            alpha: probability that a good image is flagged; None keeps it.
            look_alpha: probability that a good image is not called good, see `Prediction.verdict`; None keeps the
                limit that is, where it is larger than `alpha`.

        Returns:
            A new predictor on the same network; this one stays as it is.

        Raises:
            ValueError: a threshold that was not calibrated, or numbers out of their range.
        """
        found = copy.copy(self)
        found.threshold = self.threshold.at(alpha, look_alpha)
        warn_of_few_images(found.threshold)
        return found

    def monitor(self, false_alarm: float = 0.01, defective: float = 0.1, seed: int = 0) -> Monitor:
        """What watches the p-values of this predictor for a change of the line, see `monitor.Monitor`.

        ``alarm = watch.add(result.p_value)`` after each part.

        Raises:
            ValueError: a threshold that was not calibrated, or numbers out of their range.
        """
        count, alpha = self.threshold.calibration_images, self.threshold.alpha
        if count is None or alpha is None:
            raise ValueError(
                "there are no p-values that are uniform on good parts, for want of a calibration, or since flagged "
                "images were added to it: calibrate on a random sample of good images"
            )
        return Monitor(count, alpha, false_alarm=false_alarm, defective=defective, seed=seed)

    def add_good(self, images: str | Path | Sequence[ImageLike], batch_size: int = 16) -> None:
        """Good images that were flagged join the calibration, without training.

        The limit can only go down, so the promise of alpha holds whatever is added; p-values become too large rather
        than too small. docs/guide/threshold.md says what that means, and when to calibrate anew instead. The memory of
        an exported network is fixed: there the calibration alone learns; `Detector.add_good` extends both.

        Args:
            images: as for `calibrate`.
            batch_size: images at once.

        Raises:
            ValueError: no images, or a threshold that was not calibrated.
        """
        sources = list_good_sources(images)
        threshold = self._calibrated_threshold(sources)
        shift = np.float32(threshold.shift)
        lowest = self.run(sources, lambda _, image, e: self.log_nfa(e, image.shape[:2]).min() - shift, batch_size)
        added = [
            AddedImage(_added_name(source, number), image_sha256(source), float(value))
            for number, (source, value) in enumerate(zip(sources, lowest, strict=True), 1)
        ]
        self.threshold, self.origin = threshold.with_added(added), None
        log_added(self.threshold, added)

    def _calibrated_threshold(self, sources: Sequence[ImageLike]) -> CalibratedThreshold:
        if not sources:
            raise ValueError("add_good needs at least one good image, got none")
        if not isinstance(self.threshold, CalibratedThreshold):
            raise ValueError("the paper's test learns nothing from good images that it flags: calibrate on good images")
        return self.threshold

    def calibrate(
        self,
        images: str | Path | Sequence[ImageLike],
        alpha: float = 0.05,
        batch_size: int = 16,
        look_alpha: float | None = None,
        *,
        bgr: bool = False,
        roi: Roi = None,
    ) -> None:
        """Learn the threshold from good images, without training: for another camera, or a model made elsewhere.

        The images must not have been trained on, and have the size of those to be predicted. See
        `threshold.CalibratedThreshold` for what is computed.

        Args:
            images: good images, as for `Detector.fit`; an empty list goes back to the paper's test.
            alpha: wished probability that a good image is flagged.
            batch_size: images at once.
            look_alpha: wished probability that a good image is not called good; None is one limit only.
            bgr: see `predict`.
            roi: another region of interest from now on, as for `Detector.fit`; None keeps the one that is.
        """
        check_alpha(alpha)
        check_look_alpha(alpha, look_alpha)
        sources = list_good_sources(images, bgr)
        new = self if roi is None else copy.copy(self)
        if roi is not None:
            new.roi = effective_roi(as_roi(roi))
        found = list(new.run(sources, lambda _, image, evidence: evidence, batch_size))
        if self.roi != new.roi:
            log.warning(
                "the network was not trained on this region of interest: one that is finds more, and outlines it"
            )
        self.roi = new.roi
        if not found:
            self.threshold, self.origin = PaperThreshold(), None  # the model's file holds another threshold
            log.warning("no calibration images: %s", UNCALIBRATED)
            return
        largest = largest_map_values(found, self.network.latent_channels, self.blend)
        earlier = self.threshold
        self.threshold = CalibratedThreshold.from_good_images(found, alpha, look_alpha, largest)
        self.origin = None
        log_calibration(self.threshold, sources)
        warn_of_learnt_images(earlier, found, self.network.latent_channels)


def _bytes_held(source: ImageLike) -> int:
    """Bytes that an image and its maps take; none where it cannot be read, which reading it will say."""
    try:
        height, width = image_size(source)
    except (OSError, ValueError, TypeError):
        return 0
    return height * width * BYTES_A_PIXEL


def _images_of(source: PathLike | Iterable[ImageLike]) -> Iterable[ImageLike]:
    """The files of a folder or a pattern, and what is in anything else; TypeError where nothing can be."""
    if isinstance(source, str | os.PathLike):
        return list_images(source)
    if not isinstance(source, Iterable):
        raise TypeError(f"images must be paths, PIL images or arrays, or several of these; got {source!r:.80}")
    return source


def _added_name(source: ImageLike, number: int) -> str:
    return Path(source).name if isinstance(source, str | os.PathLike) else f"number {number}"
