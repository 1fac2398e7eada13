"""Predictions as lines of a table, for people at a terminal; programs read JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["TABLE_HEADER", "table_line"]

_LINE = "{:7}  {:>6}  {:>7}  {:>7}  {:>7}  {}"
TABLE_HEADER = _LINE.format("flagged", "score", "p-value", "log NFA", "regions", "image")


def table_line(about: Mapping[str, Any]) -> str:
    """What `to_dict` of a prediction says, on one line; of an image that could not be judged, why.

    >>> print(TABLE_HEADER)
    flagged   score  p-value  log NFA  regions  image
    >>> numbers = {"score": 0.9134, "p_value": None, "log_nfa": -3.2071, "regions": [{}, {}]}
    >>> print(table_line({"image": "part.png", "is_anomalous": True, **numbers}))
    yes       0.913        -    -3.21        2  part.png
    """
    if "error" in about:
        return _LINE.format("error", *"----", about["error"])
    p_value = "-" if about["p_value"] is None else f"{about['p_value']:.3f}"
    numbers = f"{about['score']:.3f}", p_value, f"{about['log_nfa']:.2f}", len(about["regions"])
    return _LINE.format("yes" if about["is_anomalous"] else "no", *numbers, about["image"] or "-")
