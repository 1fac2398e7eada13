"""The detector: fit on good images, save, load, predict."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from . import distributed, hub, model_file
from .backbones import Backbone, create_backbone
from .files import PathLike, sha256
from .fitting import Selection, fit_parts, make_backbone
from .flow import UFlow
from .images import ImageLike, list_good_sources
from .memory import MemoryBank
from .monitor import Monitor
from .network import TorchNetwork, resolve_device
from .prediction import ModelOrigin, Prediction
from .predictor import Predictor
from .processes import only_one
from .recipe import Recipe
from .roi import Roi
from .threshold import CalibratedThreshold, DecisionRule
from .tiling import Tiling
from .training import Epoch, OnEpoch, Watcher
from .weights import WeightsNotFound

__all__ = ["Detector", "load"]

log = logging.getLogger("uflow")

MAX_UNTOLD_PIXELS = 1 << 24  # of the input of a network whose tensors do not tell its size
KNOWN_SHARE = 0.25  # of the largest squared distance in a typical good image: a cell that is nearer is known

Weights = PathLike | Sequence[PathLike] | None


class Detector:
    """U-Flow from image to mask. Made by `Detector.fit` or `load`.

    ``Detector.fit("data/tile/train/good").predict("part.png").mask`` is the whole of it.

    Attributes:
        network: backbone, flow and memory: what turns images into evidence.
        predictor: what turns evidence into predictions; it holds the threshold.
        history: what each epoch of its training gave.
        record: what `fit` was asked for and learnt from, see `fitting.training_record`; empty where it is not known.
    """

    def __init__(
        self,
        network: TorchNetwork,
        predictor: Predictor | None = None,
        *,
        history: Sequence[Epoch] = (),
        record: dict[str, Any] | None = None,
    ) -> None:
        self.network = network
        self.predictor = predictor or Predictor(network)
        self.history = list(history)
        self.record = record or {}

    # Learning ---------------------------------------------------------------------------------------------------------

    @classmethod
    def fit(  # noqa: PLR0913 (the one call that most users write: keywords with defaults)
        cls,
        images: str | Path | Sequence[ImageLike],
        backbone: str = "efficientnet_lite0",
        *,
        weights: Weights = None,
        device: str = "auto",
        state_file: str | Path | None = None,
        selection: Selection | None = None,
        progress: bool | Progress = True,
        on_epoch: OnEpoch | None = None,
        bgr: bool = False,
        **recipe: Any,
    ) -> Detector:
        """Learn what good images look like.

        A share of the images is kept out of training: the epoch is chosen by their likelihood, and the threshold is
        calibrated on them (see `calibrate`). Where they are fewer than `alpha` needs, more flows are trained, each with
        other images kept out, only to calibrate on those too: seconds for a small set, and minutes for alpha 0.001.
        Small sets are also tried with their turned and mirrored copies and with noise on the features: that flow
        is taken where the images kept out, as they are, are clearly likelier.

        Args:
            images: a folder, a file name pattern, or a list of images (see `predict`); all of them good.
            backbone: `mcait`, `resnet18`, `wide_resnet50_2`, `efficientnet_lite0` to `2`, or any timm model.
            weights: file (two for `mcait`) with the backbone's weights; None finds them, see `weights`.
            device: "auto" (CUDA, then MPS, then CPU), or a torch device name.
            state_file: written after each epoch; where it exists, made by the same call, training goes on from it. The
                trial with copies, and each further flow, has one of its own beside it, which is removed at the end. One
                training at a time holds it: a lock file beside it, ending in ".lock", says so.
            selection: chooses the epoch instead of the held-out images, to reproduce published figures: those of such a
                detector are not fair, and it says so (`selected_on_test`) wherever it goes. See `evaluate.study`.
            progress: show progress bars; a `Progress` shows them among its own.
            on_epoch: called as ``on_epoch(flow, epoch)`` after each epoch, `epoch` being a `training.Epoch`, to track
                it; `flow` says which flow is trained: "first", "augmented" (the trial with copies), or "fold1" and so
                on (those that only calibrate). What it raises ends the training.
            bgr: whether arrays and tensors hold blue first, as OpenCV's do; without it they hold red first.
            **recipe: `image_size`, `quality`, `strides`, `flow_steps`, `settings`, `held_out`, `alpha`, `tile`,
                `hold_out`, `look_alpha`, `bit_depth`, `gain`: see `recipe.Recipe`, which says what each means and what
                it is by default. And `roi`, where in the images parts are judged: an (H, W) bool mask, the path of a
                picture that is white there, or a `roi.RegionOfInterest` with polygons.

        Raises:
            TypeError: an argument that no recipe has.
            ValueError: too few images, or bad input; the message says which and what to do.
            uflow.training.TrainingError: the loss became infinite, or features do not fit on the disk.
            RuntimeError: another training holds the state file.
        """
        asked = Recipe.from_keywords(backbone, **recipe)
        return cls.fit_recipe(
            list_good_sources(images, bgr) if bgr else images,
            asked,
            weights=weights,
            device=device,
            state_file=state_file,
            selection=selection,
            progress=progress,
            on_epoch=on_epoch,
        )

    @classmethod
    def fit_recipe(  # noqa: PLR0913 (the keywords of fit)
        cls,
        images: str | Path | Sequence[ImageLike],
        recipe: Recipe,
        *,
        weights: Weights = None,
        device: str = "auto",
        state_file: str | Path | None = None,
        selection: Selection | None = None,
        progress: bool | Progress = True,
        on_epoch: OnEpoch | None = None,
    ) -> Detector:
        """`fit`, its keywords as one `Recipe`."""
        with ExitStack() as stack:
            file = None if state_file is None else Path(state_file)
            if file is not None and distributed.is_first():
                lock = file.with_name(file.name + ".lock")
                stack.enter_context(only_one(lock, f"a training with the state {file}"))
            sources = list_good_sources(images)
            target = distributed.own_device(resolve_device(device))
            net = make_backbone(sources, recipe, weights).to(target)
            watcher = Watcher(progress, on_epoch) if distributed.is_first() else Watcher(progress=False)
            parts = fit_parts(sources, recipe, net, target, state_file=file, selection=selection, watcher=watcher)
        predictor = Predictor(
            parts.network,
            parts.threshold,
            parts.blend,
            tile=recipe.tile,
            selected_on_test=selection is not None,
            bit_depth=parts.bit_depth,
            gain=recipe.gain,
            roi=recipe.roi,
        )
        return cls(parts.network, predictor, history=parts.training.history, record=parts.record)

    # Predicting: what the predictor does ------------------------------------------------------------------------------

    def predict(
        self, source: ImageLike | Iterable[ImageLike], batch_size: int = 8, *, bgr: bool = False
    ) -> Prediction | list[Prediction] | Generator[Prediction, None, None]:
        """Anomaly map, mask and regions, see `Predictor.predict`."""
        return self.predictor.predict(source, batch_size, bgr=bgr)

    def stream(
        self,
        source: str | Path | Iterable[ImageLike],
        batch_size: int = 8,
        on_tiles: Callable[[int, int], None] | None = None,
        *,
        bgr: bool = False,
    ) -> Generator[Prediction, None, None]:
        """Predict images one after another, see `Predictor.stream`."""
        return self.predictor.stream(source, batch_size, on_tiles, bgr=bgr)

    def calibrate(
        self,
        images: str | Path | Sequence[ImageLike],
        alpha: float = 0.05,
        batch_size: int = 16,
        look_alpha: float | None = None,
        *,
        bgr: bool = False,
        roi: Roi = None,
    ) -> Detector:
        """Learn the threshold anew from good images, without training, see `Predictor.calibrate`; gives itself back."""
        self.predictor.calibrate(images, alpha, batch_size, look_alpha, bgr=bgr, roi=roi)
        return self

    def add_good(self, images: str | Path | Sequence[ImageLike], batch_size: int = 16) -> Detector:
        """Good images that were flagged join the memory and the calibration, without training; gives itself back.

        First the memory: the cells of the images that it does not know, those farther than half the distance that a
        typical good image reaches. Then the calibration, see `Predictor.add_good`: which images, and how strange they
        still are, is kept in the model file.

        Args:
            images: a folder, a file name pattern, or a list of files, PIL images or arrays; all of them good.
            batch_size: images at once.

        Raises:
            ValueError: no images, or a threshold that was not calibrated; then nothing has changed.
        """
        sources, before = list_good_sources(images), self.network.memory
        try:
            self.network.memory = self._memory_with(sources)
            self.predictor.add_good(sources, batch_size)
        except BaseException:
            self.network.memory = before
            raise
        return self

    @torch.no_grad()
    def _memory_with(self, sources: Sequence[ImageLike]) -> MemoryBank | None:
        """The memory, and the cells of further images that it does not know."""
        memory, threshold = self.network.memory, self.threshold
        if memory is None or not isinstance(threshold, CalibratedThreshold):
            return memory
        radii = [KNOWN_SHARE * (scale + 1) / weight for scale, weight in enumerate(threshold.weights.distances)]
        for source in sources:
            image = self.predictor.read(source)
            tiling = self.predictor.tiling(image)
            masks = self._cells_inside(tiling)
            for tile, inside in zip(tiling.cut(self.predictor.seen(image)), masks, strict=True):
                memory = memory.with_unknown_cells(self.network.features(tile[None]), radii, inside)
        return memory

    def _cells_inside(self, tiling: Tiling) -> list[list[Tensor]] | list[None]:
        """Of each tile, its cells that count: (1, h, w) a scale; None is all."""
        roi = self.predictor.roi
        if roi is None:
            return [None] * len(tiling)
        grids = [(tiling.size[0] // stride, tiling.size[1] // stride) for stride in self.network.strides]
        scales = [tiling.split(roi.cells(grid)) for grid in grids]
        return [[torch.from_numpy(part[None].copy()) for part in parts] for parts in zip(*scales, strict=True)]

    def at(self, alpha: float | None = None, look_alpha: float | None = None) -> Detector:
        """The same detector for another alpha, without images, see `Predictor.at`; this one stays as it is."""
        network, predictor = copy.copy(self.network), self.predictor.at(alpha, look_alpha)
        predictor.network = network  # with a memory of its own, should good images be added
        return Detector(network, predictor, history=self.history, record=self.record)

    def monitor(self, false_alarm: float = 0.01, defective: float = 0.1, seed: int = 0) -> Monitor:
        """What watches p-values for a change of the line, see `Predictor.monitor`."""
        return self.predictor.monitor(false_alarm, defective, seed)

    @property
    def threshold(self) -> DecisionRule:
        """The decision rule."""
        return self.predictor.threshold

    # Files ------------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the model file, whole or not at all: safetensors, the rest as JSON in its header.

        The backbone's frozen weights are not in it, only their SHA-256, which `load` checks.
        """
        network, predictor = self.network, self.predictor
        config = {
            "backbone": {
                "name": network.backbone.name,
                "image_size": network.backbone.image_size,
                "strides": network.backbone.strides,
                "weights_source": network.backbone.weights_source,
                "weights_sha256": network.backbone.weights_sha256,
            },
            "flow": {"steps": network.flow.steps, "affine": network.flow.affine, "clamp": network.flow.clamp},
            "predictor": predictor.to_dict(),
            "history": self.history,
            "record": self.record,
        }
        tensors = network.flow.state_dict()
        if network.memory is not None:
            tensors |= {f"memory.vectors_{scale}": kept for scale, kept in enumerate(network.memory.vectors)}
        model_file.save_model(Path(path), tensors, config)
        predictor.origin = ModelOrigin(Path(path).name, sha256(Path(path)))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model file and a card, README.md, into a folder, as `push_to_hub` uploads them."""
        hub.save_pretrained(self, Path(folder), Path(folder).name)

    def push_to_hub(
        self, repo_id: str, *, private: bool = True, token: str | None = None, message: str = "Upload a uflow model"
    ) -> str:
        """Upload the model file, and a card that says what the model knows of itself, to Hugging Face's hub.

        Args:
            repo_id: such as "somebody/tile"; made where it is not there.
            private: whether a new repository is for nobody else.
            token: None is the one that ``hf auth login`` stored.
            message: of the commit.

        Returns:
            The address of the commit.

        Raises:
            What huggingface_hub raises: no permission, no connection.
        """
        return hub.push_to_hub(self, repo_id, private, token, message)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        device: str = "auto",
        weights: Weights = None,
        token: str | None = None,
    ) -> Detector:
        """Read a model of Hugging Face's hub, or a folder that `save_pretrained` wrote. Nothing in it is run.

        Args:
            name: of the repository, such as "somebody/tile", or the folder.
            revision: branch, tag or commit; None is the newest.
            device, weights: see `load`.
            token: see `push_to_hub`.

        Raises:
            FileNotFoundError: neither; or `load`'s reasons.
        """
        return load(hub.find_model(name, revision, token), device, weights)


def load(path: str | Path, device: str = "auto", weights: Weights = None) -> Detector:
    """Read a model file written by `Detector.save`. Nothing in it is run, and nothing is downloaded for it.

    Args:
        path: the model file.
        device: "auto" (CUDA, then MPS, then CPU), or a torch device name.
        weights: file with the backbone's weights, where they cannot be found otherwise.

    Raises:
        FileNotFoundError, ValueError: no such file; cut short, of another version, or no model file at all; or the
            backbone's weights are not those the model was trained with.
        weights.WeightsNotFound: the backbone's weights are nowhere to be found.
    """
    path = Path(path)
    tensors, config = model_file.load_model(path)
    saved = config["backbone"]
    check_tensors(path, tensors, config)
    try:
        backbone = create_backbone(
            saved["name"], tuple(saved["image_size"]), saved["strides"], weights, may_download=False
        )
    except WeightsNotFound as error:
        raise WeightsNotFound(f"{error}; those of {path} came from {saved['weights_source']}") from None
    return detector_from_file(path, tensors, config, backbone, device)


def check_tensors(path: Path, tensors: Mapping[str, Tensor], config: dict[str, Any]) -> None:
    """ValueError where a file's numbers do not fit its own tensors: before anything is built of such a size."""
    saved, steps = config["backbone"], config["flow"]["steps"]
    held = {name.split(".")[2] for name in tensors if name.startswith("stages.0.")}
    if len(held) != steps:
        raise ValueError(f"{path} is damaged: its flow has {steps} steps, and it holds tensors of {len(held)}")
    for level, stride in enumerate(saved["strides"]):
        wanted = tuple(side // stride for side in saved["image_size"])
        affine = tensors.get(f"affines.{level}.weight")
        if affine is None and config["flow"]["affine"]:
            raise ValueError(f"{path} was written by another version of uflow: train the model again")
        if affine is not None and tuple(affine.shape[1:]) != wanted:
            raise ValueError(
                f"{path} is damaged: its image_size and strides say {wanted} cells, "
                f"and affines.{level}.weight is {tuple(affine.shape)}"
            )
    if not config["flow"]["affine"] and math.prod(saved["image_size"]) > MAX_UNTOLD_PIXELS:
        raise ValueError(f"{path} is damaged: no input of {saved['image_size']} pixels is expected of {saved['name']}")


def _fill(path: Path, flow: UFlow, tensors: Mapping[str, Tensor]) -> None:
    """Give a flow its weights; ValueError where they are not those of such a flow."""
    wanted = flow.state_dict()
    if tensors.keys() != wanted.keys():
        raise ValueError(f"{path} was written by another version of uflow: train the model again")
    for name, tensor in tensors.items():
        found, expected = (tuple(tensor.shape), tensor.dtype), (tuple(wanted[name].shape), wanted[name].dtype)
        if found != expected:
            raise ValueError(f"{path} is damaged: {name!r} is {found[0]} {found[1]}, not {expected[0]} {expected[1]}")
        if name.endswith(".permutation") and not torch.equal(tensor.sort().values, torch.arange(len(tensor))):
            raise ValueError(f"{path} is damaged: {name!r} is no permutation")
    flow.load_state_dict(dict(tensors))


def _memory(path: Path, tensors: dict[str, Tensor], channels: Sequence[int]) -> MemoryBank | None:
    """The memory in a file, taken out of its tensors; None where there is none."""
    vectors = [tensors.pop(name) for name in sorted(tensors) if name.startswith("memory.")]
    wanted = [channels[0], sum(channels[:2])]
    for scale, kept in enumerate(vectors):
        if scale >= len(wanted) or kept.ndim != 2 or kept.shape[1] != wanted[scale] or kept.dtype != torch.float32:
            raise ValueError(f"{path} is damaged: its memory of scale {scale} is {tuple(kept.shape)} {kept.dtype}")
    return MemoryBank(vectors) if vectors else None


def detector_from_file(
    path: Path, tensors: dict[str, Tensor], config: dict[str, Any], backbone: Backbone, device: str
) -> Detector:
    """The detector in a model file that was read, on a backbone that must be the one it was trained with."""
    saved = config["backbone"]
    if backbone.weights_sha256 != saved["weights_sha256"]:
        raise ValueError(
            f"{path} was trained on {saved['name']} weights from {saved['weights_source']}, and those of "
            f"{backbone.weights_source} differ; pass the right file as weights=... ({saved['weights_sha256'][:12]})"
        )
    memory = _memory(path, tensors, backbone.channels)
    flow = UFlow(backbone.channels, backbone.sizes, **config["flow"])
    _fill(path, flow, tensors)
    network = TorchNetwork(backbone, flow, memory, device)
    predictor = Predictor.from_dict(network, config["predictor"])
    predictor.origin = ModelOrigin(path.name, sha256(path))
    history = model_file.parse_history(config["history"], str(path))
    detector = Detector(network, predictor, history=history, record=config["record"])
    alpha = detector.threshold.alpha
    promise = "the paper's test" if alpha is None else f"alpha {alpha:g}"
    log.info("%s: %s at %d x %d (height x width), %s", path, backbone.name, *backbone.image_size, promise)
    if detector.predictor.selected_on_test:
        log.warning("the epoch of %s was chosen on its test set: its figures there are not fair", path)
    return detector
