"""What the methods of a comparison said of each image, kept beside its tables so that a page can show it.

Of U-Flow the model is kept, of other methods small maps. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..files import atomic_write
from .evaluation import ImageOutput

__all__ = ["KeptMaps", "kept_file"]

SIDE = 128  # pixels of the maps that are kept


@dataclass(frozen=True)
class KeptMaps:
    """The maps of one method on the test images of one category.

    Attributes:
        maps: (n, SIDE, SIDE) float32, in the method's own unit.
        scores: (n,) float64.
        usual: the median of its maps of good training images.
        fair: the lowest threshold that leaves at most one false pixel an image on good training images.
    """

    maps: NDArray[np.float32]
    scores: NDArray[np.float64]
    usual: float
    fair: float

    @classmethod
    def from_outputs(cls, outputs: Sequence[ImageOutput], normal_medians: Iterable[float], fair: float) -> KeptMaps:
        """Shrink the maps of all test images."""
        maps = [Image.fromarray(output.anomaly_map.astype(np.float32)) for output in outputs]
        small = [np.asarray(each.resize((SIDE, SIDE), Image.Resampling.BOX)) for each in maps]
        scores = np.array([output.score for output in outputs], np.float64)
        return cls(np.stack(small), scores, float(np.median(list(normal_medians))), fair)

    def save(self, path: Path) -> None:
        """Write an .npz file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        levels = np.array([self.usual, self.fair])
        with atomic_write(path) as temporary:
            np.savez_compressed(temporary, maps=self.maps, scores=self.scores, levels=levels)

    @classmethod
    def load(cls, path: Path) -> KeptMaps:
        """Read what `save` wrote; ValueError, one line, where it is damaged."""
        try:
            with np.load(path, allow_pickle=False) as file:
                usual, fair = map(float, file["levels"])
                return cls(file["maps"], file["scores"], usual, fair)
        except (ValueError, KeyError, EOFError, BadZipFile) as error:
            raise ValueError(f"{path} is damaged ({error}): delete it, and compare again") from None


def kept_file(output: Path, category: str, method: str, seed: int, epochs: int | None) -> Path:
    """Where a method's maps are kept, or of U-Flow its model."""
    passes = "" if epochs is None else f"-{epochs}"
    suffix = ".uflow" if method == "uflow" else ".npz"
    return output / "kept" / f"{category}-{method.replace(':', '.')}-{seed}{passes}{suffix}"
