"""A service whose model is a formula: it starts in a moment, without torch, and can be killed.

python tests/serve_brightness.py DATA PRODUCT.toml ...
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from uflow.predictor import Predictor
from uflow.scoring import Evidence
from uflow.serve.service import Service

ALPHA = 0.1


class Brightness:
    """Energies that are the mean brightness of each cell: of 32 x 32 pixels, strides 8 and 16, 400 channels a scale."""

    image_size, strides, latent_channels = (32, 32), (8, 16), (400, 400)

    def evidence(self, images: np.ndarray) -> Evidence:
        grey = images.mean(axis=3, dtype=np.float32)
        cells = [grey.reshape(len(grey), 32 // s, s, 32 // s, s) for s in self.strides]
        return Evidence([6 * cell.mean(axis=(2, 4)) for cell in cells])

    def phases(self) -> list[tuple[str, object]]:
        return [("network", self.evidence)]


def noise(count: int, seed: int = 0, least: int = 0) -> list[np.ndarray]:
    """Pictures of 32 x 32 pixels: those with `least` 0 are good, brighter ones are not."""
    return list(np.random.default_rng(seed).integers(least, least + 60, (count, 32, 32, 3), np.uint8))


def make_predictor() -> Predictor:
    """It has been calibrated on dark noise."""
    found = Predictor(Brightness())  # type: ignore[arg-type]
    found.calibrate(noise(30), alpha=ALPHA)
    return found


def main(data: Path, products: list[Path]) -> None:
    service = Service(products, data)
    for judge in service.judges.values():
        judge.live.predictor, judge.live.trouble = make_predictor(), None
    service.start()
    print("Started", flush=True)
    sys.stdin.read()  # until the other side ends it
    service.stop()
    print("Ended", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
