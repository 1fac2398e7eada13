"""The detector: fit on good images, save, load; predicting, calibrating and evaluating are `predictor`'s."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor

from . import model_file, scoring, segmentation, tiling, training
from . import threshold as calibration
from .backbones import Backbone, create_backbone
from .evaluate import metrics
from .evaluate.datasets import Dataset
from .evaluate.evaluation import Evaluation
from .fast.folded_flow import FoldedFlow
from .features import FeatureCache, channel_moments, compute_features, image_tensor, turned_copies
from .flow import UFlow
from .images import batches, digest, image_size, read_image, resize_mask
from .interop.checkpoint import is_foreign, load_foreign, load_nets
from .interop.freia import SoftClamp
from .memory import Neighbours, change
from .predictor import UNCALIBRATED, Energies, ImageLike, Prediction, Predictor, join, list_sources, test_options
from .training import TrainingSettings, TrainingState
from .weights import WeightsNotFound

__all__ = ["Detector", "Evaluation", "Prediction", "fingerprint", "hold_out", "load", "resolve_device"]

log = logging.getLogger("uflow")

CHANGED = 120  # made changes that the blend is learnt from


class Detector(Predictor):
    """U-Flow from image to mask. Made by `Detector.fit` or `load`.

    ``Detector.fit("data/tile/train/good").predict("part.png").mask`` is the whole of it. The keyword arguments `test`
    are those of `Predictor`; without any, the test is the paper's.

    Attributes:
        history: what each epoch of its training gave.
        trained_with: what `fit` was asked for, see `fingerprint`, and `alpha`; empty where that is not known.
    """

    def __init__(
        self,
        backbone: Backbone,
        flow: UFlow,
        *,
        device: str | torch.device = "auto",
        neighbours: Neighbours | None = None,
        history: Sequence[training.Epoch] = (),
        trained_with: dict[str, Any] | None = None,
        **test: Any,
    ) -> None:
        super().__init__(**test)
        self.device = resolve_device(device)
        self.backbone = backbone.to(self.device).eval()
        self.flow = flow.to(self.device).eval()
        self.neighbours = None if neighbours is None else neighbours.to(self.device)
        self.image_size, self.strides = backbone.image_size, backbone.strides
        self.latent_channels = flow.latent_channels
        self.history = list(history)
        self.trained_with = trained_with or {}
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
        select_on_test: Dataset | None = None,
        progress: bool | Progress = True,
    ) -> Detector:
        """Learn what good images look like.

        A share of the images is kept out of training: the epoch is chosen by their likelihood, and the threshold is
        calibrated on them (see `calibrate`). Where they are fewer than `alpha` needs, more flows are trained, each with
        other images kept out, only to calibrate on those too: seconds for a small set, and minutes for alpha 0.001.
        Up to 400 images are also tried with their turned and mirrored copies and with noise on the features: that flow
        is taken where the images kept out, as they are, are clearly likelier.

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
            state_file: written after each epoch; where it exists, made by the same call, training goes on from it. The
                trial with copies has one of its own beside it, ending in ".augmented", which is removed at the end.
            select_on_test: choose the epoch by the pixel AUROC on this very test set, at 256 x 256, as the published
                checkpoints were. To reproduce, not to compare: figures of such a detector on that test set are not
                fair, and it says so (`selected_on_test`) wherever it goes.
            progress: show progress bars; a `Progress` shows them among its own.

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

        def new_flow() -> UFlow:
            return UFlow(net.channels, net.sizes, steps=flow_steps, affine=net.layer_norm, seed=settings.seed)

        flow = new_flow()
        folds = hold_out(len(sources), held_out, alpha, settings.seed)
        if len(folds) > 1:
            log.info("%d images held out are few for alpha %g: training %d flows", len(folds[0]), alpha, len(folds))

        run = fingerprint(net, flow_steps, settings, sources, held_out, tile, select_on_test)
        ours = net.layer_norm and select_on_test is None  # MS-CaiT, and what is to be reproduced, stay the paper's

        with ExitStack() as stack:
            good = _Cached.of(net, sources, tile, target, progress, copies=ours and settings.augment)
            stack.enter_context(good.features)
            select = None
            if select_on_test is not None:
                test = _Cached.of(net, [sample.path for sample in select_on_test.test], tile, target, progress)
                stack.enter_context(test.features)
                truth = test.truth(select_on_test)
                candidate = cls(net, flow, device=target)

                def select() -> float:
                    return test.pixel_auroc(candidate, truth)

            def learn(flow: UFlow, held: Sequence[int], augmented: bool, file: Path | None = None) -> TrainingState:
                state, save_state = None, None
                if file is not None:
                    if file.exists():
                        state = model_file.load_training_state(file, run)
                        log.info("going on from %s after epoch %d", file, state.epoch)

                    def save_state(state: TrainingState) -> None:
                        model_file.save_training_state(file, state, run)

                learnt = good.tiles(sorted(set(range(len(sources))) - set(held)))
                return training.train(
                    flow,
                    good.features,
                    learnt,
                    good.tiles(held),
                    settings,
                    device=target,
                    state=state,
                    on_epoch=save_state,
                    select=select if held is folds[0] else None,
                    copies=good.copies if augmented else 1,
                    noise=training.NOISE / math.sqrt(len(learnt)) if augmented else 0.0,
                    passes=-(-training.LEAST // len(learnt)) if good.copies > 1 else 1,
                    progress=progress,
                )

            file = None if state_file is None else Path(state_file)
            trained, augmented = learn(flow, folds[0], False, file), False
            if good.copies > 1:
                other = new_flow()
                beside = None if file is None else file.with_name(file.name + ".augmented")
                trial = learn(other, folds[0], True, beside)
                augmented = trial.best_nll < trained.best_nll - training.GAIN
                log.info(
                    "held-out nats a dimension: %.3f, with turned copies and noise %.3f, which are %s",
                    *(trained.best_nll, trial.best_nll, "taken" if augmented else "left out"),
                )
                if augmented:
                    flow, trained = other, trial
                if beside is not None:
                    beside.unlink(missing_ok=True)

            def near(indices: Sequence[int]) -> Neighbours:
                return Neighbours.of(good.features, good.tiles(indices), settings.neighbours, settings.seed).to(target)

            minima: list[float] = []
            for fold, held in enumerate(folds):
                if fold > 0:  # a flow that is there only to judge the images held out from it
                    flow = new_flow()
                    trained = learn(flow, held, augmented)
                one = cls(
                    net,
                    flow,
                    device=target,
                    history=trained.history,
                    trained_with={**run, "alpha": alpha},
                    tile=tile,
                    selected_on_test=select_on_test is not None,
                )
                sizes = [good.sizes[i] for i in held]
                if fold == 0:
                    detector = one
                    if ours and settings.neighbours:
                        one.neighbours = near(sorted(set(range(len(sources))) - set(held)))
                        one.neighbours.measure(good.features, good.tiles(held))
                        one.blend = good.blend(one, held, settings.seed)
                        log.info(
                            "the distance to neighbours counts %.0f %% in the map and %.0f %% in the score",
                            *(100 * one.blend.map_share, 100 * one.blend.score_share),
                        )
                if alpha is not None:
                    minima += one._set_background(good.energies(one, held), sizes)
            if detector.neighbours is not None:
                # What was measured on the images held out is kept, and now their vectors join.
                usual, detector.neighbours = detector.neighbours.usual, near(range(len(sources)))
                detector.neighbours.usual.copy_(usual)
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
        features: list[Tensor] = self.backbone(image_tensor(images, self.device))
        return features

    @torch.inference_mode()
    def _energies_of_features(self, features: list[Tensor]) -> list[NDArray[np.float32]]:
        energies = segmentation.energies(self._folded_flow()(features))
        if self.neighbours is not None:
            energies += [distance.cpu().numpy() for distance in self.neighbours(features)]
        return energies

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
            "flow": {"steps": self.flow.steps, "affine": self.flow.affine, "clamp": self.flow.clamp},
            "segmentation": self._test_config(),
            "history": self.history,
            "trained_with": self.trained_with,
        }
        tensors = self.flow.state_dict()
        if self.neighbours is not None:
            tensors |= {f"neighbours.{name}": tensor for name, tensor in self.neighbours.state_dict().items()}
        model_file.save_model(Path(path), tensors, config)


def load(
    path: str | Path,
    device: str = "auto",
    weights: str | Path | Sequence[str | Path] | None = None,
    soft_clamp: SoftClamp | None = None,
) -> Detector:
    """Read a model file written by `Detector.save`, or a checkpoint of the authors or of anomalib.

    A checkpoint made elsewhere is judged by the paper's test until `Detector.calibrate` has seen good images. No code
    from it is run. A line of the log says what it was recognised as.

    Args:
        path: the model file, or the checkpoint: Lightning's .ckpt, or a state dict saved by torch.
        device: "auto" (CUDA, then MPS, then CPU), or a torch device name.
        weights: file with the backbone's weights, where they cannot be found otherwise; the checkpoint that a saved
            model came from is one. A checkpoint that holds its backbone's weights needs none.
        soft_clamp: of a checkpoint made elsewhere: "tanh(r)" (None is this: FrEIA 0.2, anomalib), or "tanh(r/clamp)"
            where it was trained with a later FrEIA; see `convert_freia`.

    Raises:
        FileNotFoundError, ValueError: no such file; cut short, of another version, or no model file at all; or the
            backbone's weights are not those the model was trained with.
        backbones.WeightsNotFound: the backbone's weights are nowhere to be found.
    """
    path = Path(path)
    if is_foreign(path):
        return _load_foreign(path, device, weights, soft_clamp or "tanh(r)")
    tensors, config = model_file.load_model(path)
    if soft_clamp is not None:
        raise ValueError(
            f"soft_clamp is for checkpoints made elsewhere, and {path} is a uflow model file: leave it out"
        )
    saved = config["backbone"]
    try:
        backbone = _backbone(saved["name"], tuple(saved["image_size"]), saved["strides"], weights)
    except WeightsNotFound as error:
        raise WeightsNotFound(f"{error}; those of {path} came from {saved['weights_source']}") from None
    if backbone.weights_sha256 != saved["weights_sha256"]:
        raise ValueError(
            f"{path} was trained on {saved['name']} weights from {saved['weights_source']}, and those of "
            f"{backbone.weights_source} differ; pass the right file as weights=... ({saved['weights_sha256'][:12]})"
        )
    near = None
    if "neighbours.usual" in tensors:
        usual = tensors.pop("neighbours.usual").tolist()
        near = Neighbours([tensors.pop(f"neighbours.vectors_{scale}") for scale in range(len(usual))], usual)
    flow = UFlow(backbone.channels, backbone.sizes, **config["flow"])
    if tensors.keys() != flow.state_dict().keys():
        raise ValueError(f"{path} was written by another version of uflow: train the model again")
    flow.load_state_dict(tensors)
    detector = Detector(
        backbone,
        flow,
        device=device,
        neighbours=near,
        history=config["history"],
        trained_with=config.get("trained_with"),  # absent from files written before there was one
        **test_options(config["segmentation"]),
    )
    if detector.selected_on_test:
        log.warning("the epoch of %s was chosen on its test set: its figures there are not fair", path)
    return detector


def _load_foreign(
    path: Path, device: str, weights: str | Path | Sequence[str | Path] | None, soft_clamp: SoftClamp
) -> Detector:
    found = load_foreign(path, soft_clamp)
    nets = found.nets if weights is None else []
    backbone = _backbone(found.backbone, found.image_size, None, path if nets else weights, nets)
    flow = UFlow(backbone.channels, backbone.sizes, found.steps, found.clamp, found.affine)
    for name, tensor in flow.state_dict().items():  # load_state_dict's own message has many lines
        if found.flow[name].shape != tensor.shape:
            shapes = f"{tuple(found.flow[name].shape)}, not {tuple(tensor.shape)}"
            raise ValueError(f"{path} is no U-Flow of {found.backbone}: {name!r} has shape {shapes}")
    flow.load_state_dict(found.flow)
    log.info(
        "%s is a U-Flow of %s: %s at %dx%d (weights: %s), %d scales of %d steps, soft clamp %g * %s",
        path,
        found.origin,
        found.backbone,
        *backbone.image_size,
        "in the file" if nets else backbone.weights_source,
        len(flow.sizes),
        flow.steps,
        flow.clamp,
        soft_clamp.replace("clamp", f"{flow.clamp:g}"),
    )
    if found.origin == "anomalib":
        why = "anomalib trains latents smaller than its promise needs, and defects are missed"
    else:
        why = UNCALIBRATED
    log.info("not calibrated: %s; use detector.calibrate(good_images), then detector.save", why)
    return Detector(backbone, flow, device=device)


def _backbone(
    name: str,
    image_size: tuple[int, int] | None,
    strides: Sequence[int] | None,
    weights: str | Path | Sequence[str | Path] | None,
    nets: Sequence[Mapping[str, Tensor]] = (),
) -> Backbone:
    """`create_backbone` with `nets`, read from `weights`, or those that this file, made elsewhere, holds."""
    files = [weights] if isinstance(weights, str | Path) else list(weights or [])
    if not nets and len(files) == 1 and is_foreign(Path(files[0])):
        nets = load_nets(Path(files[0]), name)
    if not nets:
        return create_backbone(name, image_size, strides, weights)
    try:
        backbone = create_backbone(name, image_size, strides, nets)
    except ValueError as error:
        raise ValueError(f"{files[0]}: {error}") from None
    backbone.weights_source = f"file {Path(files[0]).name}"
    return backbone


@dataclass
class _Cached:
    """The features of images, or of their tiles, and how these make up the images."""

    features: FeatureCache
    tilings: list[tiling.Tiling]
    sizes: list[tuple[int, int]]  # (H, W) of the images
    device: torch.device
    copies: int  # of each tile, one after another, itself first

    @classmethod
    def of(
        cls,
        net: Backbone,
        sources: Sequence[ImageLike],
        tile: bool,
        device: torch.device,
        progress: bool | Progress,
        copies: bool = False,
    ) -> _Cached:
        """With `copies`, those that `turned_copies` makes, where there are few enough tiles for that."""
        sizes = [image_size(source) for source in sources]
        if tile:
            tilings = [tiling.tiled(size, net.image_size, net.strides[-1]) for size in sizes]
        else:
            tilings = [tiling.whole(net.image_size, net.strides[-1])] * len(sources)
        inputs = chain.from_iterable(t.cut(read_image(source)) for t, source in zip(tilings, sources, strict=True))
        count, each = sum(map(len, tilings)), 1
        if copies and count <= training.AUGMENTED:
            each = len(turned_copies(np.empty((*net.image_size, 3), np.uint8)))
            inputs = chain.from_iterable(map(turned_copies, inputs))
        features = compute_features(net, inputs, count * each, device=device, progress=progress)
        return cls(features, tilings, sizes, device, each)

    def tiles(self, of: Sequence[int]) -> list[int]:
        """Where the features of the tiles of some images are."""
        first = np.cumsum([0, *map(len, self.tilings)]).tolist()
        return [self.copies * number for i in of for number in range(first[i], first[i + 1])]

    def energies(self, detector: Detector, of: Sequence[int]) -> list[Energies]:
        """What a detector of these features' backbone sees in some images."""
        features = (self.features.batch(chunk, self.device) for chunk in batches(self.tiles(of), 16))
        return join([self.tilings[i] for i in of], map(detector._energies_of_features, features))

    def blend(self, detector: Detector, of: Sequence[int], seed: int) -> scoring.Blend:
        """What responds how much, latents and distances, to made changes of some images that neither has learnt."""
        rng, tiles = np.random.default_rng(seed), self.tiles(of)
        deviations = [std for _, std in channel_moments(self.features, tiles)]
        good, changed, areas = [], [], []
        for chunk in batches(rng.choice(tiles, CHANGED).tolist(), 16):
            features = self.features.batch(chunk, self.device)
            made, where = change(features, deviations, rng)
            good.append(detector._energies_of_features(features))
            changed.append(detector._energies_of_features(made))
            areas.append(where)
        before, after = ([np.concatenate(scale) for scale in zip(*each, strict=True)] for each in (good, changed))
        return scoring.Blend.of(before, after, np.concatenate(areas), detector.latent_channels)

    def truth(self, dataset: Dataset, size: int = 256) -> list[NDArray[np.bool_] | None]:
        """The masks of a test set's images, these, as the published protocol compares them."""
        masks = [sample.truth(own) for sample, own in zip(dataset.test, self.sizes, strict=True)]
        return [None if mask is None else resize_mask(mask, (size, size)) for mask in masks]

    def pixel_auroc(self, detector: Detector, truth: Sequence[NDArray[np.bool_] | None]) -> float:
        """Of a detector on these images; those whose truth is None are left out."""
        pixels = metrics.PixelMetrics()
        for i, mask in enumerate(truth):
            if mask is not None:
                (energies,) = self.energies(detector, [i])
                maps = scoring.anomaly_map_from_energies(energies, detector.latent_channels, mask.shape[0])
                pixels.update(maps[0], mask)
        return pixels.auroc()


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


def fingerprint(
    backbone: Backbone,
    flow_steps: int,
    settings: TrainingSettings,
    sources: Sequence[ImageLike],
    held_out: float,
    tile: bool = False,
    select_on_test: Dataset | None = None,
) -> dict[str, Any]:
    """What must be equal for an interrupted training to go on, and for a model to be the one asked for."""
    run: dict[str, Any] = {
        "backbone": backbone.name,
        "image_size": list(backbone.image_size),
        "strides": list(backbone.strides),
        "weights_sha256": backbone.weights_sha256,
        "flow_steps": flow_steps,
        "settings": asdict(settings),
        "images": digest(sources),
        "held_out": held_out,
    }
    if tile:
        run["tile"] = True
    if select_on_test is not None:
        run["selected_on_test"] = digest(select_on_test.test_files)
    return run
