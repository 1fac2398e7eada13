"""From images to predictions, whatever runs the network: what `Detector` and exported models share. Needs no torch."""

from __future__ import annotations

import logging
import os
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import scoring, segmentation, tiling
from . import threshold as calibration
from .evaluate import datasets, evaluation
from .evaluate.evaluation import Evaluation as Evaluation
from .evaluate.evaluation import Judged
from .images import batches, list_images, read_image
from .segmentation import Background, Region

if TYPE_CHECKING:  # works without it
    from rich.progress import Progress

log = logging.getLogger("uflow")

ImageLike = str | Path | Image.Image | np.ndarray
Energies = list[NDArray[np.float32]]  # of one image: per scale (1, h, w), finest first; then perhaps `Neighbours`'
T = TypeVar("T")
P = TypeVar("P", bound="Predictor")

UNCALIBRATED = "the paper's test, which keeps its promise for independent standard normal latents only"


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
    """

    score: float
    is_anomalous: bool
    anomaly_map: np.ndarray
    log_nfa: np.ndarray
    mask: np.ndarray
    regions: list[Region]
    image: np.ndarray
    path: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """The numbers without the maps, ready for JSON."""
        return {
            "image": None if self.path is None else str(self.path),
            "score": self.score,
            "is_anomalous": self.is_anomalous,
            "log_nfa": float(self.log_nfa.min()),
            "regions": [asdict(region) for region in self.regions],
        }


class Predictor(ABC):
    """A network from images to energies, and the test that judges these.

    The test, as `calibrate` sets it: `background`, the normal energies of each scale; `joint`, those of all scales
    together (see `calibration`); `shift`, added to log10 NFA; and `alpha`, which the shift was found for. The defaults
    are the paper's test: ``background="gaussian"`` (independent standard normals), each scale by itself, no shift.
    `blend` is the anomaly map's: how much of it is the distance to neighbours, where there is one.

    Attributes:
        image_size: (H, W) of the network's input.
        strides: pixels a cell of each scale, finest first.
        latent_channels: of each scale's latents: the degrees of freedom of a cell's energy under H0.
        tile: whether images are cut into tiles of the network's size, not shrunk to it.
        selected_on_test: whether the epoch was chosen on the test set: then no figure measured on it is fair.
    """

    image_size: tuple[int, int]
    strides: tuple[int, ...]
    latent_channels: tuple[int, ...]

    def __init__(
        self,
        *,
        tail: segmentation.TailName = "chernoff",
        n_tests: segmentation.TestsName = "total",
        background: Sequence[Background] | Literal["gaussian"] = "gaussian",
        joint: Background | None = None,
        shift: float = 0.0,
        alpha: float | None = None,
        tile: bool = False,
        selected_on_test: bool = False,
        blend: scoring.Blend | None = None,
    ) -> None:
        self.tail = tail
        self.n_tests = n_tests
        self.background = background if background == "gaussian" else list(background)
        self.joint = joint
        self.shift = shift
        self.alpha = alpha
        self.tile = tile
        self.selected_on_test = selected_on_test
        self.blend = blend

    @abstractmethod
    def _network(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Energies, per scale (B, h, w), of (B, H, W, 3) images of the network's size; then what `Neighbours` gives."""

    def _phases(self) -> list[tuple[str, Callable[[Any], Any]]]:
        """The network in parts that can be timed, each fed with what the one before gives."""
        return [("network", self._network)]

    # Predicting -------------------------------------------------------------------------------------------------------

    def predict(
        self, source: ImageLike | Iterable[ImageLike], batch_size: int = 8
    ) -> Prediction | list[Prediction] | Iterator[Prediction]:
        """Anomaly map, mask and regions.

        Args:
            source: one image (a file, a PIL image, an (H, W, 3) uint8 array) gives one Prediction; a list of images
                gives a list; a folder, a file name pattern, or any other iterable gives an iterator, see `stream`.
            batch_size: images, or tiles, that pass through the network together.

        Raises:
            ValueError, FileNotFoundError: an image cannot be used; one line says which and why.
        """
        if isinstance(source, Image.Image | np.ndarray) or (isinstance(source, str | Path) and Path(source).is_file()):
            image = read_image(source)
            return self._judge(source, image, self._energies([image], batch_size)[0])
        if isinstance(source, list | tuple):
            return list(self.stream(source, batch_size))
        return self.stream(source, batch_size)

    def stream(
        self,
        source: str | Path | Iterable[ImageLike],
        batch_size: int = 8,
        on_tiles: Callable[[int, int], None] | None = None,
    ) -> Iterator[Prediction]:
        """Predict images one after another, while the next are read and the last are segmented.

        Reading, network and segmentation work at the same time, in threads; the predictions come in the order of the
        images. No more than ``2 * batch_size + 1`` images (tiled: 3) are held: `source` waits until predictions are
        taken. What is ready passes through the network together, at most `batch_size` images: a camera is not kept
        waiting for a batch to fill. Maps do not depend on the batch but for float32 rounding.

        Args:
            source: a folder, a file name pattern, or any iterable of images, endless ones too. It is iterated in
                another thread.
            batch_size: images, or tiles, that pass through the network together.
            on_tiles: called, from another thread, with how many tiles of the images at work are done and how many
                there are; for a progress bar over large images.

        Raises:
            What reading an image or `source` raises, after the predictions of the images before it.
        """
        images = list_images(source) if isinstance(source, str | Path) else source
        return self._run(images, batch_size, self._judge, on_tiles)

    def _judge(self, source: ImageLike, image: NDArray[np.uint8], energies: Energies) -> Prediction:
        size = (image.shape[0], image.shape[1])
        anomaly_map = scoring.anomaly_map_with_neighbours(energies, self.latent_channels, size, self.blend)[0]
        log_nfa = self._log_nfa(energies, size)
        mask = log_nfa < 0
        return Prediction(
            score=float(anomaly_map.max()),
            is_anomalous=bool(mask.any()),
            anomaly_map=anomaly_map,
            log_nfa=log_nfa,
            mask=mask,
            regions=segmentation.regions(mask, log_nfa, anomaly_map),
            image=image,
            path=Path(source) if isinstance(source, str | Path) else None,
        )

    def _log_nfa(self, energies: Energies, size: tuple[int, int] | int) -> NDArray[np.float32]:
        """log10 NFA of one image, after the shift: (height, width)."""
        log_nfa: NDArray[np.float32]
        energies = energies[: len(self.latent_channels)]  # the distance to neighbours has no part in the test
        if self.background != "gaussian" and self.joint is not None:
            (log_nfa,) = calibration.log_nfa(energies, self.background, self.joint, size, self.shift)
        else:
            (log_nfa,) = segmentation.log_nfa_from_energies(
                energies, self.latent_channels, size, tail=self.tail, n_tests=self.n_tests, background=self.background
            )
            log_nfa += np.float32(self.shift)
        return log_nfa

    def _tiling(self, image: NDArray[np.uint8]) -> tiling.Tiling:
        if self.tile:
            return tiling.tiled((image.shape[0], image.shape[1]), self.image_size, self.strides[-1])
        return tiling.whole(self.image_size, self.strides[-1])

    def _energies(
        self,
        images: Sequence[NDArray[np.uint8]],
        batch_size: int,
        on_tiles: Callable[[int, int], None] | None = None,
    ) -> list[Energies]:
        """Energies of each of some (H, W, 3) images of any size."""
        tilings = [self._tiling(image) for image in images]
        tiles = chain.from_iterable(t.cut(image) for t, image in zip(tilings, images, strict=True))

        def network_batches() -> Iterator[list[NDArray[np.float32]]]:
            done, total = 0, sum(map(len, tilings))
            for batch in batches(tiles, batch_size):
                energies = self._network(np.stack(batch))
                done += len(batch)
                if on_tiles is not None:
                    on_tiles(done, total)
                yield energies

        return join(tilings, network_batches())

    def _run(
        self,
        sources: Iterable[ImageLike],
        batch_size: int,
        finish: Callable[[ImageLike, NDArray[np.uint8], Energies], T],
        on_tiles: Callable[[int, int], None] | None = None,
    ) -> Iterator[T]:
        """``finish(source, image, energies)`` of each image, in order; reading, network and `finish` overlap.

        A thread iterates `sources`; a pool reads images and finishes them; a thread runs the network between. Each
        image holds one of a bounded number of slots from before it is taken out of `sources` until its result is.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        slots = threading.Semaphore(3 if self.tile else 2 * batch_size + 1)
        read: queue.SimpleQueue[tuple[ImageLike, Future[NDArray[np.uint8]]] | None] = queue.SimpleQueue()
        results: queue.SimpleQueue[Future[T] | None] = queue.SimpleQueue()
        stopped = threading.Event()
        pool = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1), thread_name_prefix="uflow")

        def fail(error: BaseException) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_exception(error)
            return future

        def take() -> None:
            try:
                iterator = iter(sources)
                while True:
                    slots.acquire()
                    if stopped.is_set():
                        break
                    try:
                        source = next(iterator)
                    except StopIteration:
                        break
                    read.put((source, pool.submit(read_image, source)))
            except BaseException as error:  # whatever the caller's iterator raises goes to the caller
                read.put((Path(), fail(error)))
            read.put(None)

        def run() -> None:
            more = True
            try:
                while more:
                    batch: list[tuple[ImageLike, NDArray[np.uint8]]] = []
                    error: BaseException | None = None
                    while not batch or (len(batch) < (1 if self.tile else batch_size) and not read.empty()):
                        item = read.get()
                        if item is None or stopped.is_set():
                            more = False
                            break
                        error = item[1].exception()
                        if error is not None:
                            more = False
                            break
                        batch.append((item[0], item[1].result()))
                    if batch:
                        found = self._energies([image for _, image in batch], batch_size, on_tiles)
                        for (source, image), energies in zip(batch, found, strict=True):
                            results.put(pool.submit(finish, source, image, energies))
                    if error is not None:
                        results.put(fail(error))
            except BaseException as error:
                results.put(fail(error))
            results.put(None)

        for work in (take, run):  # daemons: a camera that never answers does not keep the program from ending
            threading.Thread(target=work, daemon=True, name=f"uflow-{work.__name__}").start()
        try:
            while (result := results.get()) is not None:
                value = result.result()
                slots.release()
                yield value
        finally:
            stopped.set()
            slots.release()
            read.put(None)
            pool.shutdown(wait=False, cancel_futures=True)

    # Calibrating ------------------------------------------------------------------------------------------------------

    def calibrate(self: P, images: str | Path | Sequence[ImageLike], alpha: float = 0.05, batch_size: int = 16) -> P:
        """Learn the threshold from good images, without training: for another camera, or a model made elsewhere.

        The images must not have been trained on, and have the size of those to be predicted. See `calibration` for what
        is computed.

        Args:
            images: good images, as for `fit`; an empty list goes back to the paper's test.
            alpha: wished probability that a good image is flagged.
            batch_size: images at once.

        Returns:
            self, calibrated.
        """
        calibration.check_alpha(alpha)
        sources = list_sources(images)
        found = list(self._run(sources, batch_size, lambda _, image, energies: (energies, image.shape[:2])))
        if found:
            energies, sizes = [energies for energies, _ in found], [size for _, size in found]
            minima = self._set_background(energies, sizes)
            self._set_shift(minima, alpha, sources)
        else:
            self.tail, self.n_tests, self.background, self.joint = "chernoff", "total", "gaussian", None
            self.shift, self.alpha = 0.0, None
            log.warning("no calibration images: %s", UNCALIBRATED)
        return self

    def _set_background(self, energies: Sequence[Energies], sizes: Sequence[tuple[int, int]]) -> list[float]:
        """Learn the background from good images' energies; the images' lowest log NFA before the shift."""
        scales = [[e[0] for e in scale] for scale in zip(*energies, strict=True)][: len(self.latent_channels)]
        background, joint, minima = calibration.fit(scales, sizes)  # first: if it fails, nothing has changed
        self.tail, self.n_tests, self.background, self.joint = "exact", "by-area", background, joint
        return minima

    def _set_shift(self, minima: list[float], alpha: float, sources: Sequence[ImageLike]) -> None:
        """Set the threshold from the lowest log NFA of each of the images `sources`, and say which one it lies at."""
        self.shift = calibration.conformal_shift(minima, alpha) + 1e-3  # room for float32 rounding between batches
        self.alpha = alpha
        at = int(np.argmin(np.abs(np.add(minima, self.shift))))
        name = sources[at] if isinstance(sources[at], str | Path) else f"number {at + 1}"
        log.info("calibrated for alpha %g on %d good images; as unusual as any may be: %s", alpha, len(minima), name)
        supported = calibration.supported_alpha(len(minima))
        if supported > alpha:
            log.warning(
                "%d calibration images support alpha >= %.3g, not %.3g: a good image may be flagged that often",
                *(len(minima), supported, alpha),
            )

    # Evaluating -------------------------------------------------------------------------------------------------------

    def evaluate(
        self,
        root: str | Path | datasets.Dataset,
        batch_size: int = 16,
        size: int = 256,
        protocol: str = "paper",
        progress: bool | Progress = False,
        fair: bool = False,
    ) -> Evaluation:
        """Measure the detector on a test set with truth.

        Args:
            root: folder of one category in any layout that `datasets` knows, or what it made of one.
            batch_size: images at once.
            size: side of the maps and masks compared with protocol "paper" (paper: 256).
            protocol: "paper", or "native": maps and masks compared at each image's own size. See `evaluation.evaluate`.
            progress: show a progress bar; a `rich.progress.Progress` shows it among its own.
            fair: also run over the training images, for mIoU at the "fair" threshold of the anomaly map.

        Raises:
            ValueError, FileNotFoundError: no category there, or several, or an image or a mask cannot be used.
        """
        if isinstance(root, datasets.Dataset):
            dataset = root
        else:
            dataset, *others = datasets.find_categories(root)
            if others:
                names = ", ".join(category.name for category in (dataset, *others))
                raise ValueError(f"{root} holds several categories: give one of {names}")

        def compared(image: NDArray[np.uint8]) -> tuple[int, int]:
            return (image.shape[0], image.shape[1]) if protocol == "native" else (size, size)

        def anomaly_map(_: ImageLike, image: NDArray[np.uint8], energies: Energies) -> NDArray[np.float32]:
            values: NDArray[np.float32]
            size = compared(image)
            (values,) = scoring.anomaly_map_with_neighbours(energies, self.latent_channels, size, self.blend)
            return values

        def judge(source: ImageLike, image: NDArray[np.uint8], energies: Energies) -> Judged:
            score = anomaly_map(source, image, energies)
            own = log_nfa = self._log_nfa(energies, (image.shape[0], image.shape[1]))
            if compared(image) != own.shape:
                log_nfa = self._log_nfa(energies, compared(image))
            return Judged(score, float(score.max()), log_nfa, bool(own.min() < 0))

        def run(
            paths: Sequence[Path], finish: Callable[[ImageLike, NDArray[np.uint8], Energies], T], what: str
        ) -> Iterable[T]:
            found: Iterable[T] = self._run(paths, batch_size, finish)
            if progress is True:
                from rich.progress import track

                found = track(found, what, total=len(paths))
            elif progress:
                found = progress.track(found, total=len(paths), description=what)
            return found

        judged = run([sample.path for sample in dataset.test], judge, "Evaluating")
        normal_maps = run(dataset.train, anomaly_map, "Normal images") if fair else None
        return evaluation.evaluate(dataset.test, judged, protocol, size, normal_maps)

    # Files ------------------------------------------------------------------------------------------------------------

    def _test_config(self) -> dict[str, Any]:
        """The test as JSON: what `test_options` reads."""
        background = self.background if self.background == "gaussian" else [asdict(b) for b in self.background]
        return {
            "tail": self.tail,
            "n_tests": self.n_tests,
            "background": background,
            "joint": None if self.joint is None else asdict(self.joint),
            "shift": self.shift,
            "alpha": self.alpha,
            "tile": self.tile,
            **({"selected_on_test": True} if self.selected_on_test else {}),
            **({} if self.blend is None else {"blend": asdict(self.blend)}),
        }


def join(tilings: Sequence[tiling.Tiling], batches: Iterable[Sequence[NDArray[np.float32]]]) -> list[Energies]:
    """The energies of whole images from those of their tiles: batches of any size, per scale (B, h, w)."""
    tiles = chain.from_iterable(zip(*batch, strict=True) for batch in batches)
    return [[t.stitch(scale)[None] for scale in zip(*islice(tiles, len(t)), strict=True)] for t in tilings]


def test_options(config: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `Predictor` from the JSON of a file."""
    options = dict(config)
    options["background"] = options["background"] or "gaussian"  # None in files written before it had the name
    if options["background"] != "gaussian":
        options["background"] = [Background(**b) for b in options["background"]]
    if options.get("joint") is not None:  # absent from files written before there was one
        options["joint"] = Background(**options["joint"])
    if options.get("blend") is not None:
        if options["blend"].keys() != asdict(scoring.Blend()).keys():
            raise ValueError("the model was written by another version of uflow: train the model again")
        options["blend"] = scoring.Blend(**options["blend"])
    return options


def list_sources(images: str | Path | Sequence[ImageLike]) -> list[ImageLike]:
    """Images as a list: of a folder or a pattern, its files."""
    if isinstance(images, str | Path):
        return list(list_images(images))
    return list(images)
