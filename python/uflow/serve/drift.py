"""The monitor of a product, kept over restarts: does the line still make parts like those of the calibration?"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
from dataclasses import asdict
from typing import Any

from ..monitor import Alarm, Monitor
from ..predictor import Predictor
from ..schema import read_json, write_json
from .store import Store

__all__ = ["Watch"]

log = logging.getLogger("uflow")


class Watch:
    """A `monitor.Monitor` that goes on where it was, for as long as the model is the same; thread-safe.

    Args:
        product: name of the product.
        predictor: gives the p-values.
        store: where it was kept.
    """

    def __init__(self, product: str, predictor: Predictor, store: Store) -> None:
        self.product, self.store = product, store
        self.model = hashlib.sha256(write_json(predictor.to_dict(), sort_keys=True).encode()).hexdigest()
        self._lock = threading.Lock()
        self._monitor = predictor.monitor() if predictor.threshold.calibration_images is not None else None
        kept = store.watch(product)
        if kept is not None and kept[0] == self.model and self._monitor is not None:
            try:
                self._monitor = Monitor.from_dict(read_json(kept[2], "its state"))
            except ValueError as error:
                log.error("%s: a new watch begins: %s", product, error)

    def add(self, p_value: float | None) -> tuple[tuple[str, str] | None, Alarm | None]:
        """Take note of a part: what to store, see `Outcome.watch`, and the alarm where this part has raised it."""
        with self._lock:
            if self._monitor is None or p_value is None:
                return None, None
            before, alarm = self._monitor.alarm, self._monitor.add(p_value)
            return (self.model, write_json(self._monitor.to_dict())), alarm if before is None else None

    def restart(self) -> None:
        """Begin anew, as after a repair."""
        with self._lock:
            if self._monitor is not None:
                self._monitor.restart()
                self.store.forget_watch(self.product)

    @property
    def log10_wealth(self) -> float:
        """log10 of the monitor's wealth: an alarm is raised at about 2; 0 where there is no monitor."""
        with self._lock:
            wealth = 1.0 if self._monitor is None else self._monitor.wealth
        return math.log10(max(wealth, 1e-300)) if math.isfinite(wealth) else 308.0

    @property
    def alarm(self) -> bool:
        """Whether the line has changed."""
        with self._lock:
            return self._monitor is not None and self._monitor.alarm is not None

    def to_dict(self) -> dict[str, Any]:
        """Parts watched, wealth and alarm, ready for JSON."""
        wealth = self.log10_wealth
        with self._lock:
            if self._monitor is None:
                return {"parts": 0, "log10_wealth": None, "alarm": None}
            alarm = self._monitor.alarm
            return {
                "parts": self._monitor.parts,
                "log10_wealth": wealth,
                "alarm": None if alarm is None else asdict(alarm),
            }
