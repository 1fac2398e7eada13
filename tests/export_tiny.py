"""Writes what test_minimal.py tries a wheel with: a tiny model as ONNX, an image, and what torch says of it.

python tests/export_tiny.py build/wheel-model
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from uflow import Detector
from uflow.deploy.export import export
from uflow.training import TrainingSettings


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    images = [rng.integers(90, 160, (64, 64, 3), np.uint8) for _ in range(13)]
    images[-1][20:40, 24:44] //= 2
    settings = TrainingSettings(epochs=2, batch_size=4)
    detector = Detector.fit(images[:-1], image_size=64, settings=settings, alpha=0.3, device="cpu", progress=False)
    export(detector, folder / "onnx")
    Image.fromarray(images[-1]).save(folder / "image.png")
    (result,) = detector.predict(images[-1:])
    np.savez(folder / "expected.npz", image=images[-1], anomaly_map=result.anomaly_map, mask=result.mask)
    print(f"Wrote {folder}: {result.score:.3f}, {len(result.regions)} regions")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
