"""Inside anomalib: a calibrated threshold for any of its models, U-Flow as one of its models, ours as an inferencer.

Made for anomalib 2.7. anomalib's own import takes seconds; nothing else of this package imports it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import load, segmentation
from ..backbones import Backbone, create_backbone
from ..detector import Detector
from ..flow import UFlow as Flow
from ..network import TorchNetwork
from ..predictor import Predictor
from ..recipe import TrainingSettings
from ..scoring import Evidence
from ..threshold import CalibratedThreshold, PaperThreshold, threshold_from_dict
from .anomalib_post_processor import CalibratedPostProcessor, Finding

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own imports: nothing a user can act on
    from anomalib import LearningType
    from anomalib.data import ImageBatch, InferenceBatch
    from anomalib.models.components import AnomalibModule
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms.v2 import Resize

if TYPE_CHECKING:
    from anomalib.data import Batch

__all__ = ["CalibratedPostProcessor", "Inferencer", "UFlow"]

# U-Flow as a model of anomalib ----------------------------------------------------------------------------------------


class UFlow(AnomalibModule):  # type: ignore[misc]
    """U-Flow for anomalib's `Engine`: our backbones and flow, and our mask, label and p-value in its predictions.

    The mask is `segmentation.log_nfa` of the latents, in C++: by the paper's test before good images have been
    validated on, with alpha's promise after. What `Detector.fit` has beyond this, the memory of good images and the
    choice of the best epoch, is not here; `to_detector` gives what can be saved as our model file and exported.

        model = UFlow(image_size=256)
        engine.fit(model, datamodule=Folder(..., val_split_mode="from_train", val_split_ratio=0.3))
        model.to_detector().save("tile.uflow")
    """

    def __init__(
        self,
        backbone: str = "efficientnet_lite0",
        image_size: int | Sequence[int] = 256,
        flow_steps: int = 4,
        learning_rate: float = TrainingSettings.learning_rate,
        alpha: float = 0.05,
        weights: str | None = None,
        **components: Any,
    ) -> None:
        """Make a model to be fitted.

        Args:
            backbone: name, see `backbones.create_backbone`.
            image_size: side, or (height, width), of the network's input.
            flow_steps: coupling steps a scale.
            learning_rate: of Adam.
            alpha: wished probability that a good image is labelled anomalous.
            weights: file with the backbone's weights; None finds them.
            **components: `pre_processor`, `post_processor`, `evaluator`, `visualizer`, as for anomalib's models.
        """
        frozen = create_backbone(backbone, image_size, None, weights)
        parts = {"pre_processor": PreProcessor(Resize(frozen.image_size, antialias=True))}
        flow = Flow(frozen.channels, frozen.sizes, flow_steps, affine=frozen.layer_norm)
        parts["post_processor"] = _EvidencePostProcessor(alpha, flow.latent_channels)
        super().__init__(**parts | components)
        self.model = _Net(frozen, flow)
        self.learning_rate = learning_rate

    def training_step(self, batch: Batch, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the log-likelihood of a batch, in nats a dimension."""
        if self.global_step == 0:
            self._standardise(batch.image)
        latents, log_det = self.model(batch.image)
        loss: Tensor = self.model.flow.nll(latents, log_det).mean() / sum(z[0].numel() for z in latents)
        self.log("train_nll", loss, on_step=False, on_epoch=True, batch_size=len(batch.image))
        return loss

    @torch.no_grad()
    def _standardise(self, images: Tensor) -> None:
        """Start where features of the first batch have mean 0 and variance 1: the steps need not find their size."""
        maps = self.model.backbone.normalised(self.model.backbone(images))
        if self.model.flow.affine:
            cells = [values.transpose(0, 1).flatten(1) for values in maps]
            self.model.flow.standardise([(c.mean(1), c.std(1)) for c in cells])

    def validation_step(self, batch: Batch, *args: Any, **kwargs: Any) -> Batch:
        """The batch, with the model's predictions and their evidence."""
        predictions = self.model(batch.image)
        batch.update(**predictions._asdict())
        batch.evidence = predictions.evidence
        return batch

    test_step = predict_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, as the paper has it."""
        return torch.optim.Adam(self.model.flow.parameters(), self.learning_rate, weight_decay=1e-5)

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """No sanity check: there is nothing to check before training."""
        return {"num_sanity_val_steps": 0}

    @property
    def learning_type(self) -> LearningType:
        """Good images alone."""
        return LearningType.ONE_CLASS

    def to_detector(self) -> Detector:
        """The same network and threshold as our own detector, on the CPU: to be saved, exported, compared.

        It resizes images by Pillow, not by torchvision, which moves maps a little: calibrate it on good images where
        the promise is to hold to the letter.
        """
        backbone, flow = copy.deepcopy(self.model.backbone), copy.deepcopy(self.model.flow)
        network = TorchNetwork(backbone, flow, device="cpu")
        return Detector(network, Predictor(network, self.post_processor.threshold))


class _EvidencePredictions(InferenceBatch):  # type: ignore[misc]
    """What a model says, and what its threshold judges."""

    evidence: Evidence


class _Net(nn.Module):
    """Images (B, 3, H, W) in [0, 1] to latents in training, else to a map, (B, 1, H, W), and scores."""

    def __init__(self, backbone: Backbone, flow: Flow) -> None:
        super().__init__()
        self.backbone, self.flow = backbone, flow

    def forward(self, images: Tensor) -> Any:
        latents, log_det = self.flow(self.backbone.normalised(self.backbone(images)))
        if self.training:
            return latents, log_det
        size = images.shape[-2:]
        likely = [
            F.interpolate(torch.exp(-0.5 * z.square().mean(1, keepdim=True)), size, mode="bilinear") for z in latents
        ]
        maps = 1 - torch.stack(likely).mean(0)
        predictions = _EvidencePredictions(pred_score=maps.amax((1, 2, 3)), anomaly_map=maps)
        if not torch.compiler.is_compiling():
            predictions.evidence = Evidence(segmentation.energies([z.detach() for z in latents]))
        return predictions


class _EvidencePostProcessor(CalibratedPostProcessor):
    """The same on U-Flow's evidence, the energies of its latents, in place of its map."""

    def __init__(self, alpha: float, latent_channels: Sequence[int]) -> None:
        super().__init__(alpha)
        self.latent_channels = tuple(latent_channels)
        self.threshold = PaperThreshold()

    def _evidence(self, outputs: Any, index: int) -> Evidence:
        found: Evidence = outputs.evidence
        return found.with_maps([values[index : index + 1] for values in found.maps])

    def _learn(self, maps: Sequence[Evidence]) -> CalibratedThreshold:
        return CalibratedThreshold.from_good_images(maps, self.alpha, self.look_alpha)

    def _judge_image(self, evidence: Evidence, size: tuple[int, int]) -> Finding:
        (log_nfa,) = self.threshold.log_nfa(evidence, self.latent_channels, size)
        lowest = float(log_nfa.min())
        p_value = self.threshold.p_value(lowest)
        return Finding(log_nfa < 0, np.nan if p_value is None else p_value, self.threshold.verdict(lowest))

    def _threshold_from_dict(self, content: dict[str, Any]) -> PaperThreshold | CalibratedThreshold:
        return threshold_from_dict(content)


# Our models as inferencers --------------------------------------------------------------------------------------------


class Inferencer:
    """A model of ours, exported or not, where anomalib's inferencers are used: `predict` gives an `ImageBatch`.

    The batch has the image's own size, and the attributes that `CalibratedPostProcessor` gives. No anomalib model is in
    it: `uflow.load` and `Predictor.predict` do the work.
    """

    def __init__(self, path: str | PathLike[str], device: str = "auto") -> None:
        """`path` and `device` are for `uflow.load`."""
        self.model = load(Path(path), device)

    def predict(self, image: Any) -> ImageBatch:
        """Judge one image: a file's path, a PIL image, an (H, W, 3) uint8 array, a (3, H, W) float tensor in [0, 1].

        Raises what `Predictor.predict` raises.
        """
        if isinstance(image, Tensor) and image.is_floating_point():
            image = (255 * image).round().byte().cpu()
        found: Any = self.model.predict(image)
        pixels = torch.from_numpy(found.image.transpose(2, 0, 1).astype(np.float32) / 255)
        batch = ImageBatch(
            image=pixels[None],
            pred_score=torch.tensor([found.score]),
            pred_label=torch.tensor([found.is_anomalous]),
            anomaly_map=torch.from_numpy(found.anomaly_map)[None],
            pred_mask=torch.from_numpy(found.mask)[None],
            image_path=None if found.path is None else [str(found.path)],
        )
        batch.p_value = torch.tensor([np.nan if found.p_value is None else found.p_value])
        batch.verdict = [found.verdict]
        return batch
