"""The detector: fit on good images, predict maps, masks and regions, save, load, evaluate."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from . import calibration, checkpoints, data, metrics, scoring, segmentation, training
from .backbones import Backbone, create_backbone
from .flow import UFlow
from .segmentation import Background, Region
from .training import TrainingSettings, TrainingState

log = logging.getLogger("uflow")

ImageLike = str | Path | Image.Image | np.ndarray

_UNCALIBRATED = "the paper's test, which keeps its promise for independent standard normal latents only"


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


@dataclass(frozen=True)
class Evaluation:
    """Figures on a test set at 256 x 256, as in the paper; see `metrics` for each one's definition.

    `flagged` holds, per kind of image ("good" and each defect), how many images there are and the share that `predict`
    finds a region in, at the image's own size; `miou_best` is mIoU at the one threshold of log_nfa that maximises it on
    this very test set.
    """

    pixel_auroc: float
    aupro: float
    image_auroc: float
    miou: float
    miou_best: float
    best_log_nfa: float
    flagged: dict[str, dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Detector:
    """U-Flow from image to mask. Made by `Detector.fit` or `load`.

    ``Detector.fit("data/tile/train/good").predict("part.png").mask`` is the whole of it.

    Its test, as `calibrate` sets it: `background`, the normal energies of each scale; `joint`, those of all scales
    together (see `calibration`); `shift`, added to log10 NFA; and `alpha`, which the shift was found for. The defaults
    are the paper's test: ``background="gaussian"`` (independent standard normals), each scale by itself, no shift.
    """

    def __init__(
        self,
        backbone: Backbone,
        flow: UFlow,
        *,
        tail: segmentation.TailName = "chernoff",
        n_tests: segmentation.TestsName = "total",
        background: Sequence[Background] | Literal["gaussian"] = "gaussian",
        joint: Background | None = None,
        shift: float = 0.0,
        alpha: float | None = None,
        device: str | torch.device = "auto",
        history: Sequence[training.Epoch] = (),
    ) -> None:
        self.device = resolve_device(device)
        self.backbone = backbone.to(self.device).eval()
        self.flow = flow.to(self.device).eval()
        self.tail = tail
        self.n_tests = n_tests
        self.background = background if background == "gaussian" else list(background)
        self.joint = joint
        self.shift = shift
        self.alpha = alpha
        self.history = list(history)

    # Learning ---------------------------------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        images: str | Path | Sequence[ImageLike],
        backbone: str = "efficientnet_lite0",
        *,
        image_size: int | tuple[int, int] | None = None,
        strides: Sequence[int] | None = None,
        weights: str | Path | Sequence[str | Path] | None = None,
        flow_steps: int = 4,
        settings: TrainingSettings | None = None,
        held_out: float = 0.15,
        alpha: float | None = 0.05,
        device: str = "auto",
        state_file: str | Path | None = None,
        progress: bool = True,
    ) -> Detector:
        """Learn what good images look like.

        A share of the images is kept out of training: the epoch is chosen by their likelihood, and the threshold is
        calibrated on them (see `calibrate`). Where they are fewer than `alpha` needs, more flows are trained, each with
        other images kept out, only to calibrate on those too: seconds for a small set, and minutes for alpha 0.001.

        Args:
            images: a folder, a file name pattern, or a list of files, PIL images or arrays; all of them good.
            backbone: `mcait`, `resnet18`, `wide_resnet50_2`, `efficientnet_lite0` to `2`, or any timm model.
            image_size: side, or (height, width), of the network's input; None is the backbone's own.
            strides: scales of a backbone that offers a choice, each twice the one before.
            weights: file (two for `mcait`) with the backbone's weights; None finds them, see `backbones`.
            flow_steps: coupling steps a scale (paper: 4).
            settings: how to train; None is the defaults.
            held_out: share of images kept out of training; at least 10 of them, at most a third.
            alpha: wished probability that a good image is flagged; None is the paper's test, uncalibrated.
            device: "auto" (CUDA, then MPS, then CPU), or a torch device name.
            state_file: written after each epoch; where it exists, made by the same call, training goes on from it.
            progress: show progress bars.

        Raises:
            ValueError: fewer than 2 images, or bad input; the message says which and what to do.
            uflow.training.TrainingError: the loss became infinite, or features do not fit on the disk.
        """
        settings = settings or TrainingSettings()
        if alpha is not None:
            calibration.check_alpha(alpha)
        if not 0 < held_out < 1:
            raise ValueError(f"held_out is a share of the images between 0 and 1, got {held_out}")
        sources = _sources(images)
        if len(sources) < 2:
            raise ValueError(f"training needs at least 2 good images, one of them to select by; got {len(sources)}")
        target = resolve_device(device)
        net = create_backbone(backbone, image_size=image_size, strides=strides, weights=weights).to(target)
        flow = UFlow(net.channels, net.sizes, steps=flow_steps, affine=net.layer_norm, seed=settings.seed)

        folds = hold_out(len(sources), held_out, alpha, settings.seed)
        if len(folds) > 1:
            log.info("%d images held out are few for alpha %g: training %d flows", len(folds[0]), alpha, len(folds))

        state, save_state = None, None
        if state_file is not None:
            state_file = Path(state_file)
            run = _fingerprint(net, flow_steps, settings, sources, held_out)
            if state_file.exists():
                state = checkpoints.load_training_state(state_file, run)
                log.info("going on from %s after epoch %d", state_file, state.epoch)

            def save_state(state: TrainingState) -> None:
                checkpoints.save_training_state(state_file, state, run)

        sizes: list[tuple[int, int]] = []

        def inputs() -> Iterator[np.ndarray]:
            for source in sources:
                image = data.read_image(source)
                sizes.append((image.shape[0], image.shape[1]))
                yield data.resize_image(image, net.image_size)

        with training.compute_features(net, inputs(), len(sources), device=target, progress=progress) as features:
            minima: list[float] = []
            for fold, held in enumerate(folds):
                if fold > 0:  # a flow that is there only to judge the images held out from it
                    flow = UFlow(net.channels, net.sizes, steps=flow_steps, affine=net.layer_norm, seed=settings.seed)
                trained = training.train(
                    flow,
                    features,
                    sorted(set(range(len(sources))) - set(held)),
                    held,
                    settings,
                    device=target,
                    state=state if fold == 0 else None,
                    on_epoch=save_state if fold == 0 else None,
                    progress=progress,
                )
                one = cls(net, flow, device=target, history=trained.history)
                if fold == 0:
                    detector = one
                if alpha is not None:
                    chunks = training.batches(held, 16)
                    energies = [one._energies_of_features(features.batch(chunk, target)) for chunk in chunks]
                    minima += one._set_background(energies, [sizes[i] for i in held])
        if alpha is None:
            log.info("not calibrated: %s", _UNCALIBRATED)
        else:
            detector._set_shift(minima, alpha, [sources[i] for held in folds for i in held])
        return detector

    def calibrate(
        self, images: str | Path | Sequence[ImageLike], alpha: float = 0.05, batch_size: int = 16
    ) -> Detector:
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
        sources = _sources(images)
        energies: list[list[np.ndarray]] = []
        sizes: list[tuple[int, int]] = []
        for batch in training.batches(map(data.read_image, sources), batch_size):
            energies.append(self._energies(batch))
            sizes.extend((image.shape[0], image.shape[1]) for image in batch)
        if sizes:
            self._set_shift(self._set_background(energies, sizes), alpha, sources)
        else:
            self.tail, self.n_tests, self.background, self.joint = "chernoff", "total", "gaussian", None
            self.shift, self.alpha = 0.0, None
            log.warning("no calibration images: %s", _UNCALIBRATED)
        return self

    def _set_background(self, batches: list[list[np.ndarray]], sizes: list[tuple[int, int]]) -> list[float]:
        """Learn the background from good images' energies, in batches; the images' lowest log NFA before the shift."""
        energies = [np.concatenate(scale) for scale in zip(*batches, strict=True)]
        background, joint, minima = calibration.fit(energies, sizes)  # first: if it fails, nothing has changed
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

    # Predicting -------------------------------------------------------------------------------------------------------

    def predict(
        self, source: ImageLike | Iterable[ImageLike], batch_size: int = 8
    ) -> Prediction | list[Prediction] | Iterator[Prediction]:
        """Anomaly map, mask and regions.

        Args:
            source: one image (a file, a PIL image, an (H, W, 3) uint8 array) gives one Prediction; a list of images
                gives a list; a folder, a file name pattern, or any other iterable gives an iterator that reads as it
                goes and holds no more than `batch_size` images.
            batch_size: images that pass through the network together.

        Raises:
            ValueError, FileNotFoundError: an image cannot be used; one line says which and why.
        """
        if isinstance(source, Image.Image | np.ndarray) or (isinstance(source, str | Path) and Path(source).is_file()):
            return next(self.stream([source]))
        if isinstance(source, str | Path):
            return self.stream(data.list_images(source), batch_size)
        if isinstance(source, list | tuple):
            return list(self.stream(source, batch_size))
        return self.stream(source, batch_size)

    def stream(self, images: Iterable[ImageLike], batch_size: int = 8) -> Iterator[Prediction]:
        """Predict images one after another, holding no more than `batch_size` of them."""
        for sources in training.batches(images, batch_size):
            batch = [data.read_image(source) for source in sources]
            energies = self._energies(batch)
            for i, (source, image) in enumerate(zip(sources, batch, strict=True)):
                one = [e[i : i + 1] for e in energies]
                size = image.shape[:2]
                anomaly_map = scoring.anomaly_map_from_energies(one, self.flow.latent_channels, size)[0]
                log_nfa = self._log_nfa(one, size)[0]
                mask = log_nfa < 0
                yield Prediction(
                    score=float(anomaly_map.max()),
                    is_anomalous=bool(mask.any()),
                    anomaly_map=anomaly_map,
                    log_nfa=log_nfa,
                    mask=mask,
                    regions=segmentation.regions(mask, log_nfa, anomaly_map),
                    image=image,
                    path=Path(source) if isinstance(source, str | Path) else None,
                )

    @torch.inference_mode()
    def _energies(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Energies of (H, W, 3) uint8 images: (B, h, w) float32 a scale."""
        batch = np.stack([data.resize_image(image, self.backbone.image_size) for image in images])
        return self._energies_of_features(self.backbone(torch.from_numpy(batch).to(self.device)))

    @torch.inference_mode()
    def _energies_of_features(self, features: list[Tensor]) -> list[np.ndarray]:
        return segmentation.energies(self.flow(features)[0])

    def _log_nfa(self, energies: list[np.ndarray], size: tuple[int, int] | int) -> np.ndarray:
        if self.background != "gaussian" and self.joint is not None:
            raw = calibration.log_nfa(energies, self.background, self.joint, size)
        else:
            raw = segmentation.log_nfa_from_energies(
                energies,
                self.flow.latent_channels,
                size,
                tail=self.tail,
                n_tests=self.n_tests,
                background=self.background,
            )
        return raw + np.float32(self.shift)

    # Evaluating -------------------------------------------------------------------------------------------------------

    def evaluate(self, root: str | Path, batch_size: int = 16, size: int = 256, progress: bool = False) -> Evaluation:
        """Measure the detector on a test set with truth, in the MVTec layout.

        Args:
            root: folder that holds ``test/<defect>/*`` and ``ground_truth/<defect>/*_mask.png``.
            batch_size: images at once.
            size: side of the maps and masks compared (paper: 256).
            progress: show a progress bar.
        """
        samples = data.read_mvtec(root).test
        shape = (len(samples), size, size)
        anomaly_maps, log_nfa = np.empty(shape, np.float32), np.empty(shape, np.float32)
        truth = np.zeros(shape, bool)
        flags = np.zeros(len(samples), bool)
        done = 0
        for batch in training.batches(track(samples, "Evaluating", disable=not progress), batch_size):
            images = [data.read_image(sample.path) for sample in batch]
            energies = self._energies(images)
            rows = slice(done, done + len(batch))
            anomaly_maps[rows] = scoring.anomaly_map_from_energies(energies, self.flow.latent_channels, size)
            log_nfa[rows] = self._log_nfa(energies, size)
            for i, (sample, image) in enumerate(zip(batch, images, strict=True)):
                own_size = self._log_nfa([e[i : i + 1] for e in energies], (image.shape[0], image.shape[1]))
                flags[done + i] = own_size.min() < 0
                if sample.mask is not None:
                    mask = data.read_mask(sample.mask, image.shape[:2])
                    truth[done + i] = data.resize_mask(mask, (size, size))
            done += len(batch)
        labels = np.array([sample.is_anomalous for sample in samples])
        kinds = sorted({sample.defect for sample in samples}, key=lambda kind: (kind != "good", kind))
        of_kind = {kind: np.array([sample.defect == kind for sample in samples]) for kind in kinds}
        miou_best, threshold = metrics.best_iou(-log_nfa, truth)
        return Evaluation(
            pixel_auroc=metrics.auroc(anomaly_maps, truth),
            aupro=metrics.aupro(anomaly_maps, truth),
            image_auroc=metrics.auroc(anomaly_maps.max(axis=(1, 2)), labels),
            miou=metrics.mean_iou(log_nfa < 0, truth),
            miou_best=miou_best,
            best_log_nfa=-threshold,
            flagged={k: {"images": int(m.sum()), "share": float(flags[m].mean())} for k, m in of_kind.items()},
        )

    # Files ------------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the model file, whole or not at all: safetensors, the rest as JSON in its header.

        The backbone's frozen weights are not in it, only their SHA-256, which `load` checks.
        """
        config = {
            "backbone": {
                "name": self.backbone.name,
                "image_size": self.backbone.image_size,
                "strides": self.backbone.strides,
                "weights_source": self.backbone.weights_source,
                "weights_sha256": self.backbone.weights_sha256,
            },
            "flow": {"steps": self.flow.steps, "affine": self.flow.affine},
            "segmentation": {
                "tail": self.tail,
                "n_tests": self.n_tests,
                "background": self.background
                if self.background == "gaussian"
                else [asdict(b) for b in self.background],
                "joint": None if self.joint is None else asdict(self.joint),
                "shift": self.shift,
                "alpha": self.alpha,
            },
            "history": self.history,
        }
        checkpoints.save_model(Path(path), self.flow.state_dict(), config)


def load(path: str | Path, device: str = "auto", weights: str | Path | Sequence[str | Path] | None = None) -> Detector:
    """Read a model file written by `Detector.save`.

    Args:
        path: the model file.
        device: "auto" (CUDA, then MPS, then CPU), or a torch device name.
        weights: file with the backbone's weights, where they cannot be found otherwise.

    Raises:
        FileNotFoundError, ValueError: no such file; cut short, of another version, or no model file at all; or the
            backbone's weights are not those the model was trained with.
    """
    tensors, config = checkpoints.load_model(Path(path))
    saved = config["backbone"]
    backbone = create_backbone(
        saved["name"], image_size=tuple(saved["image_size"]), strides=saved["strides"], weights=weights
    )
    if backbone.weights_sha256 != saved["weights_sha256"]:
        raise ValueError(
            f"{path} was trained on {saved['name']} weights from {saved['weights_source']}, and those of "
            f"{backbone.weights_source} differ; pass the right file as weights=... ({saved['weights_sha256'][:12]})"
        )
    flow = UFlow(backbone.channels, backbone.sizes, **config["flow"])
    flow.load_state_dict(tensors)
    options = dict(config["segmentation"])
    options["background"] = options["background"] or "gaussian"  # None in files written before it had the name
    if options["background"] != "gaussian":
        options["background"] = [Background(**b) for b in options["background"]]
    if options.get("joint") is not None:  # absent from files written before there was one
        options["joint"] = Background(**options["joint"])
    return Detector(backbone, flow, device=device, history=config["history"], **options)


def resolve_device(device: str | torch.device) -> torch.device:
    """ "auto" is CUDA where there is one, then MPS, then the CPU."""
    if device != "auto":
        chosen = torch.device(device)
        available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not available.get(chosen.type, True):
            raise ValueError(f"device {str(device)!r} is not available here; use 'auto' or 'cpu'")
        return chosen
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def hold_out(count: int, share: float, alpha: float | None, seed: int) -> list[list[int]]:
    """Which of `count` images to keep out of training: one list for each flow to be trained.

    A list holds a `share` of the images, at least 10 and at most a third. There are as many lists, without a common
    image, as `alpha` needs calibration images, or can be made.
    """
    order = np.random.default_rng(seed).permutation(count)
    size = min(max(math.ceil(share * count), 10), max(count // 3, 1))
    needed = 1 if alpha is None else math.ceil(calibration.images_needed(alpha) / size)
    folds = max(1, min(needed, count // size))
    return [sorted(order[i * size : (i + 1) * size].tolist()) for i in range(folds)]


def _sources(images: str | Path | Sequence[ImageLike]) -> list[ImageLike]:
    if isinstance(images, str | Path):
        return list(data.list_images(images))
    return list(images)


def _fingerprint(
    backbone: Backbone, flow_steps: int, settings: TrainingSettings, sources: Sequence[ImageLike], held_out: float
) -> dict[str, Any]:
    """What must be equal for an interrupted training to go on."""
    digest = hashlib.sha256()
    for source in sources:
        if isinstance(source, str | Path):
            digest.update(f"{source} {Path(source).stat().st_size}\n".encode())
        else:
            digest.update(data.read_image(source).tobytes())
    return {
        "backbone": f"{backbone.name} {backbone.image_size} {backbone.strides} {backbone.weights_sha256}",
        "flow_steps": flow_steps,
        "settings": asdict(settings),
        "images": f"{len(sources)} {digest.hexdigest()}",
        "held_out": held_out,
    }
