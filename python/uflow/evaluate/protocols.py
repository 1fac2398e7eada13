"""How maps and truth are compared: at which size, and how the figures are made that a definition leaves open.

Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import segmentation

__all__ = [
    "PAPER_SIZE",
    "FairRule",
    "Oracle",
    "Protocol",
    "ProtocolName",
    "as_protocol",
    "parse_oracle",
    "published_truth",
]

ProtocolName = Literal["paper", "native"]
FairRule = Literal["sentence", "corners"]
Oracle = tuple[float, float, float] | None  # lowest, highest and step of the log10 NFA that are tried; None is any

PAPER_SIZE = 256  # side of the maps that the published figures compare


@dataclass(frozen=True)
class Protocol:
    """How a method is compared with the truth.

    Attributes:
        name: "paper": maps and truth of `size` x `size`; "native": at each image's own size.
        size: side of the maps for "paper".
        oracle: thresholds of log10 NFA that the best mIoU is sought over: lowest, highest, step; None is any
            threshold. A method without log NFA is tried at any threshold of its map.
        fair: how the threshold of the map that leaves one false pixel a training image is read off. "sentence": the
            lowest that leaves no more, as the paper's sentence says. "corners": as the published figures were made, on
            the ROC curve that keeps its corner points alone, straight in between (`PixelMetrics.corner_threshold`).

    Raises:
        ValueError: a name, size, range or rule that there is not.

    >>> Protocol("paper", oracle=(-10, 10, 5)).thresholds
    [-10.0, -5.0, 0.0, 5.0, 10.0]
    """

    name: ProtocolName = "paper"
    size: int = PAPER_SIZE
    oracle: Oracle = None
    fair: FairRule = "sentence"

    def __post_init__(self) -> None:
        for field, value, known in (("protocol", self.name, ProtocolName), ("fair", self.fair, FairRule)):
            if value not in get_args(known):
                raise ValueError(f"{field} must be one of {', '.join(get_args(known))}, not {value!r}")
        if self.size < 1:
            raise ValueError(f"the side of the maps must be at least 1, not {self.size}")
        if self.oracle is not None:
            low, high, step = self.oracle
            if not (np.isfinite(self.oracle).all() and low <= high and step > 0):
                raise ValueError(f"the oracle tries thresholds from LOW to HIGH by a STEP above 0, not {self.oracle}")

    @property
    def map_size(self) -> tuple[int, int] | None:
        """(height, width) of all maps; None for each image's own."""
        return (self.size, self.size) if self.name == "paper" else None

    @property
    def thresholds(self) -> list[float] | None:
        """The log10 NFA that the oracle tries; None for any."""
        if self.oracle is None:
            return None
        low, high, step = self.oracle
        return [float(low + step * i) for i in range(int(np.floor((high - low) / step + 1e-9)) + 1)]

    @property
    def oracle_name(self) -> str:
        """ "any", or "LOW:HIGH:STEP"."""
        return "any" if self.oracle is None else ":".join(f"{number:g}" for number in self.oracle)

    def __str__(self) -> str:
        """The name, and what is not the default: equal texts, equal figures."""
        other = [] if self.oracle is None else [f"oracle {self.oracle_name}"]
        return ", ".join([self.name, *other, *(["fair corners"] if self.fair == "corners" else [])])


def as_protocol(protocol: str | Protocol) -> Protocol:
    """The protocol of a name, with its defaults.

    Raises:
        ValueError: no such name.
    """
    return protocol if isinstance(protocol, Protocol) else Protocol(protocol)  # type: ignore[arg-type]  # it checks


def parse_oracle(text: str) -> Oracle:
    """The thresholds in "any" or "LOW:HIGH:STEP", in log10 NFA.

    >>> parse_oracle("-300:20:1")
    (-300.0, 20.0, 1.0)

    Raises:
        ValueError: another text, "published" among them: the paper does not state its range.
    """
    if text == "any":
        return None
    if text == "published":
        raise ValueError(
            "--oracle published: the paper does not say which thresholds its best mIoU is sought over; "
            "give them in log10 NFA as LOW:HIGH:STEP, or any"
        )
    parts = text.split(":")
    try:
        low, high, step = map(float, parts)
    except ValueError:
        raise ValueError(f"--oracle is any, or LOW:HIGH:STEP in log10 NFA, got {text!r}") from None
    return low, high, step


def published_truth(
    truth: NDArray[np.bool_], size: tuple[int, int], input_size: tuple[int, int] | None = None
) -> NDArray[np.bool_]:
    """The defective pixels at the size of the maps, as the published figures have them.

    As a picture of 0 and 255 it goes to the network's input size by Pillow's bilinear filter, which averages; from
    there bilinearly without antialiasing (align_corners=False) to `size`; then above one half. Thin defects may vanish.

    Args:
        truth: (H, W) bool, at the image's own size.
        size: (height, width) of the maps.
        input_size: (height, width) of the network's input; None leaves the first step out, as where tiles keep the
            image's own resolution.

    Raises:
        ValueError: a truth that is not (H, W) bool.
    """
    if truth.dtype != np.bool_ or truth.ndim != 2 or truth.size == 0:
        raise ValueError(f"a truth to resize must be (H, W) bool, not {truth.shape} {truth.dtype}")
    grey = Image.fromarray(np.where(truth, np.uint8(255), np.uint8(0)))
    if input_size is not None:
        grey = grey.resize((input_size[1], input_size[0]), Image.Resampling.BILINEAR)
    (shares,) = segmentation.weighted_sum([np.asarray(grey, np.float32)[None] / np.float32(255)], [1.0], size)
    return np.asarray(shares > 0.5)
