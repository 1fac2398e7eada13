"""Many images on many machines: batch prediction as actors of Ray Data, resumed where it was stopped."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import pyarrow
import pyarrow.compute
import pyarrow.parquet
import ray
import ray.data
import ray.exceptions

from ..files import atomic_write, sha256
from ..listing import IMAGE_SUFFIXES, RESULT_PICTURES, is_image_name
from ..schema import read_json
from .cluster import connect, describe_failure
from .tables import TablePredictor

__all__ = ["Summary", "predict"]

SETTINGS = "_uflow.json"  # in the output folder: what its results were made with
METADATA = "model.json"  # of an exported folder: holds the SHA-256 of its other files
ROWS_A_PART = 256  # images of one output file: what is done again after a kill, at most, by each actor


@dataclass(frozen=True)
class Summary:
    """What a run has done.

    Attributes:
        images: that were judged, or could not be, in this run.
        flagged, failed: how many of them are anomalous, and could not be judged.
        skipped: that the output held already.
    """

    images: int
    flagged: int
    failed: int
    skipped: int


def predict(
    source: str,
    output: str,
    predictor: TablePredictor,
    actors: int | tuple[int, int] = 1,
    *,
    rows_a_part: int = ROWS_A_PART,
    gpus: float = 0,
    on_images: Callable[[int], None] = lambda _: None,
) -> Summary:
    """Predict images on a Ray cluster, or on this machine, into Parquet files.

    Each part of the output is written whole or not at all, before its images count as done. What was stopped, however,
    goes on by the same call: images that the output holds are not judged again. An actor that dies is started anew,
    and its part is done again. The model travels to the actors; they need no file system in common for it.

    Args:
        source: a folder of images (all below it), or a Parquet file or a folder of these, with a column `path`, or
            `path` and `bytes`. A path, or an fsspec URL such as s3://bucket/folder.
        output: a folder, path or URL, for files part-....parquet; columns: `tables.result_schema`.
        predictor: the model and how it judges; its `threads` are processors of each actor.
        actors: how many, or (least, most) for a cluster that grows.
        rows_a_part: images of one output file.
        gpus: of each actor; a part is allowed.
        on_images: called with how many images were done, after each part.

    Raises:
        ValueError: no images; more actors than the cluster has processors for; results of another model, alpha or kind
            in the output.
        OSError: the source or the output cannot be read or written.
        RuntimeError: an actor cannot go on, for want of the backbone's weights for example.
    """
    _connect()
    _check_resources(actors, predictor.threads)
    folder = _Folder(output)
    folder.check_settings(_settings(predictor))
    done = folder.images()
    work, skipped = _work(source, done, rows_a_part)
    held = ray.put((_pack(predictor), done))  # kept here: an actor that is started anew fetches it again
    least, most = (actors, actors) if isinstance(actors, int) else actors
    # A block a part, so that they spread over the actors.
    found = ray.data.from_items(work, override_num_blocks=len(work) or 1).map(
        _Actor,
        fn_constructor_args=(_travelling(predictor), held, output, rows_a_part),
        compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most),
        num_cpus=predictor.threads,
        num_gpus=gpus,
    )
    counts = {"images": 0, "flagged": 0, "failed": 0}
    try:
        for part in found.iter_rows() if work else ():
            counts = {name: count + part[name] for name, count in counts.items()}
            on_images(part["images"])
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"an actor could not go on, what is done is kept: {describe_failure(error)}") from error
    return Summary(**counts, skipped=len(done) if skipped is None else skipped)


class _Actor:
    """Judges batches, and writes each as a part of the output."""

    def __init__(self, predictor: TablePredictor, held: Any, output: str, rows_a_part: int) -> None:
        model: Mapping[str, bytes]
        model, self.done = ray.get(held)
        self.rows_a_part = rows_a_part
        # The folder lives as long as the actor's process.
        self._home = tempfile.TemporaryDirectory(prefix="uflow-ray-")
        for name, content in model.items():
            path = Path(self._home.name, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        home = Path(self._home.name)
        weights = None if predictor.weights is None else tuple(str(home / name) for name in predictor.weights)
        self.predictor = replace(predictor, model=str(home / predictor.model), weights=weights)
        self.folder = _Folder(output)

    def __call__(self, part: dict[str, Any]) -> dict[str, int]:
        images = pyarrow.table({"path": part["paths"] or []})
        if part["table"]:
            images = _read_group(part["table"], part["group"]).slice(part["start"], self.rows_a_part)
            images = _without(images, self.done)
        if not images.num_rows:
            return {"images": 0, "flagged": 0, "failed": 0}
        results = self.predictor.predict_arrow(images)
        self.folder.write_part(results)
        failed = results.num_rows - results["error"].null_count
        flagged = pyarrow.compute.sum(results["is_anomalous"]).as_py() or 0
        return {"images": results.num_rows, "flagged": flagged, "failed": failed}


class _Folder:
    """Where results go: a folder of this machine, or of any file system that fsspec knows."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.files, self.path = fsspec.core.url_to_fs(url)
        self.is_local = "file" in self.files.protocol

    def check_settings(self, settings: dict[str, Any]) -> None:
        """Write down what results are made with; ValueError where those that are there were made otherwise."""
        file = f"{self.path}/{SETTINGS}"
        self.files.makedirs(self.path, exist_ok=True)
        if self.files.exists(file):
            found = read_json(self.files.cat_file(file), f"{self.url}/{SETTINGS}")
            if found != settings:
                found = found if isinstance(found, dict) else {}
                names = ", ".join(name for name, value in settings.items() if found.get(name) != value)
                raise ValueError(f"{self.url} holds results of another {names}: name another output")
            return
        if self.files.glob(f"{self.path}/part-*.parquet"):
            raise ValueError(f"{self.url} holds Parquet files and no {SETTINGS}: name another output")
        self._write(SETTINGS, json.dumps(settings).encode())

    def images(self) -> pyarrow.Array:
        """The names of all images that have a result."""
        parts = self.files.glob(f"{self.path}/part-*.parquet")
        tables = [pyarrow.parquet.read_table(io.BytesIO(self.files.cat_file(p)), columns=["image"]) for p in parts]
        names = [chunk for table in tables for chunk in table["image"].chunks]
        return pyarrow.chunked_array(names, pyarrow.string()).combine_chunks()

    def write_part(self, results: pyarrow.Table) -> None:
        """Write a part; its name follows from its images, so that one that is done again takes its own place."""
        digest = hashlib.sha256("\n".join(results["image"].to_pylist()).encode()).hexdigest()
        content = io.BytesIO()
        pyarrow.parquet.write_table(results, content, compression="zstd")
        self._write(f"part-{digest[:24]}.parquet", content.getvalue())

    def _write(self, name: str, content: bytes) -> None:
        if self.is_local:
            with atomic_write(Path(self.path, name)) as temporary:
                temporary.write_bytes(content)
        else:
            self.files.pipe_file(f"{self.path}/{name}", content)  # a store shows an object whole or not at all


def _connect() -> None:
    """Join a cluster whose data pipelines print nothing."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    connect()
    ray.data.DataContext.get_current().enable_progress_bars = False


def _check_resources(actors: int | tuple[int, int], threads: int) -> None:
    """ValueError where Ray would wait for processors that never come."""
    least = actors if isinstance(actors, int) else actors[0]
    there = ray.cluster_resources().get("CPU", 0)
    if least < 1 or threads < 1:
        raise ValueError(f"actors and threads are at least 1, got {least} and {threads}")
    if least * threads > there:
        raise ValueError(
            f"{least} actors of {threads} threads need {least * threads} processors, and there are {there:g}: ask "
            "for fewer, or for (least, most)"
        )


def _work(source: str, done: pyarrow.Array, rows_a_part: int) -> tuple[list[dict[str, Any]], int | None]:
    """What actors are handed, a part each: paths of images, or which rows of which table; and how many were left out,
    where that is known.

    Tables are read by the actors, not by tasks of their own, which would wait for processors that actors have taken.
    """
    files, path = fsspec.core.url_to_fs(source)
    if not files.exists(path):
        raise FileNotFoundError(f"there is no {source}")
    names = [path] if files.isfile(path) else sorted(files.find(path))
    tables = [name for name in names if name.endswith(".parquet") and not PurePosixPath(name).name.startswith("_")]
    if tables:
        return _slices(files, source, tables, rows_a_part), None
    images = [_url(files, name) for name in names if _is_image(PurePosixPath(name))]
    if not images:
        raise ValueError(f"{source} holds no images ({', '.join(IMAGE_SUFFIXES)}), and no Parquet files")
    left = _without(pyarrow.table({"path": images}), done)["path"].to_pylist()
    parts = [left[start : start + rows_a_part] for start in range(0, len(left), rows_a_part)]
    return [{"table": "", "group": 0, "start": 0, "paths": part} for part in parts], len(images) - len(left)


def _slices(files: Any, source: str, tables: Sequence[str], rows_a_part: int) -> list[dict[str, Any]]:
    """Which rows of which row groups: a part is of one group."""
    found = []
    for name in tables:
        with files.open(name, "rb") as file:
            content = pyarrow.parquet.ParquetFile(file)
            if "path" not in content.schema_arrow.names:
                raise ValueError(f"{source} has no column 'path'; it has {', '.join(content.schema_arrow.names)}")
            sizes = [content.metadata.row_group(group).num_rows for group in range(content.num_row_groups)]
        found += [
            {"table": _url(files, name), "group": group, "start": start, "paths": None}
            for group, size in enumerate(sizes)
            for start in range(0, size, rows_a_part)
        ]
    return found


@lru_cache(maxsize=1)
def _read_group(url: str, group: int) -> pyarrow.Table:
    """The images of a row group; kept, as an actor is often handed several parts of one."""
    with fsspec.open(url, "rb") as file:
        content = pyarrow.parquet.ParquetFile(file)
        columns = [name for name in ("path", "bytes") if name in content.schema_arrow.names]
        return content.read_row_group(group, columns=columns)


def _without(table: pyarrow.Table, done: pyarrow.Array) -> pyarrow.Table:
    """The rows whose images are not done."""
    return table.filter(pyarrow.compute.invert(pyarrow.compute.is_in(table["path"], value_set=done)))


def _url(files: Any, name: str) -> str:
    """A file's path on this machine; of elsewhere its URL."""
    return name if "file" in files.protocol else str(files.unstrip_protocol(name))


def _is_image(name: PurePosixPath) -> bool:
    return is_image_name(name) and not name.name.endswith(RESULT_PICTURES)


def _settings(predictor: TablePredictor) -> dict[str, Any]:
    """What results depend on."""
    path = Path(predictor.model)
    digest = sha256(path / METADATA if path.is_dir() else path)
    return {"model": digest, "alpha": predictor.alpha, "look_alpha": predictor.look_alpha, "maps": predictor.maps}


def _travelling(predictor: TablePredictor) -> TablePredictor:
    """The same with names in place of paths: the files come along."""
    weights = None if predictor.weights is None else tuple(Path(file).name for file in predictor.weights)
    return replace(predictor, model=Path(predictor.model).name, weights=weights)


def _pack(predictor: TablePredictor) -> dict[str, bytes]:
    """The files of a model, by their names beside it."""
    path = Path(predictor.model)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    packed = {file.relative_to(path.parent).as_posix(): file.read_bytes() for file in files}
    return packed | {Path(file).name: Path(file).read_bytes() for file in predictor.weights or ()}
