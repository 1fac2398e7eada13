"""What is asked of one product on a line, as a file says it: `product.toml`. Needs no torch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from .conformal import check_alpha, check_look_alpha
from .connections import Entries as Connections
from .connections import (
    SinkSettings,
    WatchedFolder,
    check_secrets,
    read_sinks,
    read_watched_folder,
    write_connections,
)
from .files import PathLike, read_toml
from .grey_levels import check_bit_depth, check_gain
from .images import read_mask
from .predictor import Predictor
from .roi import Polygon, RegionOfInterest
from .schema import parse, write_json

__all__ = ["Pictures", "Product", "files_of", "read_product"]


MAX_NAME = 100  # characters


@dataclass(frozen=True)
class Pictures:
    """Which pictures of parts a service keeps.

    Attributes:
        keep_flagged: those of parts that are not good.
        keep_every: every n-th of all parts; 0 keeps none beside.
        days: how long; None is until the disk's share is full.

    Raises:
        ValueError: a negative number, or no day.
    """

    keep_flagged: bool = True
    keep_every: int = 0
    days: int | None = None

    def __post_init__(self) -> None:
        if self.keep_every < 0:
            raise ValueError(f"keep_every is a number of parts, or 0 for none, got {self.keep_every}")
        if self.days is not None and self.days < 1:
            raise ValueError(f"days must be at least 1, got {self.days}")


@dataclass(frozen=True)
class Product:
    """One product on a line: its model, and how its parts are judged. What is None is as the model has it.

    Attributes:
        name: of the product.
        model: the model file or the exported folder.
        alpha: wished chance that a good part is flagged.
        look_alpha: larger chance that a good part is not called good: what lies between is "look".
        roi: where in the images parts are judged.
        min_area: pixels of the image: a detected region that is smaller does not count.
        tile: whether images are cut into tiles.
        bit_depth: bits that the camera's 16-bit images use.
        gain: how many times brighter its images are than those that were learnt from.
        pictures: which are kept.
        watch: a folder whose images a service judges.
        sinks: whom a service tells of parts.

    Raises:
        ValueError: a number out of its range, or no name.
    """

    name: str
    model: Path
    alpha: float | None = None
    look_alpha: float | None = None
    roi: RegionOfInterest | None = None
    min_area: int = 0
    tile: bool | None = None
    bit_depth: int | None = None
    gain: float | None = None
    pictures: Pictures = field(default_factory=Pictures)
    watch: WatchedFolder | None = None
    sinks: tuple[SinkSettings, ...] = ()

    def __post_init__(self) -> None:
        if not self.name.strip(" .") or not self.name.isprintable() or len(self.name) > MAX_NAME:
            raise ValueError(f"name is a text of one line, at most {MAX_NAME} characters, got {self.name!r:.60}")
        if self.alpha is not None:
            check_alpha(self.alpha)
            check_look_alpha(self.alpha, self.look_alpha)
        elif self.look_alpha is not None:
            check_alpha(self.look_alpha)
        if self.min_area < 0:
            raise ValueError(f"min_area is a number of pixels, got {self.min_area}")
        if self.bit_depth is not None:
            check_bit_depth(self.bit_depth)
        if self.gain is not None:
            check_gain(self.gain)

    def load(
        self,
        device: str = "auto",
        weights: PathLike | Sequence[PathLike] | None = None,
        runtime: str | None = None,
        threads: int | None = None,
    ) -> Predictor:
        """The model, ready to judge parts of this product; the arguments are those of `uflow.load`.

        Raises:
            FileNotFoundError, ValueError: what `uflow.load` and `apply` raise.
        """
        from . import load

        model = load(self.model, device, weights, runtime, threads=threads)  # type: ignore[arg-type]
        return self.apply(model if isinstance(model, Predictor) else model.predictor)

    def apply(self, predictor: Predictor) -> Predictor:
        """A predictor on the same network that judges as this product asks; the one given stays as it is.

        Raises:
            ValueError: a model that has not learnt this product's region of interest, or an alpha for a model that was
                not calibrated.
        """
        if self.roi is not None and not self.roi.is_same(predictor.roi):
            raise ValueError(
                f"{self.model} has not learnt the region of interest of {self.name!r}: train it on that "
                "(uflow train --product), or calibrate it (uflow calibrate --product)"
            )
        asked = self.alpha is not None or self.look_alpha is not None
        found = predictor.at(self.alpha, self.look_alpha) if asked else copy.copy(predictor)
        found.min_area = self.min_area
        self.prepare(found)
        return found

    def prepare(self, predictor: Predictor) -> None:
        """Let a predictor take images as this product's are, before it is calibrated on them."""
        predictor.tile = predictor.tile if self.tile is None else self.tile
        predictor.bit_depth = predictor.bit_depth if self.bit_depth is None else self.bit_depth
        predictor.gain = predictor.gain if self.gain is None else self.gain

    def to_toml(self, folder: Path) -> str:
        """The text of a `product.toml` in a folder, that `read_product` reads back; a mask's picture becomes runs."""
        model = self.model.relative_to(folder) if self.model.is_relative_to(folder) else self.model
        entries = {"name": self.name, "model": model.as_posix()}
        entries |= {name: getattr(self, name) for name in _PLAIN}
        tables = [("[pictures]", asdict(self.pictures)), ("[roi]", {} if self.roi is None else self.roi.to_dict())]
        lines = _toml_lines(entries)
        for heading, table in [*tables, *write_connections(self.watch, self.sinks, folder)]:
            if found := _toml_lines(table):
                lines += ["", heading, *found]
        return "\n".join(lines) + "\n"


_PLAIN = ("alpha", "look_alpha", "min_area", "tile", "bit_depth", "gain")


class _Pictures(TypedDict, total=False):
    keep_flagged: bool
    keep_every: int
    days: int


class _Roi(TypedDict, total=False):
    size: tuple[int, int]
    polygons: tuple[Polygon, ...]
    ignore: tuple[Polygon, ...]
    runs: tuple[int, ...]
    mask: str


class _Names(TypedDict):
    name: str
    model: str


class _Entries(_Names, Connections, total=False):
    alpha: float
    look_alpha: float
    min_area: int
    tile: bool
    bit_depth: int
    gain: float
    roi: _Roi
    pictures: _Pictures


def read_product(path: PathLike) -> Product:
    """Read a `product.toml`; paths in it are relative to it. docs/guide/products.md says what each entry is.

    Raises:
        FileNotFoundError, ValueError: no such file, no TOML, an entry that is unknown, missing or of another type, a
            number out of its range, or a mask that cannot be used; one line that begins with the file's name.
    """
    path = Path(path)
    where = str(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no product file {path}")
    written = read_toml(path)
    check_secrets(written, where)
    content: dict[str, Any] = dict(parse(_Entries, written, where))
    content["model"] = _below(path.parent, content["model"])
    try:
        if "roi" in content:
            content["roi"] = _roi(content["roi"], path.parent)
        content["pictures"] = Pictures(**content.get("pictures", {}))
        if "watch" in content:
            content["watch"] = read_watched_folder(content["watch"], path.parent)
        content["sinks"] = read_sinks(content, path.parent)
        for table in ("webhook", "mqtt"):
            content.pop(table, None)
        return Product(**content)
    except (OSError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{where}: {error}") from None


def files_of(path: PathLike) -> list[Path]:
    """The files that a `product.toml` names and that judging depends on: the model, and the mask where there is one.

    They need not be there. Of a file that cannot be read it is none: `read_product` says why.
    """
    path = Path(path)
    try:
        content = parse(_Entries, read_toml(path), str(path))
        named = [content["model"], content.get("roi", {}).get("mask")]
        return [_below(path.parent, name) for name in named if name is not None]
    except (OSError, ValueError):
        return []


def _below(folder: Path, name: str) -> Path:
    """A path that is relative to a folder; ValueError for one in the home of nobody."""
    try:
        return folder / Path(name).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{name}: {error}") from None


def _roi(entries: dict[str, Any], folder: Path) -> RegionOfInterest:
    """The region of interest of the table [roi]."""
    if "mask" not in entries:
        if "size" not in entries:
            raise ValueError("[roi] has no 'size': the [height, width] of the image that its polygons are drawn on")
        return RegionOfInterest(**entries)
    if extra := sorted(entries.keys() - {"mask", "ignore", "size"}):
        raise ValueError(f"[roi] has a mask and {extra[0]!r}: one of them")
    mask = read_mask(_below(folder, entries["mask"]), entries.get("size"))
    return RegionOfInterest.from_mask(mask, entries.get("ignore", ()))


def _toml_lines(entries: dict[str, Any]) -> list[str]:
    """Entries as TOML writes them, whose texts and lists are those of JSON but for one character; None is left out."""
    texts = {
        name: write_json(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        for name, value in entries.items()
        if value is not None and value != ()
    }
    return [f"{name} = {text}" for name, text in texts.items()]
