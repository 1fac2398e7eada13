"""The recipe of a training: all that is asked for, in one object that is built once, saved, and compared."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, get_args

from .conformal import check_alpha, check_look_alpha
from .grey_levels import check_bit_depth, check_gain
from .model_header import MAX_SIDE
from .roi import RegionOfInterest, as_roi
from .schema import parse
from .threshold import PaperThreshold

if TYPE_CHECKING:
    from .backbones import Backbone

__all__ = [
    "HoldOut",
    "Quality",
    "Recipe",
    "TailOfEnergy",
    "TrainingSettings",
    "check_strides",
    "check_whole_number",
    "differences",
]

HoldOut = Literal["auto", "random", "last", "groups"]
Quality = Literal["fast", "balanced", "fine"]
TailOfEnergy = Literal["exact", "chernoff", "chernoff-unguarded"]  # the binomial tail counts channels


# Epochs, images a step and learning rate that each category of MVTec AD was published with; "" is for any other data.
PAPER_TRAINING = {
    "carpet": (200, 13, 3.163419554150971e-05),
    "grid": (500, 12, 3.6224837438852e-05),
    "leather": (500, 15, 0.0006124723659154866),
    "tile": (200, 30, 0.006045754779719109),
    "wood": (500, 22, 0.0002466546120460351),
    "bottle": (200, 23, 0.00011289990475381853),
    "cable": (200, 14, 0.001616039111268198),
    "capsule": (200, 14, 0.0012118892498142058),
    "hazelnut": (500, 21, 0.0013268898640895934),
    "metal_nut": (200, 11, 0.0008148858311570219),
    "pill": (200, 11, 0.0010756100354690954),
    "screw": (500, 11, 0.0004155987052838602),
    "toothbrush": (200, 21, 0.0001287312814913699),
    "transistor": (400, 20, 0.00112129043027424),
    "zipper": (200, 24, 4.55246818236177e-05),
    "": (200, 8, 0.0001),
}

MAX_SEED = 2**63 - 1  # what torch's generators take


@dataclass(frozen=True)
class TrainingSettings:
    """How the flow is trained.

    The defaults are for training in minutes on a CPU; `Recipe.paper` has the paper's own. `augment`, `memory_size` and
    `count_affine` concern pyramids of feature maps only, not `mcait`.

    Raises:
        ValueError: a number out of its range; the message names it.
    """

    epochs: int = 16
    batch_size: int = 16
    learning_rate: float = 2e-3
    warm_up: float = 0.2  # share of the steps over which the rate rises from 0, so that a good start is not shaken
    final_rate: float = 0.4  # the rate decays linearly to this share of its start
    weight_decay: float = 1e-5
    patience: int = 10  # epochs without a better one, by whatever chooses, before training stops
    seed: int = 0
    precision: str = "auto"  # float32 | bfloat16 | auto: bfloat16 convolutions on CUDA, float32 elsewhere
    augment: bool = True  # small sets: also train with turned copies and noise, and keep the better flow
    memory_size: int = 5000  # vectors of good images a scale, the distance to which is evidence too; 0: latents alone
    last_batch: str = (
        "even"  # even: all batches of an epoch equal, by one at most | remainder: the last has what is left
    )
    count_affine: bool = True  # False is the published objective: log|det J| of the LayerNorms' affine part is left out

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            check_whole_number(name, getattr(self, name), least=1)
        check_whole_number("memory_size", self.memory_size, least=0)
        check_whole_number("seed", self.seed, least=0, most=MAX_SEED)
        if not 0 <= self.warm_up < 1:
            raise ValueError(f"warm_up is a share of the steps, at least 0 and below 1, got {self.warm_up}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.last_batch not in ("even", "remainder"):
            raise ValueError(f"last_batch must be 'even' or 'remainder', got {self.last_batch!r}")
        for name in ("final_rate", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"precision must be 'auto', 'float32' or 'bfloat16', got {self.precision!r}")


@dataclass(frozen=True)
class Recipe:
    """What a detector is asked to be; `Detector.fit` takes the same as keywords, and the model file holds it.

    Attributes:
        backbone: name, see `backbones.create_backbone`.
        image_size: side, or (height, width), of the network's input; "auto" keeps the images' own shape, see
            `input_size.choose_input_size` (a backbone of fixed size has its own).
        quality: how many pixels "auto" gives the input: "fast" as many as 256 x 256, "balanced" 448 x 448, "fine"
            640 x 640. Time and memory are proportional to them.
        strides: scales of a backbone that offers a choice, each twice the one before; None is the backbone's own.
        flow_steps: coupling steps a scale (paper: 4).
        settings: how the flow is trained.
        held_out: share of images kept out of training; at least 10 of them, at most a third. 0 keeps none out: all are
            learnt from, the last epoch is kept unless a selection chooses, and nothing can be calibrated.
        alpha: wished probability that a good image is flagged; None is the paper's test, uncalibrated.
        tile: cut images into overlapping tiles of the network's size instead of shrinking them to it.
        bit_depth: how many bits 16-bit images use, 8 to 16; "auto" sees it in the images: `bit_depth.find_bit_depth`.
        gain: how many times brighter the images are than what is to be learnt: their values are divided by it, see
            `images.read_image`. It is kept with the model: images to be predicted are divided by it too.
        roi: where in the images parts are judged, see `roi.RegionOfInterest`; None is everywhere.
        hold_out: which images are kept out, "auto", "random", "last" or "groups": see `holdout.choose_folds`.
        look_alpha: wished probability that a good image is not called good, larger than `alpha`: where the looser limit
            alone is passed, `Prediction.verdict` is "look"; None is one limit only.
        tail: of the paper's test, where `alpha` is None: "chernoff", "exact", or "chernoff-unguarded", by which the
            published figures were made; see `segmentation.log_nfa`.

    Raises:
        ValueError: a number out of its range; the message names it.
    """

    backbone: str = "efficientnet_lite0"
    image_size: int | tuple[int, int] | Literal["auto"] = "auto"
    quality: Quality = "balanced"
    strides: tuple[int, ...] | None = None
    flow_steps: int = 4
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    held_out: float = 0.15
    alpha: float | None = 0.05
    tile: bool = False
    hold_out: HoldOut = "auto"
    look_alpha: float | None = None
    tail: TailOfEnergy = "chernoff"
    bit_depth: int | Literal["auto"] = "auto"
    roi: RegionOfInterest | None = None
    gain: float = 1

    def __post_init__(self) -> None:
        check_whole_number("flow_steps", self.flow_steps, least=1)
        self._check_input()
        if self.alpha is not None:
            check_alpha(self.alpha)
        check_look_alpha(self.alpha, self.look_alpha)
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out is a share of the images, at least 0 and below 1, got {self.held_out}")
        if self.held_out == 0 and self.alpha is not None:
            raise ValueError("held_out=0 leaves no good images to calibrate by: alpha must be None (--paper-test)")
        if self.bit_depth != "auto":
            check_bit_depth(self.bit_depth)
        check_gain(self.gain)
        if self.tail not in get_args(TailOfEnergy):
            raise ValueError(f"tail must be one of {', '.join(get_args(TailOfEnergy))}, got {self.tail!r}")
        if self.alpha is not None and self.tail != PaperThreshold.tail:
            raise ValueError(f"tail {self.tail!r} is of the paper's test: alpha must be None (--paper-test)")
        if self.hold_out not in get_args(HoldOut):
            raise ValueError(f"hold_out must be one of {', '.join(get_args(HoldOut))}, got {self.hold_out!r}")
        if self.quality not in get_args(Quality):
            raise ValueError(f"quality must be one of {', '.join(get_args(Quality))}, got {self.quality!r}")

    def _check_input(self) -> None:
        if self.image_size != "auto":
            for side in self.image_size if isinstance(self.image_size, tuple) else (self.image_size,):
                check_whole_number("a side of image_size", side, least=1, most=MAX_SIDE)
        if self.strides is not None:
            check_strides(self.strides)

    @classmethod
    def paper(cls, category: str | None = None, backbone: str = "mcait", **changes: Any) -> Recipe:
        """The published recipe: Adam, the stated schedule without warm-up, all images, the paper's map and test.

        docs/guide/paper.md says what of it equals the published system, and what does not.

        Args:
            category: of MVTec AD, whose rate, batch and epochs were tuned; any other has the published default.
            backbone: "mcait", or a ResNet, whose LayerNorms are trained by the published objective.
            **changes: other arguments of a `Recipe`, such as ``image_size=256``.

        >>> Recipe.paper("carpet").settings.batch_size
        13
        """
        epochs, batch_size, learning_rate = PAPER_TRAINING.get(category or "", PAPER_TRAINING[""])
        settings = TrainingSettings(
            epochs,
            batch_size,
            learning_rate,
            warm_up=0.0,
            patience=20,
            precision="float32",
            augment=False,
            memory_size=0,
            last_batch="remainder",
            count_affine=False,
        )
        published = {"image_size": 448, "flow_steps": 4, "settings": settings, "held_out": 0.0, "alpha": None}
        return cls(backbone, **{**published, **changes})

    @classmethod
    def from_keywords(cls, backbone: str, settings: TrainingSettings | None = None, **keywords: Any) -> Recipe:
        """The recipe of `Detector.fit`'s keywords.

        Raises:
            TypeError: a keyword that no recipe has; the message names those that there are.
        """
        known = [f.name for f in fields(cls)]
        if unknown := [name for name in keywords if name not in known]:
            raise TypeError(f"unknown argument {unknown[0]!r}; known: {', '.join(known)}")
        if keywords.get("image_size", "") is None:
            del keywords["image_size"]
        for name in ("image_size", "strides"):
            if isinstance(keywords.get(name), list | tuple):
                keywords[name] = tuple(keywords[name])
        keywords["roi"] = as_roi(keywords.get("roi"))
        return cls(backbone, settings=settings or TrainingSettings(), **keywords)

    def resolved(self, backbone: Backbone) -> Recipe:
        """The same with the input size and the strides that the backbone has made of it."""
        return replace(self, image_size=backbone.image_size, strides=backbone.strides)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; `from_dict` reads it. `roi` and `gain` are there only where they change anything."""
        return {name: value for name, value in asdict(self).items() if name not in _NEUTRAL or value != _NEUTRAL[name]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Recipe:
        """Read what `to_dict` made, from JSON too.

        Raises:
            ValueError: unknown entries, or values out of range.
        """
        entries = {**_NEUTRAL, **content} if isinstance(content, Mapping) else content
        return parse(cls, entries, "the recipe is damaged: it")


_NEUTRAL = {"roi": None, "gain": 1}  # what a recipe holds that does not mention them


def check_whole_number(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raise ValueError, which names it, unless a value is a whole number in a range."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if int(value) < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    if most is not None and int(value) > most:
        raise ValueError(f"{name} must be at most {most}, got {value}")


def check_strides(strides: Sequence[int]) -> None:
    """Raise ValueError for strides that no pyramid has."""
    if not strides or strides[0] < 1 or any(b != 2 * a for a, b in itertools.pairwise(strides)):
        raise ValueError(f"strides must each be twice the one before, such as (8, 16, 32), got {tuple(strides)}")


def differences(found: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """What was found otherwise than asked for, in words; empty where nothing was.

    >>> differences({"settings": {"epochs": 2}, "alpha": 0.05}, {"settings": {"epochs": 16}, "alpha": 0.05})
    'epochs 2, not 16'
    """
    words = []
    found, asked = (json.loads(json.dumps(dict(each))) for each in (found, asked))  # both as if read from a file
    for key in dict.fromkeys([*asked, *found]):
        value, wanted = found.get(key), asked.get(key)
        if isinstance(wanted, dict) and isinstance(value, dict):
            if inner := differences(value, wanted):
                words.append(inner)
        elif value != wanted:
            is_short = max(len(str(value)), len(str(wanted))) <= 40
            words.append(f"{key} {value}, not {wanted}" if is_short else f"other {key}")
    return ", ".join(words)
