"""Test images and the truth about them: what is learnt from, what is tested, which pixels are defective."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..images import image_size, read_mask
from ..roi import RegionOfInterest

__all__ = ["Dataset", "Sample", "open_array"]


@dataclass(frozen=True)
class Sample:
    """One test image: its file, the name of its defect ("good" for none), and where its truth is.

    Attributes:
        masks: files whose union marks the defect; none for a good image, and none where the truth is not known.
        above: the grey value above which a mask marks.
        frame: the image's index where the masks are `.npy` arrays (n, H, W) of a whole video, else None.
    """

    path: Path
    defect: str
    masks: tuple[Path, ...] = ()
    above: int = 127
    frame: int | None = None

    @property
    def is_anomalous(self) -> bool:
        return self.defect != "good"

    def truth(self, shape: tuple[int, int]) -> NDArray[np.bool_] | None:
        """The defective pixels as (H, W) bool, `shape` being that of the image; None where nothing says which they are.

        Raises what `read_mask` raises.
        """
        truth = np.zeros(shape, bool)
        for mask in self.masks:
            if self.frame is None:
                truth |= read_mask(mask, shape, self.above)
            else:
                truth |= _read_frame(mask, self.frame, shape) > self.above
        return truth if self.masks or not self.is_anomalous else None


@dataclass(frozen=True)
class Dataset:
    """One category: the good images to train on, and the test images, good ones and defective ones.

    Attributes:
        layout: the one of `LAYOUTS` it was read as; empty for one that was made otherwise.
    """

    name: str
    train: list[Path]
    test: list[Sample]
    layout: str = ""

    @property
    def test_files(self) -> list[Path]:
        """The test images and their masks, each once."""
        return list(dict.fromkeys(path for sample in self.test for path in (sample.path, *sample.masks)))

    def within(self, roi: RegionOfInterest | None) -> Dataset:
        """Without the test images whose defects all lie outside a region of interest; None leaves out none.

        Neither good nor defective is right for them: what is wrong with such a part, the region is not to see.

        Raises:
            What `Sample.truth` and `images.image_size` raise.
        """
        if roi is None:
            return self
        return replace(self, test=[sample for sample in self.test if not _is_outside(sample, roi)])


def _is_outside(sample: Sample, roi: RegionOfInterest) -> bool:
    """Whether an image has defects, and is known to have them outside of a region only."""
    size = image_size(sample.path)
    truth = sample.truth(size) if sample.is_anomalous else None
    return truth is not None and bool(truth.any()) and not bool((truth & roi.pixels(size)).any())


def open_array(path: Path, owner: Path | None = None) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r")  # what is not indexed is not read
        return array
    except FileNotFoundError:
        raise FileNotFoundError(f"{owner or 'a video'} has no mask: expected {path}") from None
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def _read_frame(path: Path, frame: int, shape: tuple[int, int]) -> NDArray[Any]:
    masks = open_array(path)
    if masks.shape[1:] != tuple(shape):
        seen, wanted = "x".join(map(str, masks.shape[1:])), "x".join(map(str, shape))
        raise ValueError(f"the masks in {path} are {seen} pixels (height x width), the image is {wanted}")
    if masks.dtype.kind not in "biu":
        raise ValueError(f"the masks in {path} are {masks.dtype}, and whole numbers or bool are expected")
    return np.asarray(masks[frame])
