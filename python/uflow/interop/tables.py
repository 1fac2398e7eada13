"""Images in tables: a function of a batch of rows, for whatever engine hands it batches. Ray, Spark and Dask do."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas
import pyarrow

from .. import load
from ..files import one_line
from ..prediction import FailedImage
from ..predictor import Predictor

__all__ = ["TablePredictor", "result_schema"]

READERS = 8  # threads that fetch images: a store answers slowly, and many at once

_POINT = pyarrow.list_(pyarrow.float64())
_REGION = {
    "area": pyarrow.int64(),
    "centroid": _POINT,
    "box": pyarrow.list_(pyarrow.int64()),
    "score": pyarrow.float64(),
    "log_nfa": pyarrow.float64(),
    "p_value": pyarrow.float64(),
    "contours": pyarrow.list_(pyarrow.list_(_POINT)),
}
_COLUMNS = {
    "schema": pyarrow.int32(),
    "image": pyarrow.string(),
    "sha256": pyarrow.string(),
    "time": pyarrow.string(),
    "model": pyarrow.string(),
    "model_sha256": pyarrow.string(),
    "alpha": pyarrow.float64(),
    "look_alpha": pyarrow.float64(),
    "size": pyarrow.list_(pyarrow.int64()),
    "score": pyarrow.float64(),
    "is_anomalous": pyarrow.bool_(),
    "verdict": pyarrow.string(),
    "p_value": pyarrow.float64(),
    "calibration_images": pyarrow.int64(),
    "log_nfa": pyarrow.float64(),
    "regions": pyarrow.list_(pyarrow.struct(list(_REGION.items()))),
    "error": pyarrow.string(),
}
_MAPS = {"anomaly_map": pyarrow.binary(), "log_nfa_map": pyarrow.binary()}


def result_schema(maps: bool = False) -> pyarrow.Schema:
    """The columns of results: the entries of a line of JSON, docs/prediction.schema.json, and `error`.

    Of an image that could not be judged, `image` and `error` alone are not null.

    Args:
        maps: also `anomaly_map` and `log_nfa_map`, each the bytes of a .npy file, float32 of the image's size.
    """
    return pyarrow.schema(list((_COLUMNS | (_MAPS if maps else {})).items()))


@dataclass(frozen=True)
class TablePredictor:
    """Predicts tables of images; it can be pickled, and a process loads the model once.

    A table has a column `path`, a file or an fsspec URL, or `path` and `bytes`, the content of an image file, `path`
    being its name then. A row that cannot be judged stays, with its `error`.

    Attributes:
        model: model file or exported folder, on every machine that predicts.
        alpha, look_alpha: of `Predictor.at`; None is as calibrated.
        batch_size: images, or tiles, that pass through the network together.
        threads: of the network.
        maps: whether results hold the maps.
        device, weights, runtime: see `uflow.load`.
    """

    model: str
    alpha: float | None = None
    look_alpha: float | None = None
    batch_size: int = 8
    threads: int = 1
    maps: bool = False
    device: str = "auto"
    weights: tuple[str, ...] | None = None
    runtime: str | None = None

    def predict_pandas(self, table: pandas.DataFrame) -> pandas.DataFrame:
        """A batch in pandas to its results, a row a row, in order.

        Raises:
            ValueError: there is no column `path`.
        """
        contents = list(table["bytes"]) if "bytes" in table else None
        rows = self.predict_rows(_paths(list(table.columns), table), contents)
        return pandas.DataFrame(rows, columns=result_schema(self.maps).names)

    def map_in_pandas(self, tables: Iterator[pandas.DataFrame]) -> Iterator[pandas.DataFrame]:
        """What `pyspark.sql.DataFrame.mapInPandas` takes."""
        return map(self.predict_pandas, tables)

    def predict_arrow(self, table: pyarrow.Table) -> pyarrow.Table:
        """A table of Arrow to its results, a row a row, in order, of the types of `result_schema`."""
        contents = table["bytes"].to_pylist() if "bytes" in table.column_names else None
        rows = self.predict_rows(_paths(table.column_names, table.to_pydict()), contents)
        return pyarrow.Table.from_pylist(rows, schema=result_schema(self.maps))

    def predict_rows(
        self, paths: Sequence[str], contents: Sequence[bytes | None] | None = None
    ) -> list[dict[str, Any]]:
        """The results of some images as dictionaries, in order.

        Args:
            paths: files or fsspec URLs.
            contents: of image files, each in place of what is at its path; None reads the paths.
        """
        if contents is None:
            with ThreadPoolExecutor(READERS) as pool:
                contents = list(pool.map(_read, paths))  # type: ignore[arg-type]  # errors among them
        readable = [content for content in contents if isinstance(content, bytes)]
        found = self._predictor().stream_all(readable, self.batch_size)
        rows = []
        for path, content in zip(paths, contents, strict=True):
            if isinstance(content, bytes):
                rows.append(self._row(path, next(found)))
            else:
                rows.append({"image": path, "error": content or "there is no content: bytes is null"})
        return rows

    def _row(self, path: str, result: Any) -> dict[str, Any]:
        row: dict[str, Any] = dict.fromkeys(result_schema(self.maps).names) | result.to_dict() | {"image": path}
        if isinstance(result, FailedImage):
            row["error"] = one_line(result.error)
        elif self.maps:
            row |= {"anomaly_map": _npy(result.anomaly_map), "log_nfa_map": _npy(result.log_nfa)}
        return row

    def _predictor(self) -> Predictor:
        predictor = _open(self.model, self.device, self.weights, self.runtime, self.threads)
        if self.alpha is None and self.look_alpha is None:
            return predictor
        return predictor.at(self.alpha, self.look_alpha)


@lru_cache(maxsize=1)
def _open(model: str, device: str, weights: tuple[str, ...] | None, runtime: str | None, threads: int) -> Predictor:
    """A model, loaded once a process."""
    if Path(model).is_dir():
        loaded: Any = load(model, device, runtime=runtime, threads=threads)
        return loaded  # type: ignore[no-any-return]
    import torch  # a model file runs on it

    torch.set_num_threads(threads)
    loaded = load(model, device, weights)
    return loaded.predictor  # type: ignore[no-any-return]


def _paths(columns: Sequence[str], table: Any) -> list[str]:
    if "path" not in columns:
        raise ValueError(
            f"a table of images has a column 'path', and perhaps 'bytes'; this one has {', '.join(columns)}"
        )
    return [str(path) for path in table["path"]]


def _read(path: str) -> bytes | str:
    """The content of a file, or what is wrong with it."""
    try:
        with fsspec.open(path, "rb") as file:
            content: bytes = file.read()
            return content
    except Exception as error:  # each file system has its own
        return f"cannot read {path}: {one_line(error)}"


def _npy(values: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()
