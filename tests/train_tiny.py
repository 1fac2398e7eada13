"""What test_distributed.py runs under torchrun: a detector learnt from features that are kept nowhere.

python -m torch.distributed.run --nproc-per-node 2 tests/train_tiny.py IMAGES RESULT.json
"""

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from uflow import Detector, distributed, features, tile_reader
from uflow.training import TrainingSettings


def learn(images: Path) -> dict[str, Any]:
    """Losses and threshold of a training whose second batch has one image, and how many images were read for it."""
    settings = TrainingSettings(epochs=3, batch_size=19, last_batch="remainder", augment=False, memory_size=0)
    with (
        mock.patch.object(features, "fits_somewhere", return_value=False),
        mock.patch.object(tile_reader, "read_image", side_effect=tile_reader.read_image) as read,
    ):
        detector = Detector.fit(images, image_size=64, settings=settings, alpha=0.3, device="cpu", progress=False)
    return {
        "train": [epoch["train_nll"] for epoch in detector.history],
        "held out": [epoch["held_out_nll"] for epoch in detector.history],
        "shift": detector.predictor.threshold.shift,
        "reads": read.call_count,
    }


if __name__ == "__main__":
    with distributed.together():
        found = learn(Path(sys.argv[1]))
        found["all reads"] = int(distributed.sum_of_all(torch.tensor(found["reads"])))
        if distributed.is_first():
            Path(sys.argv[2]).write_text(json.dumps(found))
