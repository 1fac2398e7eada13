"""A product's model learns from parts that operators called good: on demand, beside the line."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..files import atomic_write, one_line
from ..predictor import Predictor
from ..product import Product
from .judge import Judge
from .shown import without_folders

__all__ = ["MOST_TAUGHT", "Lesson", "Teacher", "keep_before", "teach"]

log = logging.getLogger("uflow")

MOST_TAUGHT = 100  # parts in one lesson


@dataclass(frozen=True)
class Lesson:
    """What became of teaching.

    Attributes:
        running: whether it goes on.
        text: what was learnt, or why not; one line.
        failed: whether it was not learnt.
    """

    running: bool = False
    text: str = ""
    failed: bool = False


class Teacher:
    """Teaches one product at a time, in a thread; `Judge` goes on judging, and `LiveModel` takes the model over."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lessons: dict[str, Lesson] = {}

    def lesson(self, product: str) -> Lesson:
        """How the last lesson of a product went."""
        with self._lock:
            return self._lessons.get(product, Lesson())

    def begin(self, judge: Judge) -> None:
        """Begin a lesson with the parts of a product that are good after all.

        Raises:
            RuntimeError: one is going on.
            ValueError: there are no such parts.
        """
        parts = judge.store.good_after_all(judge.name)[:MOST_TAUGHT]
        if not parts:
            raise ValueError("no part with a picture was called good after all since the last lesson")
        with self._lock:
            if any(lesson.running for lesson in self._lessons.values()):
                raise RuntimeError("a lesson is going on: wait until it ends")
            self._lessons[judge.name] = Lesson(running=True, text=f"Learning from {_count(len(parts))} …")
        pictures = {part.id: judge.store.pictures.folder / (part.picture or "") for part in parts}
        # A service that ends does not wait for it: a model file is written whole or not at all.
        threading.Thread(target=self._run, args=(judge, pictures), name="uflow-teacher", daemon=True).start()

    def _run(self, judge: Judge, pictures: dict[int, Path]) -> None:
        try:
            text = teach(judge.live.product, list(pictures.values()), judge.live.device)
            judge.store.mark_used(list(pictures))
            lesson = Lesson(text=text)
        except Exception as error:  # whatever is wrong with a model, an image, a disk
            log.error("%s: nothing was learnt: %s", judge.name, one_line(error))
            lesson = Lesson(text=f"Nothing was learnt: {without_folders(judge, one_line(error))}", failed=True)
        with self._lock:
            self._lessons[judge.name] = lesson


def teach(product: Product, images: Sequence[Path], device: str = "auto") -> str:
    """Add good images to a product's model file; the old one stays beside it, see `keep_before`.

    Returns:
        What was learnt, one line.

    Raises:
        FileNotFoundError, ValueError, OSError: a model or an image that cannot be read, one that cannot learn, or a
            file that cannot be written; then the model is as it was.
    """
    from .. import load
    from ..deploy.exported import save_threshold

    model = load(product.model, device)
    own = model if isinstance(model, Predictor) else model.predictor
    product.prepare(own)
    before = _flagged(product.apply(own), images)
    model.add_good(images)
    after = _flagged(product.apply(own), images)
    kept = keep_before(product.model)
    if isinstance(model, Predictor):
        save_threshold(model)
    else:
        model.save(product.model)
    where = "the calibration" if isinstance(model, Predictor) else "the memory and the calibration"
    return (
        f"{_count(len(images))} joined {where} of {product.model.name}. Not called good: {before} before, {after} now. "
        f"The model before is kept as {kept.name}."
    )


def keep_before(path: Path) -> Path:
    """Copy a file to one with .before after its name; of an exported folder its description, beside the folder."""
    source = path / "model.json" if path.is_dir() else path
    kept = path.with_name(f"{path.name}.model.json.before" if path.is_dir() else f"{path.name}.before")
    with atomic_write(kept) as temporary:
        shutil.copyfile(source, temporary)
    return kept


def _flagged(predictor: Predictor, images: Sequence[Path]) -> int:
    return sum(found.verdict != "good" for found in predictor.stream(images))


def _count(number: int) -> str:
    return "1 good part" if number == 1 else f"{number} good parts"
