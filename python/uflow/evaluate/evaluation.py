"""Figures of a method on a test set: what it says of each image against the truth. Needs no torch."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..images import ImageLike, image_size
from ..predictor import Predictor
from ..progress import track
from ..roi import RegionOfInterest
from ..scoring import Evidence
from . import metrics
from .histogram import BINS, next_above
from .protocols import Protocol, as_protocol, published_truth
from .samples import Dataset, Sample

if TYPE_CHECKING:  # an exported model needs neither
    from rich.progress import Progress

    from ..detector import Detector

__all__ = ["Evaluation", "ImageOutput", "evaluate", "evaluate_predictor", "outputs_of"]

log = logging.getLogger("uflow")


@dataclass(frozen=True)
class ImageOutput:
    """What a method says of one test image.

    Attributes:
        anomaly_map: (H, W) float32 at the protocol's size, any real range.
        score: how anomalous the image is.
        log_nfa: (H, W) float32, log10 of the Number of False Alarms, below 0 means detected; None for a method that
            has no threshold of its own.
        flagged: whether a region is detected at the image's own size; None for a method without a threshold.
    """

    anomaly_map: np.ndarray
    score: float
    log_nfa: np.ndarray | None = None
    flagged: bool | None = None


@dataclass(frozen=True)
class Evaluation:
    """Figures of a method on a test set; see `metrics` for each one's definition.

    A figure that cannot be computed is None: no defective pixel, images of one kind only, no automatic mask.

    Attributes:
        miou: of the automatic mask, ``log_nfa < 0``.
        miou_best: at the one threshold that maximises it on this very test set: of log_nfa where there is one
            (`best_log_nfa`), else of the anomaly map. `oracle` says which thresholds were tried, "any" or a range of
            log10 NFA.
        flagged: per kind of image ("good" and each defect), how many images there are and the share that a region is
            detected in, at the image's own size; empty for a method without a threshold.
        miou_fair: mIoU of ``anomaly_map >= fair_threshold``, a threshold that leaves one false pixel an image on the
            normal training images: the paper's choice for methods that have none. `fair_rule` says how it was read off,
            see `Protocol.fair`.
        iou_defective: mean IoU of the automatic mask over the images with defective pixels alone. A mask that is empty
            everywhere counts 1 for each good image in `miou`, and 0 here.
        pixel_f1: F1 of the automatic mask over all pixels of the test set.
        protocol: "paper" or "native", see `Protocol`.
        images: per test image, in their order: path, defect, score, log_nfa (the lowest, of the protocol's map),
            flagged, iou (of the automatic mask).
        roc, pro: points (false-positive rate, true-positive rate or per-region overlap) of the pixels' curves.
    """

    pixel_auroc: float | None
    aupro: float | None
    image_auroc: float | None
    miou: float | None
    miou_best: float | None
    best_log_nfa: float | None
    flagged: dict[str, dict[str, float]]
    miou_fair: float | None = None
    iou_defective: float | None = None
    pixel_f1: float | None = None
    protocol: str = "paper"
    oracle: str = "any"
    fair_rule: str = "sentence"
    fair_threshold: float | None = None
    images: list[dict[str, Any]] = field(default_factory=list)
    roc: list[tuple[float, float]] = field(default_factory=list)
    pro: list[tuple[float, float]] = field(default_factory=list)

    @property
    def good_flagged(self) -> float | None:
        """Share of the good images that a region is detected in; None where nothing says so."""
        return _share([counts for kind, counts in self.flagged.items() if kind == "good"])

    @property
    def defective_flagged(self) -> float | None:
        """Share of the defective images that a region is detected in; None where nothing says so."""
        return _share([counts for kind, counts in self.flagged.items() if kind != "good"])

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        curves = {"roc": [list(point) for point in self.roc], "pro": [list(point) for point in self.pro]}
        return {**asdict(self), **curves}


def evaluate(
    samples: Sequence[Sample],
    outputs: Iterable[ImageOutput],
    protocol: str | Protocol = "paper",
    normal_maps: Iterable[np.ndarray] | None = None,
    input_size: tuple[int, int] | None = None,
    roi: RegionOfInterest | None = None,
) -> Evaluation:
    """Compare what a method says of the images of a test set with the truth.

    One pass, one image in memory at a time (see `metrics.PixelMetrics` for what that costs in precision). An image
    whose defective pixels are not known counts for the image's AUROC and the flags only.

    Args:
        samples: the test images.
        outputs: what the method says of each of them, in the same order.
        protocol: "paper": maps of 256 x 256, the truth resized to it as the published one is
            (`protocols.published_truth`); AUPRO to a false-positive rate of 0.3. "native": maps and truth at each
            image's own size. Or a `Protocol`, which says more.
        normal_maps: anomaly maps of the normal training images at the protocol's size, for the fair threshold; read
            before `outputs`.
        input_size: (height, width) of the network's input, by which the published truth goes on its way; None where
            there is none, as with tiles.
        roi: pixels outside of it do not count, see also `Dataset.within`; None counts all.

    Raises:
        ValueError: another protocol, a map of another size, NaN, or not as many outputs as samples.
        What `Sample.truth` raises.
    """
    rules = as_protocol(protocol)
    fair_threshold = None if normal_maps is None else _fair_threshold(normal_maps, rules)
    comparison = _Comparison(rules, input_size, fair_threshold, roi)
    for sample, output in _pairs(samples, outputs):
        comparison.add(sample, output)
    return comparison.evaluation()


def evaluate_predictor(
    predictor: Predictor | Detector,
    dataset: Dataset,
    *,
    protocol: str | Protocol = "paper",
    fair: bool = False,
    batch_size: int = 16,
    progress: bool | Progress = False,
) -> Evaluation:
    """Measure a detector, or an exported one, on a test set with truth.

    With a region of interest the pixels outside do not count, and images are left out whose defects all lie there: one
    line says how many.

    Args:
        predictor: what `uflow.load` or `Detector.fit` gave.
        dataset: one category, as `datasets.find_categories` found it.
        protocol: see `evaluate`.
        fair: also run over the training images, for mIoU at the "fair" threshold of the anomaly map.
        batch_size: images that pass through the network together.
        progress: show a progress bar; a `rich.progress.Progress` shows it among its own.

    Raises:
        ValueError, FileNotFoundError: an image or a mask cannot be used.
    """
    inner = predictor if isinstance(predictor, Predictor) else predictor.predictor
    rules, all_images = as_protocol(protocol), len(dataset.test)
    dataset = dataset.within(inner.roi)
    if left_out := all_images - len(dataset.test):
        log.warning(
            "%s: %d of %d test images are left out: their defects lie wholly outside the region of interest",
            *(dataset.name, left_out, all_images),
        )
    compared = _ComparedSize(inner, rules.map_size)
    input_size = None if inner.tile else inner.network.image_size
    with ExitStack() as streams:  # an error leaves no thread behind
        outputs = inner.run([sample.path for sample in dataset.test], compared.output, batch_size)
        streams.callback(outputs.close)
        outputs_shown = track(outputs, "Evaluating", len(dataset.test), progress)
        if not fair:
            return evaluate(dataset.test, outputs_shown, rules, input_size=input_size, roi=inner.roi)
        normal_maps = inner.run(dataset.train, compared.anomaly_map, batch_size)
        streams.callback(normal_maps.close)
        normal_maps_shown = track(normal_maps, "Normal images", len(dataset.train), progress)
        return evaluate(dataset.test, outputs_shown, rules, normal_maps_shown, input_size, inner.roi)


def outputs_of(
    predictor: Predictor | Detector, dataset: Dataset, images: Sequence[int], protocol: str | Protocol = "paper"
) -> dict[int, ImageOutput]:
    """What a predictor says of some of the test images, by their numbers, at the protocol's size."""
    inner = predictor if isinstance(predictor, Predictor) else predictor.predictor
    compared = _ComparedSize(inner, as_protocol(protocol).map_size)
    return dict(zip(images, inner.run([dataset.test[i].path for i in images], compared.output), strict=True))


@dataclass(frozen=True)
class _ComparedSize:
    """What a predictor says at the size at which it is compared: (height, width), or None for each image's own."""

    predictor: Predictor
    fixed: tuple[int, int] | None

    def anomaly_map(self, _: ImageLike, image: NDArray[np.uint8], evidence: Evidence) -> NDArray[np.float32]:
        return self.predictor.anomaly_map(evidence, self._size(image))

    def output(self, source: ImageLike, image: NDArray[np.uint8], evidence: Evidence) -> ImageOutput:
        anomaly_map = self.anomaly_map(source, image, evidence)
        own_size, size = (image.shape[0], image.shape[1]), self._size(image)
        log_nfa = self.predictor.log_nfa(evidence, size, image)
        own = log_nfa if size == own_size else self.predictor.log_nfa(evidence, own_size)  # no outline decides
        return ImageOutput(anomaly_map, self.predictor.score(evidence, anomaly_map), log_nfa, bool(own.min() < 0))

    def _size(self, image: NDArray[np.uint8]) -> tuple[int, int]:
        return self.fixed or (image.shape[0], image.shape[1])


class _Comparison:
    """The sums over a test set, and the figures they give."""

    def __init__(
        self,
        protocol: Protocol,
        input_size: tuple[int, int] | None,
        fair_threshold: float | None,
        roi: RegionOfInterest | None,
    ) -> None:
        self.protocol, self.input_size, self.fair_threshold, self.roi = protocol, input_size, fair_threshold, roi
        self.pixels, self.best = metrics.PixelMetrics(), metrics.BestIoU()
        self.masks, self.fair_masks = metrics.MaskMetrics(), metrics.MaskMetrics()
        self.has_masks = False  # of a defective image
        self.images: list[dict[str, Any]] = []

    def add(self, sample: Sample, output: ImageOutput) -> None:
        """Compare one image with its truth."""
        own_size = image_size(sample.path)
        fixed_size = self.protocol.map_size
        self._check(sample, output, fixed_size or own_size)
        truth = sample.truth(own_size)
        if truth is not None and fixed_size:
            truth = published_truth(truth, fixed_size, self.input_size)
        self.images.append(
            {
                "path": str(sample.path),
                "defect": sample.defect,
                "score": float(output.score),
                "log_nfa": None if output.log_nfa is None else float(output.log_nfa.min()),
                "flagged": output.flagged,
                "iou": None if truth is None else self._add_truth(output, truth),
            }
        )

    def _add_truth(self, output: ImageOutput, truth: NDArray[np.bool_]) -> float | None:
        """Compare the pixels; the IoU of the automatic mask, if there is one."""
        anomaly_map, log_nfa = output.anomaly_map, output.log_nfa
        self.has_masks |= bool(truth.any())
        inside = None if self.roi is None else self.roi.pixels((truth.shape[0], truth.shape[1]))
        self.pixels.update(anomaly_map, truth, inside)
        if inside is not None:  # the figures below ask for no neighbours
            truth, anomaly_map = truth[inside][None], anomaly_map[inside][None]
            log_nfa = None if log_nfa is None else log_nfa[inside][None]
        if self.fair_threshold is not None:
            self.fair_masks.update(anomaly_map >= self.fair_threshold, truth)
        if log_nfa is None:
            self.best.update(anomaly_map, truth)
            return None
        self.best.update(-log_nfa, truth)
        return self.masks.update(log_nfa < 0, truth)

    def _check(self, sample: Sample, output: ImageOutput, size: tuple[int, int]) -> None:
        """Here, where the image's name is known."""
        for name, values in (("anomaly map", output.anomaly_map), ("log_nfa", output.log_nfa)):
            if values is not None and values.shape != size:
                raise ValueError(
                    f"the {name} of {sample.path} is {values.shape}: protocol {self.protocol.name!r} wants {size}"
                )
            if values is not None and np.isnan(values.max()):
                raise ValueError(f"the {name} of {sample.path} holds NaN")
        if np.isnan(output.score):
            raise ValueError(f"the score of {sample.path} is NaN")
        if self.images and (output.log_nfa is None) != (self.images[0]["log_nfa"] is None):
            raise ValueError(f"there is log_nfa of some images, not of all: {sample.path} differs from those before")

    def evaluation(self) -> Evaluation:
        """The figures of all images so far."""
        has_curves = bool(self.pixels.normal and self.pixels.defective)
        # Where only good images can be compared, an empty mask is right everywhere, and that would be the figure.
        has_masks = self.has_masks or all(image["defect"] == "good" for image in self.images)
        miou_best, best_threshold = self._best() if has_masks else (None, None)
        return Evaluation(
            pixel_auroc=self.pixels.auroc() if has_curves else None,
            aupro=self.pixels.aupro() if has_curves else None,
            image_auroc=self._image_auroc(),
            miou=self.masks.miou() if has_masks else None,
            miou_best=miou_best,
            best_log_nfa=-best_threshold if self.masks.ious and best_threshold is not None else None,
            flagged=_flagged(self.images),
            miou_fair=self.fair_masks.miou() if has_masks else None,
            iou_defective=self.masks.iou_defective(),
            pixel_f1=self.masks.pixel_f1(),
            protocol=self.protocol.name,
            oracle=self.protocol.oracle_name,
            fair_rule=self.protocol.fair,
            fair_threshold=self.fair_threshold,
            images=self.images,
            roc=self.pixels.roc() if has_curves else [],
            pro=self.pixels.pro() if has_curves else [],
        )

    def _best(self) -> tuple[float | None, float | None]:
        """The best mIoU, and the threshold of -log NFA or of the map that reaches it."""
        if not self.best.images:
            return None, None
        tried = self.protocol.thresholds if self.masks.ious else None
        # As everywhere, what is below the threshold is detected.
        return self.best.best(None if tried is None else [next_above(-threshold) for threshold in tried])

    def _image_auroc(self) -> float | None:
        labels = [image["defect"] != "good" for image in self.images]
        scores = [image["score"] for image in self.images]
        return metrics.auroc(scores, labels) if len(set(labels)) == 2 else None


def _pairs(samples: Sequence[Sample], outputs: Iterable[ImageOutput]) -> Iterator[tuple[Sample, ImageOutput]]:
    """Each sample with its output, which nothing holds on to; ValueError where there are not as many."""
    iterator = iter(outputs)
    for count, sample in enumerate(samples):
        output = next(iterator, None)
        if output is None:
            raise ValueError(f"{len(samples)} samples and {count} outputs")
        yield sample, output
        del output
    if next(iterator, None) is not None:
        raise ValueError(f"{len(samples)} samples and more outputs")


def _fair_threshold(normal_maps: Iterable[NDArray[Any]], protocol: Protocol) -> float | None:
    """The threshold that leaves a false pixel an image on average, read off as the protocol says."""
    size, corners = protocol.map_size, protocol.fair == "corners"
    pixels, count = metrics.PixelMetrics(metrics.ALL_SCORES if corners else BINS), 0
    for normal_map in normal_maps:
        if size and normal_map.shape != size:
            raise ValueError(f"normal map {count} is {normal_map.shape}: protocol 'paper' wants {size}")
        pixels.update(normal_map, np.zeros(normal_map.shape, bool))
        count += 1
    if not count:
        return None
    return pixels.corner_threshold(count / pixels.normal) if corners else pixels.threshold(count)


def _flagged(images: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Per kind of image, good ones first: how many, and the share flagged."""
    kinds: dict[str, list[bool]] = {}
    for image in images:
        if image["flagged"] is not None:
            kinds.setdefault(image["defect"], []).append(image["flagged"])
    ordered = sorted(kinds.items(), key=lambda item: (item[0] != "good", item[0]))
    return {kind: {"images": len(flags), "share": float(np.mean(flags))} for kind, flags in ordered}


def _share(counts: Sequence[dict[str, float]]) -> float | None:
    images = sum(kind["images"] for kind in counts)
    return sum(kind["images"] * kind["share"] for kind in counts) / images if images else None
