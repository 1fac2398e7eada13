"""What an administrator changes of a product: its file is written anew, and the service takes it over."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path

from ..files import atomic_write, one_line
from ..predictor import Predictor
from ..product import Product, read_product
from ..roi import Polygon, RegionOfInterest
from .judge import Judge
from .teaching import keep_before

__all__ = ["Limits", "NotLearnt", "Region", "save_limits", "save_region"]

_writing = threading.Lock()  # each product file is read, changed and written by one at a time


class NotLearnt(Exception):
    """A region of interest that the model does not know; one line says so."""


@dataclass(frozen=True)
class Limits:
    """What the page of the limits sends.

    Attributes:
        alpha: chance that a good part is rejected.
        look_alpha: chance that a good part is not called good; None leaves what the model has.
    """

    alpha: float
    look_alpha: float | None


@dataclass(frozen=True)
class Region:
    """What the editor sends.

    Attributes:
        size: (height, width) of the image that was drawn on.
        polygons, ignore: see `RegionOfInterest`; none of both is as the model has learnt it.
        confirmed: whether it is saved although the model has not learnt it.
    """

    size: tuple[int, int]
    polygons: tuple[Polygon, ...]
    ignore: tuple[Polygon, ...]
    confirmed: bool


def save_limits(judge: Judge, limits: Limits) -> None:
    """Write the limits of a product to its file.

    Raises:
        ValueError, OSError: numbers out of their range, a model without a calibration, a file that cannot be written.
    """
    with _writing:
        product = read_product(judge.live.file)
        changed = replace(product, alpha=limits.alpha, look_alpha=limits.look_alpha)
        replace(changed, roi=None).apply(_serving(judge))
        _write(judge.live.file, changed)


def save_region(judge: Judge, region: Region) -> str | None:
    """Write the region of interest of a product to its file.

    Returns:
        None where the model has learnt it; else what is to be done, one line.

    Raises:
        NotLearnt: the model does not know it, and that was not confirmed; nothing is written.
        ValueError, OSError: polygons that cannot be used, or a file that cannot be written.
    """
    is_drawn = region.polygons or region.ignore
    roi = RegionOfInterest(region.size, region.polygons, region.ignore) if is_drawn else None
    with _writing:
        changed = replace(read_product(judge.live.file), roi=roi)
        why = _why_not_served(changed, _serving(judge))
        if why is not None and not region.confirmed:
            raise NotLearnt(why)
        _write(judge.live.file, changed)
    return why


def _serving(judge: Judge) -> Predictor:
    if judge.live.predictor is None:
        raise ValueError("no model of this product serves now")
    return judge.live.predictor


def _why_not_served(product: Product, predictor: Predictor) -> str | None:
    try:
        product.apply(predictor)
    except ValueError as error:
        return one_line(error)
    return None


def _write(file: Path, product: Product) -> None:
    text = product.to_toml(file.parent)
    keep_before(file)
    with atomic_write(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
