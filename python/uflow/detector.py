"""The detector: fit on good images, save, load; predicting, calibrating and evaluating are `predictor`'s."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import calibration, checkpoints, data, segmentation, tiling, training
from .backbones import Backbone, create_backbone
from .flow import FoldedFlow, UFlow
from .predictor import UNCALIBRATED, Evaluation, ImageLike, Prediction, Predictor, join, list_sources, test_options
from .training import TrainingSettings, TrainingState

__all__ = ["Detector", "Evaluation", "Prediction", "hold_out", "load", "resolve_device"]

log = logging.getLogger("uflow")


class Detector(Predictor):
    """U-Flow from image to mask. Made by `Detector.fit` or `load`.

    ``Detector.fit("data/tile/train/good").predict("part.png").mask`` is the whole of it. The keyword arguments `test`
    are those of `Predictor`; without any, the test is the paper's.
    """

    def __init__(
        self,
        backbone: Backbone,
        flow: UFlow,
        *,
        device: str | torch.device = "auto",
        history: Sequence[training.Epoch] = (),
        **test: Any,
    ) -> None:
        super().__init__(**test)
        self.device = resolve_device(device)
        self.backbone = backbone.to(self.device).eval()
        self.flow = flow.to(self.device).eval()
        self.image_size, self.strides = backbone.image_size, backbone.strides
        self.latent_channels = flow.latent_channels
        self.history = list(history)
        self._weights: list[Tensor] = []
        self._folded_from: object = None
        self._folded_flow()

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
        tile: bool = False,
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
            tile: cut images into overlapping tiles of the network's size instead of shrinking them to it, here and in
                `predict`: for images much larger than `image_size`, whose defects are small.
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
        sources = list_sources(images)
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
            run = _fingerprint(net, flow_steps, settings, sources, held_out, tile)
            if state_file.exists():
                state = checkpoints.load_training_state(state_file, run)
                log.info("going on from %s after epoch %d", state_file, state.epoch)

            def save_state(state: TrainingState) -> None:
                checkpoints.save_training_state(state_file, state, run)

        sizes = [data.image_size(source) for source in sources]
        if tile:
            tilings = [tiling.tiled(size, net.image_size, net.strides[-1]) for size in sizes]
        else:
            tilings = [tiling.whole(net.image_size, net.strides[-1])] * len(sources)
        first = np.cumsum([0, *map(len, tilings)]).tolist()

        def tiles(of: Sequence[int]) -> list[int]:
            return [number for i in of for number in range(first[i], first[i + 1])]

        inputs = (part for t, source in zip(tilings, sources, strict=True) for part in t.cut(data.read_image(source)))
        with training.compute_features(net, inputs, first[-1], device=target, progress=progress) as features:
            minima: list[float] = []
            for fold, held in enumerate(folds):
                if fold > 0:  # a flow that is there only to judge the images held out from it
                    flow = UFlow(net.channels, net.sizes, steps=flow_steps, affine=net.layer_norm, seed=settings.seed)
                trained = training.train(
                    flow,
                    features,
                    tiles(sorted(set(range(len(sources))) - set(held))),
                    tiles(held),
                    settings,
                    device=target,
                    state=state if fold == 0 else None,
                    on_epoch=save_state if fold == 0 else None,
                    progress=progress,
                )
                one = cls(net, flow, device=target, history=trained.history, tile=tile)
                if fold == 0:
                    detector = one
                if alpha is not None:
                    batches = (features.batch(chunk, target) for chunk in data.batches(tiles(held), 16))
                    energies = join([tilings[i] for i in held], map(one._energies_of_features, batches))
                    minima += one._set_background(energies, [sizes[i] for i in held])
        if alpha is None:
            log.info("not calibrated: %s", UNCALIBRATED)
        else:
            detector._set_shift(minima, alpha, [sources[i] for held in folds for i in held])
        return detector

    # The network ------------------------------------------------------------------------------------------------------

    def _network(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        return self._energies_of_features(self._features(images))

    def _phases(self) -> list[tuple[str, Callable[[Any], Any]]]:
        return [("backbone", self._features), ("flow", self._energies_of_features)]

    @torch.inference_mode()
    def _features(self, images: NDArray[np.uint8]) -> list[Tensor]:
        features: list[Tensor] = self.backbone(training.image_tensor(images, self.device))
        return features

    @torch.inference_mode()
    def _energies_of_features(self, features: list[Tensor]) -> list[NDArray[np.float32]]:
        return segmentation.energies(self._folded_flow()(features))

    def _folded_flow(self) -> FoldedFlow:
        """The flow for inference, made anew when the flow's weights have changed or moved."""
        if self._folded_from != self._state():
            self._weights = list(self.flow.state_dict(keep_vars=True).values())  # half a millisecond: not each time
            self._folded, self._folded_from = FoldedFlow(self.flow), self._state()
        return self._folded

    def _state(self) -> tuple[UFlow, list[tuple[int, int]]]:
        return self.flow, [(tensor.data_ptr(), tensor._version) for tensor in self._weights]

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
            "segmentation": self._test_config(),
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
    return Detector(backbone, flow, device=device, history=config["history"], **test_options(config["segmentation"]))


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


def _fingerprint(
    backbone: Backbone,
    flow_steps: int,
    settings: TrainingSettings,
    sources: Sequence[ImageLike],
    held_out: float,
    tile: bool = False,
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
        **({"tile": True} if tile else {}),
    }
