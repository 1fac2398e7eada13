"""The service without its web side: products, their workers, the store, and what is done now and then."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from ..files import one_line
from ..product import Product
from .database import STORE_ERRORS
from .folders import FolderWatcher
from .judge import Judge
from .metrics import Metrics
from .model import LiveModel
from .sinks import Sinks, check_sinks
from .store import Store

__all__ = ["Companion", "Limits", "Service", "find_products"]

log = logging.getLogger("uflow")

DAY_S = 24 * 3600
PRUNE_EVERY_S = 60
STUCK_AFTER = 4  # times a request's time limit: a part that takes so long may never be done


@dataclass(frozen=True)
class Limits:
    """What the service takes at most.

    Attributes:
        queue: parts of a product on their way.
        request_s: seconds a request may take; a part that takes longer is judged and stored all the same.
        upload_bytes: of an image file.
        held_bytes: of all images that are being received; at least two of `upload_bytes`.
        pixels: of an image.
        pictures_bytes: of all pictures that are kept.

    Raises:
        ValueError: a limit of 0 or less.
    """

    queue: int = 32
    request_s: float = 30
    upload_bytes: int = 64 << 20
    held_bytes: int = 256 << 20
    pixels: int = 50_000_000
    pictures_bytes: int = 20 << 30

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"the limit {name} must be larger than 0, got {value}")


class Companion(Protocol):
    """What runs beside the judges, such as a watched folder or a sink."""

    def start(self) -> None:
        """Begin, in a thread of its own; judges are at work."""

    def stop(self) -> None:
        """End before this returns; judges are still at work."""


class Service:
    """Products at work. Everything may be called from any thread.

    Attributes:
        store: parts, verdicts, answers, outbox.
        judges: the worker of each product, by its name.
        refused: product files that could not be read, and why: others are served.
        watchers: of the products that have a watched folder, by the product's name.
        sinks: who is told of parts.
        metrics: figures.
        limits: what is taken at most.
        companions: what is started and stopped with it; add them before `start`.

    Args:
        products: ``product.toml`` files, or the folder where they lie, see `find_products`: of one that comes later
            `troubles` says that it is read at the next start.
        folder: where all is kept.
        limits: see `Limits`.
        device: see `uflow.load`.
        poll_s: seconds between looks at models that may have changed.

    Raises:
        FileNotFoundError, ValueError: no product file that can be read, with the secrets of its sinks; two of one name;
            or watched folders that lie in one another.
    """

    def __init__(
        self,
        products: Path | list[Path],
        folder: Path,
        limits: Limits | None = None,
        *,
        device: str = "auto",
        poll_s: float = 2,
    ) -> None:
        self.limits, self.poll_s, self.metrics = limits or Limits(), poll_s, Metrics()
        self._products = products if isinstance(products, Path) else None
        files = find_products(products) if isinstance(products, Path) else products
        models, self.refused = _read_all(files, device)
        names = [model.product.name for model in models]
        for model in models:
            if names.count(model.product.name) > 1 or "/" in model.product.name:
                raise ValueError(f"{model.file}: name is to be another than that of other products, and without /")
        by_file = {model.file: model.product for model in models}
        _check_folders(by_file, folder)
        self.store = Store(folder)
        self.sinks = Sinks(by_file.values(), self.store.outbox, self.metrics)
        self.judges = {
            model.product.name: Judge(model, self.store, self.metrics, self.limits.queue, self.sinks.messages)
            for model in models
        }
        self._began_with = {product.name: (product.watch, product.sinks) for product in by_file.values()}
        self.watchers = {
            product.name: FolderWatcher(product.watch, self.judges[product.name], self.store, self.limits.upload_bytes)
            for product in by_file.values()
            if product.watch is not None
        }
        self.companions: list[Companion] = [*self.watchers.values()]
        self._ending = threading.Event()
        self._housekeeper = threading.Thread(target=self._keep_house, name="uflow-housekeeper")

    def start(self) -> None:
        """Judge what was left over, and what comes."""
        for judge in self.judges.values():
            judge.start()
        self.sinks.start()
        self._housekeeper.start()
        for companion in self.companions:
            companion.start()

    def stop(self) -> None:
        """Judge and store what was accepted, and end."""
        for companion in self.companions:
            companion.stop()
        self._ending.set()
        self._housekeeper.join()
        for judge in self.judges.values():
            judge.stop()
        self.sinks.stop()
        self.store.close()

    def troubles(self) -> dict[str, str]:
        """What is wrong, by what it is, such as "store" or "model NAME"; empty where all is well."""
        found = {f"folder {name}": watcher.trouble for name, watcher in self.watchers.items()}
        found |= {f"sink {name}": sink.trouble for name, sink in self.sinks.sinks.items()}
        for name, judge in self.judges.items():
            found[f"model {name}"] = judge.live.trouble
            found[f"judge {name}"] = judge.stuck(STUCK_AFTER * self.limits.request_s)
            found[f"product {name}"] = self._changed(judge)
        found["products"] = self._new_product()
        found |= {
            f"file {_short_name(file)}": f"{why}; mend it, and start the service again"
            for file, why in self.refused.items()
        }
        found["store"] = next((judge.store_trouble for judge in self.judges.values() if judge.store_trouble), None)
        return {what: trouble for what, trouble in found.items() if trouble is not None}

    def _changed(self, judge: Judge) -> str | None:
        """Whether what is read once has changed in the product's file."""
        product = judge.live.product
        if (product.watch, product.sinks) == self._began_with[judge.name]:
            return None
        return "its watched folder or its sinks have changed: start the service again"

    def _new_product(self) -> str | None:
        """Whether a product's file has come since the start."""
        known = {judge.live.file for judge in self.judges.values()} | self.refused.keys()
        files = [] if self._products is None else _product_files(self._products)
        new = next((file for file in files if file not in known), None)
        return None if new is None else f"{new} is new: start the service again"

    def is_ready(self) -> bool:
        """Whether a model of each product serves."""
        return not self.refused and all(judge.live.predictor is not None for judge in self.judges.values())

    def metrics_text(self) -> bytes:
        """All figures, as Prometheus reads them."""
        metrics, troubles = self.metrics, self.troubles()
        for name, judge in self.judges.items():
            metrics.queue.labels(name).set(judge.waiting)
            metrics.ready.labels(name).set(judge.live.predictor is not None)
            metrics.model_trouble.labels(name).set(judge.live.trouble is not None)
            if judge.watch is not None:
                metrics.wealth.labels(name).set(judge.watch.log10_wealth)
                metrics.alarm.labels(name).set(judge.watch.alarm)
        metrics.store_trouble.set("store" in troubles)
        metrics.disk_free.set(shutil.disk_usage(self.store.folder).free)
        metrics.pictures.set(self.store.pictures_size())
        metrics.outbox.clear()
        for name, watcher in self.watchers.items():
            metrics.files.labels(name).set(watcher.waiting)
        for sink, count in (dict.fromkeys(self.sinks.sinks, 0) | self.store.outbox.waiting()).items():
            metrics.outbox.labels(sink).set(count)
        return metrics.text()

    # Now and then -----------------------------------------------------------------------------------------------------

    def _keep_house(self) -> None:
        pruned = -float("inf")
        while not self._ending.wait(self.poll_s):
            try:
                for judge in self.judges.values():
                    judge.live.check()
                    judge.model_changed()
                    judge.flush()
                if time.monotonic() - pruned > PRUNE_EVERY_S:
                    pruned = time.monotonic()
                    self.prune()
            except Exception:  # it goes on as long as the service
                log.exception("the housekeeper made a mistake")

    def prune(self) -> None:
        """Remove pictures that are older, or more, than may be kept."""
        days = {name: judge.live.product.pictures.days for name, judge in self.judges.items()}
        since = {name: time.time() - DAY_S * count for name, count in days.items() if count is not None}
        try:
            if count := self.store.prune(self.limits.pictures_bytes, since):
                log.info("%d old pictures removed", count)
        except STORE_ERRORS as error:
            log.error("old pictures cannot be removed: %s", one_line(error))


def _read_all(files: Sequence[Path], device: str) -> tuple[list[LiveModel], dict[Path, str]]:
    """The products of files, and why others cannot be read: these must not keep a line from starting.

    Raises:
        FileNotFoundError, ValueError: none can be read.
    """
    models: list[LiveModel] = []
    refused: dict[Path, Exception] = {}
    for file in files:
        try:
            model = LiveModel(file, device)
            check_sinks(file, model.product)
            models.append(model)
        except (OSError, ValueError) as error:
            refused[file] = error
    if refused and not models:
        raise next(iter(refused.values()))
    said = {file: one_line(why) for file, why in refused.items()}
    for why in said.values():
        log.error("a product is not served: %s", why)
    return models, said


def _check_folders(products: dict[Path, Product], data: Path) -> None:
    """ValueError where files of a watched folder would be found by another, or the service's own by one."""
    watched = {file: product.watch for file, product in products.items() if product.watch is not None}
    for file, watch in watched.items():
        others = [(data, "the service's own folder")]
        for other, also in ((other, also) for other, also in watched.items() if other != file):
            others += [(path, str(other)) for path in (also.folder, also.move_to, also.failed_to) if path is not None]
        here = watch.folder.resolve()
        for path, whose in others:
            there = path.resolve()
            if here.is_relative_to(there) or there.is_relative_to(here):
                raise ValueError(f"{file}: the watched folder {watch.folder} and {path} lie in one another ({whose})")


def find_products(folder: Path) -> list[Path]:
    """The product files in a folder: its own ``*.toml``, and each ``product.toml`` one folder below.

    Raises:
        FileNotFoundError, ValueError: no such folder, or none in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    found = _product_files(folder)
    if not found:
        raise ValueError(f"{folder} holds no product: no .toml file, and no folder with a product.toml")
    return found


def _short_name(file: Path) -> str:
    """What tells a product's file from others of `find_products`, without the path to their folder."""
    return f"{file.parent.name}/{file.name}" if file.name == "product.toml" else file.name


def _product_files(folder: Path) -> list[Path]:
    found = [*folder.glob("*.toml"), *folder.glob("*/product.toml")]
    return sorted(file for file in found if not file.name.startswith("."))  # hidden: one that is being written
