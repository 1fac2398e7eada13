"""A post-processor of anomalib that is calibrated on good images. Made for anomalib 2.7."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..calibration_log import warn_of_few
from ..conformal import check_alpha, check_look_alpha, conformal_shift
from ..extras import pip_install
from ..map_threshold import Threshold
from ..schema import parse, read_json, write_json

__all__ = ["CalibratedPostProcessor", "Finding", "check_version"]

log = logging.getLogger("uflow")

TESTED_VERSION = (2, 7)  # of anomalib
UNCALIBRATED = "not calibrated: run Engine.fit or Engine.validate first, with good images in the validation set"
CALM = 0.125  # where what is usual on good images comes to lie, of maps and scores between 0 and 1


def check_version(version: str) -> None:
    """ImportError for an anomalib that is too old; a line of the log for one that is newer than was tested.

    >>> check_version("1.2.0")
    Traceback (most recent call last):
    ...
    ImportError: uflow.interop.anomalib is made for anomalib 2.7, not 1.2.0: pip install "uflow-ad[compare]"
    """
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    tested = ".".join(map(str, TESTED_VERSION))
    if found < TESTED_VERSION:
        raise ImportError(
            f"uflow.interop.anomalib is made for anomalib {tested}, not {version}: {pip_install('compare')}"
        )
    if found > TESTED_VERSION:
        log.warning("uflow.interop.anomalib was tested with anomalib %s, and %s is installed", tested, version)


check_version(metadata.version("anomalib"))
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own imports: nothing a user can act on
    from anomalib.data import InferenceBatch
    from lightning.pytorch import Callback

if TYPE_CHECKING:
    from anomalib.data import Batch
    from lightning.pytorch import LightningModule, Trainer


@dataclass(frozen=True)
class _State:
    """What a post-processor has learnt, as it stands in a checkpoint.

    Raises:
        ValueError: probabilities out of range, or a part of what is learnt together.
    """

    alpha: float
    look_alpha: float | None
    map_levels: tuple[float, float] | None
    score_levels: tuple[float, float] | None
    threshold: dict[str, Any] | None

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        check_look_alpha(self.alpha, self.look_alpha)
        if (self.map_levels is None) != (self.score_levels is None) or (self.map_levels and self.threshold is None):
            raise ValueError("map_levels, score_levels and threshold are learnt together, and one of them is missing")


@dataclass(frozen=True)
class _GoodImage:
    """What a model says of a good image: what is judged, the least and the largest value of its map, its score."""

    evidence: Any
    low: float
    high: float
    score: float


@dataclass(frozen=True)
class Finding:
    """What a threshold says of an image."""

    mask: NDArray[np.bool_]
    p_value: float  # NaN where nothing was calibrated
    verdict: str


# The post-processor ---------------------------------------------------------------------------------------------------


class CalibratedPostProcessor(nn.Module, Callback):  # type: ignore[misc]
    """Mask, label and p-value for any model of anomalib that gives anomaly maps.

    The good images of the validation set calibrate it, at the end of each validation: those that are defective have no
    part. Of new good images like them, at most a share `alpha` is labelled anomalous. The data module must hold the
    validation images out of training *and* of the test: ``val_split_mode="from_train"``.

        model = Padim(post_processor=CalibratedPostProcessor(alpha=0.05))
        engine.fit(model, datamodule=Folder(..., val_split_mode="from_train", val_split_ratio=0.3))

    A batch that it has seen holds ``pred_mask``, ``pred_label``, and two attributes more: ``p_value``, (B,) float32,
    and ``verdict``, a list of "good", "look" or "reject". Maps and scores are scaled to lie between 0 and 1, in the
    order they had; 0.5 is what a share `alpha` of good images exceeds.

    In a graph (ONNX, OpenVINO) there is no tree of regions. There the map stays as the model made it, and mask and
    label say where it exceeds what a share `alpha` of good images reach: alpha is kept, and the size of regions does
    not count. ``threshold.apply(prediction.anomaly_map.squeeze())`` in Python gives mask and p-value after all.

    Attributes:
        threshold: what was learnt; None before. `Threshold.save` writes it as a JSON file.
    """

    threshold: Any

    def __init__(self, alpha: float = 0.05, look_alpha: float | None = None) -> None:
        """Raises ValueError for an `alpha` outside (0, 1), or a `look_alpha` that is not above it."""
        super().__init__()
        check_alpha(alpha)
        check_look_alpha(alpha, look_alpha)
        self.alpha, self.look_alpha = alpha, look_alpha
        self.threshold = None
        self._map_levels: tuple[float, float] | None = None  # what is usual, and the limit at alpha
        self._score_levels: tuple[float, float] | None = None
        self._good: list[_GoodImage] = []

    # Learning

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Batch, *args: Any, **kwargs: Any
    ) -> None:
        """Keep what the model says of good images."""
        if trainer.sanity_checking:
            return
        if trainer.world_size > 1:
            raise RuntimeError("the threshold is calibrated in one process: validate with devices=1")
        if outputs.gt_label is None:
            raise ValueError("the validation images have no labels, so none is known to be good: use a labelled set")
        maps, scores = self._maps_and_scores(outputs)
        for index in np.flatnonzero(~outputs.gt_label.bool().cpu().numpy()).tolist():
            low, high = float(maps[index].min()), float(maps[index].max())
            self._good.append(_GoodImage(self._evidence(outputs, index), low, high, float(scores[index])))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Learn the threshold from them."""
        good, self._good = self._good, []
        if trainer.sanity_checking:
            return
        if not good:
            log.warning("no good images among those of the validation: the threshold is not calibrated")
            return
        if getattr(getattr(trainer, "datamodule", None), "val_split_mode", None) in ("same_as_test", "from_test"):
            log.warning(
                "the validation images come from the test set, and calibrate the threshold: what is measured on that "
                "set is not fair; give the data module val_split_mode='from_train'"
            )
        warn_of_few(len(good), self.alpha, "good validation images")
        self.threshold = self._learn([image.evidence for image in good])
        self._map_levels = float(np.median([image.low for image in good])), self._limit([i.high for i in good])
        scores = [image.score for image in good]
        self._score_levels = float(np.median(scores)), self._limit(scores)

    def _learn(self, maps: Sequence[Any]) -> Any:
        return Threshold.from_good_maps(maps, self.alpha, self.look_alpha)

    def _limit(self, numbers: Sequence[float]) -> float:
        """What a share alpha of good images exceeds at most."""
        return conformal_shift(np.negative(numbers), self.alpha)

    # Judging

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Batch, *args: Any, **kwargs: Any
    ) -> None:
        """Judge a batch of `Engine.test`."""
        self.post_process_batch(outputs)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Batch, *args: Any, **kwargs: Any
    ) -> None:
        """Judge a batch of `Engine.predict`."""
        self.post_process_batch(outputs)

    def post_process_batch(self, batch: Batch) -> None:
        """Put mask, label, p-value and verdict into a batch, in place; see the class."""
        found, maps, scores = self._judge(batch)
        device = maps.device
        batch.anomaly_map, batch.pred_score = maps, scores
        batch.pred_mask = torch.from_numpy(np.stack([image.mask for image in found])).to(device)
        batch.pred_label = torch.tensor([bool(image.mask.any()) for image in found], device=device)
        batch.p_value = torch.tensor([image.p_value for image in found], device=device)
        batch.verdict = [image.verdict for image in found]

    def forward(self, predictions: InferenceBatch) -> InferenceBatch:
        """Mask and label of what a model says, as `TorchInferencer` and exports ask for them; see the class."""
        if torch.compiler.is_compiling():
            return self._in_graph(predictions)
        found, maps, scores = self._judge(predictions)
        mask = torch.from_numpy(np.stack([image.mask for image in found])).to(maps.device).view(maps.shape)
        return InferenceBatch(pred_score=scores, pred_label=mask.flatten(1).any(1), anomaly_map=maps, pred_mask=mask)

    def _judge(self, outputs: Any) -> tuple[list[Finding], Tensor, Tensor]:
        """What the threshold says of each image; maps and scores, between 0 and 1 once they have been calibrated."""
        maps, scores = self._maps_and_scores(outputs)
        size = (maps.shape[-2], maps.shape[-1])
        found = [self._judge_image(self._evidence(outputs, index), size) for index in range(len(maps))]
        if self._map_levels is None or self._score_levels is None:
            return found, maps, scores
        return found, _scale(maps, *self._map_levels), _scale(scores, *self._score_levels)

    def _judge_image(self, evidence: Any, size: tuple[int, int]) -> Finding:
        found = self._calibrated().apply(evidence, size)
        return Finding(found.mask, found.p_value, found.verdict)

    def _calibrated(self) -> Any:
        if self.threshold is None:
            raise ValueError(UNCALIBRATED)
        return self.threshold

    def _evidence(self, outputs: Any, index: int) -> Any:
        """What the threshold judges of an image."""
        values = outputs.anomaly_map[index].detach().float().cpu().numpy()
        return values.reshape(values.shape[-2:])

    def _maps_and_scores(self, outputs: Any) -> tuple[Tensor, Tensor]:
        if outputs.anomaly_map is None:
            raise ValueError("the model gives no anomaly maps, so there is nothing to judge: use one that does")
        maps: Tensor = outputs.anomaly_map
        scores = maps.flatten(1).amax(1) if outputs.pred_score is None else outputs.pred_score
        return maps, scores

    def _in_graph(self, predictions: InferenceBatch) -> InferenceBatch:
        """What can be said without a tree of regions: where the map exceeds what alpha allows."""
        maps, scores = self._maps_and_scores(predictions)
        if self._map_levels is None:
            raise ValueError(UNCALIBRATED)
        mask = maps > self._map_levels[1]
        return InferenceBatch(pred_score=scores, pred_label=mask.flatten(1).any(1), anomaly_map=maps, pred_mask=mask)

    # Checkpoints

    def get_extra_state(self) -> Tensor:
        """All that was learnt, as JSON in bytes: part of the model's state dict."""
        threshold = None if self.threshold is None else self.threshold.to_dict()
        state = _State(self.alpha, self.look_alpha, self._map_levels, self._score_levels, threshold)
        return torch.frombuffer(bytearray(write_json(asdict(state)).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Read what `get_extra_state` gave.

        Raises:
            ValueError: not that, or damaged; what was learnt before stays.
        """
        where = "the post-processor's state is damaged: it"
        if not isinstance(state, Tensor) or state.dtype != torch.uint8 or state.ndim != 1:
            raise ValueError(f"{where} should be bytes in a tensor, found {type(state).__name__}")
        content = parse(_State, read_json(state.cpu().numpy().tobytes(), where), where)
        self.threshold = None if content.threshold is None else self._threshold_from_dict(content.threshold)
        self.alpha, self.look_alpha = content.alpha, content.look_alpha
        self._map_levels, self._score_levels = content.map_levels, content.score_levels

    def _threshold_from_dict(self, content: dict[str, Any]) -> Any:
        return Threshold.from_dict(content)


def _scale(values: Tensor, usual: float, limit: float) -> Tensor:
    """Numbers between 0 and 1 in the same order: `usual` becomes `CALM`, `limit` 0.5."""
    distance = values - limit
    reach = max(limit - usual, 1e-6) * CALM / (0.5 - CALM)
    return 0.5 + 0.5 * distance / (distance.abs() + reach)
