"""A product's model while the service runs: read again when one of its files changes, whole or not at all."""

from __future__ import annotations

import logging
from pathlib import Path

from ..files import FileStamp, one_line
from ..predictor import Predictor
from ..product import files_of, read_product

__all__ = ["LiveModel"]

log = logging.getLogger("uflow")

Stamps = tuple[FileStamp | None, ...]


class LiveModel:
    """The product and the predictor of a ``product.toml``, as they were when they could last be read.

    Attributes:
        file: the ``product.toml``.
        product: what it says.
        predictor: judges parts; None where the model could not be read since the service began.
        trouble: why the last change was not taken over, one line; None where all is well.

    Args:
        file: the ``product.toml``.
        device: see `uflow.load`.

    Raises:
        FileNotFoundError, ValueError: a file that `read_product` refuses. A model that cannot be read is no error here:
            other products go on, and it is read when it changes.
    """

    def __init__(self, file: Path, device: str = "auto") -> None:
        self.file, self.device = file, device
        self.predictor: Predictor | None = None
        self.trouble: str | None = None
        self._named: tuple[FileStamp | None, list[Path]] = (None, [])  # what the file names, as it was then
        self._read = self._seen = self._stamps()
        self.product = read_product(file)
        try:
            self.predictor = self.product.load(device)
        except Exception as error:  # whatever is wrong with a file
            self._refuse(error)

    def check(self) -> None:
        """Read product, mask and model again where one has changed, and all stand still since the last check.

        What is served changes at once, when all of it is there; where it cannot be read, the old one serves on.
        """
        stamps, before = self._stamps(), self._seen
        self._seen = stamps
        if stamps == self._read or stamps != before:
            return
        self._read = stamps
        try:
            product = read_product(self.file)
            if product.name != self.product.name:
                raise ValueError(f"{self.file} has another name now, {product.name!r}: start the service again")
            predictor = product.load(self.device)
        except Exception as error:
            self._refuse(error)
            return
        self.product, self.predictor, self.trouble = product, predictor, None
        log.info("%s: a new model serves, %s", product.name, product.model)

    def _refuse(self, error: Exception) -> None:
        self.trouble = one_line(error)
        serves = "nothing can be judged" if self.predictor is None else "the old one serves on"
        log.error("%s: the model cannot be read, %s: %s", self.product.name, serves, self.trouble)

    def _stamps(self) -> Stamps:
        """Of the product's file, and of all that it names now, whether or not that is what serves."""
        own = FileStamp.now(self.file)
        if own != self._named[0]:
            self._named = own, files_of(self.file)
        found = [own]
        for path in self._named[1]:
            inner = path / "model.json"  # of an exported folder: it holds the digests of all other files
            found.append(FileStamp.now(inner if path.is_dir() else path))
        return tuple(found)
