"""Images in tables, by pandas, Arrow and Ray: equal to `predict`, resumed, whole after a kill."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import uflow
from conftest import one_line, wait_for
from uflow import cli

NEEDS = 'needs the extra: pip install "uflow-ad[ray]"'
pytest.importorskip("fsspec", reason=NEEDS)
pandas = pytest.importorskip("pandas", reason=NEEDS)
parquet = pytest.importorskip("pyarrow.parquet", reason=NEEDS)
tables = pytest.importorskip("uflow.interop.tables")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_thread")]  # Ray's own


@pytest.fixture(scope="module")
def model(detector: uflow.Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, origin = tmp_path_factory.mktemp("ray") / "tile.uflow", detector.predictor.origin
    detector.save(path)
    detector.predictor.origin = origin  # others share this detector
    return path


@pytest.fixture(scope="module")
def parts(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sub-folders, a corrupt image, and what is no image."""
    folder = tmp_path_factory.mktemp("parts")
    for kind in ("good", "square"):
        (folder / kind).mkdir()
        for path in sorted((dataset / "test" / kind).glob("*.png")):
            (folder / kind / path.name).write_bytes(path.read_bytes())
    (folder / "good/broken.png").write_bytes(b"no image at all")
    (folder / "notes.txt").write_text("no image")
    return folder


def by_hand(model: Path, paths: list[str]) -> list[dict[str, Any]]:
    """What `predict` says, image after image; None of an image that it cannot judge."""
    detector = uflow.load(model, device="cpu")
    return [None if "broken" in path else detector.predict(path).to_dict() for path in paths]


def assert_equal_rows(found: list[dict[str, Any]], model: Path) -> None:
    """Row by row what `predict` says, but for the time; batches round float32 otherwise."""
    for row, own in zip(found, by_hand(model, [row["image"] for row in found]), strict=True):
        if own is None:
            assert row["error"].startswith("cannot ")
            assert {name for name, value in row.items() if value is not None} == {"image", "error"}
            continue
        assert row["error"] is None
        for name in own.keys() - {"time", "regions", "score", "log_nfa"}:
            assert row[name] == own[name], name
        for name in ("score", "log_nfa"):
            assert row[name] == pytest.approx(own[name], rel=1e-6, abs=1e-4)
        assert len(row["regions"]) == len(own["regions"])
        for region, expected in zip(row["regions"], own["regions"], strict=True):
            assert (region["area"], region["box"]) == (expected["area"], expected["box"])
            assert region["p_value"] == expected["p_value"]
            assert region["contours"] == expected["contours"]


# Tables ---------------------------------------------------------------------------------------------------------------


def test_pandas_batches_are_predict_row_by_row(model: Path, parts: Path) -> None:
    paths = sorted(map(str, parts.rglob("*.png")))
    predictor = pickle.loads(pickle.dumps(tables.TablePredictor(str(model), device="cpu", batch_size=4, maps=True)))
    table = pandas.DataFrame({"path": paths, "bytes": [Path(path).read_bytes() for path in paths], "lot": 7})
    batches = list(predictor.map_in_pandas(iter([table[:5], table[5:]])))
    assert [len(batch) for batch in batches] == [5, 4]
    assert list(batches[0].columns) == tables.result_schema(maps=True).names
    rows = pandas.concat(batches).astype(object).where(lambda values: values.notna(), None).to_dict("records")
    maps = [row.pop("anomaly_map") for row in rows], [row.pop("log_nfa_map") for row in rows]
    assert_equal_rows(rows, model)
    first = uflow.load(model, device="cpu").predict(paths[0])
    np.testing.assert_allclose(np.load(io.BytesIO(maps[0][0])), first.anomaly_map, atol=1e-5)
    np.testing.assert_allclose(np.load(io.BytesIO(maps[1][0])), first.log_nfa, atol=1e-3)


def test_a_schema_holds_a_line_of_json() -> None:
    schema = json.loads((Path(__file__).parent.parent / "docs/prediction.schema.json").read_text())["$defs"][
        "prediction"
    ]
    assert set(tables.result_schema().names) == {*schema["properties"], "error"}
    regions = tables.result_schema().field("regions").type.value_type
    assert {field.name for field in regions} == set(schema["properties"]["regions"]["items"]["properties"])


def test_what_is_no_table_of_images_is_one_line(model: Path, tmp_path: Path) -> None:
    predictor = tables.TablePredictor(str(model), device="cpu")
    with pytest.raises(ValueError, match="has a column 'path', and perhaps 'bytes'; this one has name") as error:
        predictor.predict_pandas(pandas.DataFrame({"name": ["a"]}))
    one_line(error)
    rows = predictor.predict_rows([str(tmp_path / "gone.png"), "nothing://x.png"])
    assert [row["error"].partition(":")[0] for row in rows] == [
        f"cannot read {tmp_path / 'gone.png'}",
        "cannot read nothing",
    ]
    (row,) = predictor.predict_rows(["a.png"], [None])
    assert row == {"image": "a.png", "error": "there is no content: bytes is null"}


# Ray ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(ray_cluster: None) -> Any:
    """The module that uses Ray."""
    from uflow.interop import ray as interop

    return interop


def rows_of(output: Path) -> list[dict[str, Any]]:
    parts = [parquet.read_table(path) for path in sorted(output.glob("part-*.parquet"))]
    assert all(part.schema.equals(tables.result_schema()) for part in parts)
    rows = [row for part in parts for row in part.to_pylist()]
    return sorted(rows, key=lambda row: row["image"])


def actor_pids() -> list[int]:
    """The actors of the cluster of this process: other tests, in other processes, have theirs."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            command, pid = entry.read_bytes(), int(entry.parent.name)
            if command.startswith(b"ray::") and b"_Actor" in command and os.getpid() in ancestors(pid):
                found.append(pid)
    return found


def ancestors(pid: int) -> list[int]:
    """The process that started this one, the one that started that, and so on."""
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/status").read_text().partition("PPid:")[2].split()[0])
        found.append(pid)
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").is_file(), reason="finds the actor in /proc")
def test_a_killed_actor_and_a_lost_part_lose_nothing(
    cluster: Any, model: Path, parts: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder to Parquet, row by row as `predict`; the actor is killed on its way, and a part removed afterwards."""
    source, output, predictor = tmp_path / "many", tmp_path / "results", tables.TablePredictor(str(model), device="cpu")
    for lot in range(3):
        shutil.copytree(parts, source / str(lot))
    killed, told = [], []

    def kill_once() -> None:
        wait_for(lambda: any(output.glob("part-*.parquet")), seconds=300)
        killed.extend(actor_pids())
        for pid in killed:
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_once)
    killer.start()
    first = cluster.predict(str(source), str(output), predictor, rows_a_part=4, on_images=told.append)
    killer.join()
    assert killed
    rows = rows_of(output)
    assert [row["image"] for row in rows] == sorted(map(str, source.rglob("*.png")))
    assert_equal_rows(rows, model)
    flagged = sum(bool(row["is_anomalous"]) for row in rows)
    assert (first.images, first.flagged, first.failed, first.skipped) == (27, flagged, 3, 0)
    assert sorted(told) == [3, 4, 4, 4, 4, 4, 4]

    (lost, *others) = sorted(output.glob("part-*.parquet"))
    missing = parquet.read_table(lost).num_rows
    times = {path: path.stat().st_mtime_ns for path in others}
    lost.unlink()
    again = cluster.predict(str(source), str(output), predictor, rows_a_part=4)
    assert (again.images, again.skipped) == (missing, 27 - missing)
    assert [row["image"] for row in rows_of(output)] == [row["image"] for row in rows]
    assert {path: path.stat().st_mtime_ns for path in others} == times
    assert cluster.predict(str(source), str(output), predictor).images == 0  # nothing is left, no actor is started

    monkeypatch.setattr(
        sys, "argv", ["uflow", "predict", str(model), str(source), "--engine", "ray", "-o", str(output)]
    )
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert "0 of 0 images have a detected region, 27 were there already, " in capsys.readouterr().err

    for changed in (tables.TablePredictor(str(model), alpha=0.4), tables.TablePredictor(str(model), maps=True)):
        with pytest.raises(ValueError, match=r"holds results of another (alpha|maps): name another output") as error:
            cluster.predict(str(source), str(output), changed)
        one_line(error)


@pytest.mark.parametrize(
    ("content", "message"), [("{", "is no JSON, or was cut short"), ("[]", "another alpha"), ("{}", "another alpha")]
)
def test_a_damaged_output_is_one_line(cluster: Any, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / cluster.SETTINGS).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        cluster._Folder(str(tmp_path)).check_settings({"alpha": 0.1})
    one_line(error)


def test_bytes_in_parquet_by_a_url(cluster: Any, model: Path, parts: Path, tmp_path: Path) -> None:
    """Two tables, the first in row groups, of which an image is done already."""
    paths, source, output = sorted(parts.rglob("*.png")), tmp_path / "tables", tmp_path / "results"
    source.mkdir()
    for number, chosen in enumerate((paths[:6], paths[6:])):
        content = {"path": list(map(str, chosen)), "bytes": [path.read_bytes() for path in chosen], "lot": number}
        pandas.DataFrame(content).to_parquet(source / f"{number}.parquet", row_group_size=5)
    predictor = tables.TablePredictor(str(model), device="cpu")
    cluster._Folder(str(output)).check_settings(cluster._settings(predictor))
    done = predictor.predict_arrow(parquet.read_table(source / "0.parquet", columns=["path", "bytes"]).slice(2, 1))
    cluster._Folder(str(output)).write_part(done)
    found = cluster.predict(source.as_uri(), output.as_uri(), predictor, rows_a_part=3)
    assert (found.images, found.failed, found.skipped) == (8, 1, 1)
    rows = rows_of(output)
    assert [row["image"] for row in rows] == list(map(str, paths))
    assert_equal_rows(rows, model)


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="looks for torch in /proc")
def test_an_exported_folder_needs_no_torch_in_an_actor(
    cluster: Any, detector: uflow.Detector, parts: Path, tmp_path: Path
) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason='needs ONNX: pip install "uflow-ad[export,onnx]"')
    from uflow.deploy.export import export

    export(detector, tmp_path / "onnx")
    loaded = tmp_path / "loaded"

    class Telling(tables.TablePredictor):
        """Writes what its process has loaded when it has judged: an actor ends before one could look from outside."""

        def predict_arrow(self, table: Any) -> Any:
            found = super().predict_arrow(table)
            loaded.write_text(Path("/proc/self/maps").read_text())
            return found

    # One by one: actors get other batches than we do here, and batches round float32 otherwise.
    predictor = Telling(str(tmp_path / "onnx"), batch_size=1)
    done = cluster.predict(str(parts), str(tmp_path / "results"), predictor)
    assert (done.images, done.failed) == (9, 1)
    libraries = {Path(line).name for line in loaded.read_text().split()}
    assert any(name.startswith("onnxruntime_pybind11") for name in libraries)
    assert not [name for name in libraries if "torch" in name]
    rows = rows_of(tmp_path / "results")
    for row, own in zip(rows, predictor.predict_rows([row["image"] for row in rows]), strict=True):
        for name in own.keys() - {"time"}:
            assert row[name] == own[name], name


def test_what_cannot_be_run_is_one_line(cluster: Any, model: Path, parts: Path, tmp_path: Path) -> None:
    predictor, output = tables.TablePredictor(str(model), device="cpu"), str(tmp_path / "results")
    (tmp_path / "empty").mkdir()
    pandas.DataFrame({"name": ["a"]}).to_parquet(tmp_path / "names.parquet")
    for source, actors, error, message in (
        (str(parts), 3, ValueError, "3 actors of 1 threads need 3 processors, and there are 2"),
        (str(parts), 0, ValueError, "at least 1"),
        (str(tmp_path / "empty"), 1, ValueError, "holds no images"),
        (str(tmp_path / "gone"), 1, FileNotFoundError, "there is no "),
        (str(tmp_path / "names.parquet"), 1, ValueError, "has no column 'path'; it has name"),
    ):
        with pytest.raises(error, match=message) as failure:
            cluster.predict(source, output, predictor, actors)
        one_line(failure)
