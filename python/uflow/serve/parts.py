"""What the service knows of a part, and what is said of it."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Any, Literal

from ..conformal import Verdict

__all__ = ["Answer", "Filter", "Message", "Outcome", "Part", "State"]

State = Literal["accepted", "judged", "failed"]
Answer = Literal["good", "defective"]


@dataclass(frozen=True)
class Part:
    """A part that was accepted: its image and this row are on the disk.

    Attributes:
        id: counts up from 1, over all products.
        product: name of its product.
        name: as the sender calls its image; None where it said nothing.
        sha256: of the image as it came, in hexadecimal.
        received: seconds since 1970.
        state: "accepted" is not yet judged; "failed" could not be judged, which is never good.
        verdict: good, look or reject; None where it was not judged.
        p_value: None where it was not judged, or by a model that was not calibrated.
        score: how anomalous it is, from 0 to 1: `Prediction.score`.
        line: JSON, as `uflow predict` writes it; None where it was not judged.
        picture: file of its image below the folder of pictures; None where that is not kept.
        answer: what the operator said last: "good" after all, or "defective" after all.
    """

    id: int
    product: str
    name: str | None
    sha256: str
    received: float
    state: State
    verdict: Verdict | None
    p_value: float | None
    score: float | None
    line: str | None
    picture: str | None
    answer: Answer | None

    @classmethod
    def from_row(cls, row: sqlite3.Row) -> Part:
        return cls(**{name: row[name] for name in cls.__dataclass_fields__})

    def to_dict(self) -> dict[str, Any]:
        """All of it but the picture's file, ready for JSON."""
        kept = ("id", "product", "name", "sha256", "received", "state", "verdict", "p_value", "score", "answer")
        content = {name: getattr(self, name) for name in kept}
        return content | {
            "has_picture": self.picture is not None,
            "result": None if self.line is None else json.loads(self.line),
        }


@dataclass(frozen=True)
class Message:
    """What a sink is to be sent of a part.

    Attributes:
        sink: name of the sink.
        payload: JSON.
    """

    sink: str
    payload: str


@dataclass(frozen=True)
class Outcome:
    """What judging a part gave; stored in one transaction, see `Store.settle`.

    Attributes:
        part: its id.
        state: "judged" or "failed".
        line: JSON, as `uflow predict` writes it.
        verdict, p_value, score: see `Part`.
        keep_picture: whether its image stays on the disk.
        messages: to sinks.
        watch: the monitor after this part: the model's SHA-256 and the monitor's state in JSON; None leaves what is.
    """

    part: int
    state: State
    line: str
    verdict: Verdict | None = None
    p_value: float | None = None
    score: float | None = None
    keep_picture: bool = True
    messages: tuple[Message, ...] = ()
    watch: tuple[str, str] | None = None


@dataclass(frozen=True)
class Filter:
    """Which parts of a product to list; None asks for all.

    Attributes:
        verdict: good, look, reject; "failed" are those that could not be judged.
        answer: those of which the operator said this.
        name: as the sender called it; with a * at the end those that begin so.
        since, until: received then, seconds since 1970, `until` not included.
    """

    verdict: Verdict | Literal["failed"] | None = None
    answer: Answer | None = None
    name: str | None = None
    since: float | None = None
    until: float | None = None
