"""Files that strangers made: truncated, flipped, of wrong types, with changed JSON. One line, and nothing else happens.

Each reader is given what a hostile or broken disk may hold. Allowed are a result or an error of a kind that callers
expect, on one line; never another exception, a new file, a hang, or memory without bound.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import uflow
from uflow import images, model_file
from uflow.backbones import create_backbone
from uflow.deploy import exported
from uflow.deploy.describe import describe_model
from uflow.evaluate import rivals, study
from uflow.evaluate.datasets import find_categories
from uflow.evaluate.evaluation import Evaluation
from uflow.evaluate.summary import summarise, summary_markdown
from uflow.interop.checkpoint import load_checkpoint
from uflow.map_threshold import Threshold
from uflow.model_header import sign_content
from uflow.monitor import Monitor, monitor_lines, read_observations
from uflow.predictor import Predictor
from uflow.recipe import Recipe
from uflow.schema import content_sha256
from uflow.scoring import Blend, Evidence
from uflow.threshold import CalibratedThreshold
from uflow.training import TrainingState

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::UserWarning")]

QUICK = settings(
    max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
EXPECTED = (ValueError, OSError, RuntimeError, TypeError)
MAX_SECONDS = 20  # of one input, on a loaded machine: a hang, not a slow disk
MAX_BYTES = 64 << 20  # that Python and numpy allocate for one input of some kilobytes


def error_of(read: Callable[[], object]) -> str | None:
    """What an expected error says; None where there is none."""
    try:
        read()
    except EXPECTED as error:
        return str(error)
    return None


def survives(read: Callable[[], object], folder: Path) -> None:
    """Read: a result or an error of one line, in bounded time and memory, and no file more than before."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    started = time.monotonic()
    tracemalloc.start()
    try:
        said = error_of(read)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert said is None or (said and "\n" not in said), said
    assert time.monotonic() - started < MAX_SECONDS
    assert peak < MAX_BYTES
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


# Damage ---------------------------------------------------------------------------------------------------------------

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["../../etc/passwd", "/etc/passwd", "\x00", "NaN", 10**9, -1, 0, 1e308]),
    st.lists(st.integers(-2, 10**7), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """The bytes cut short, with some flipped, with some put in, or others altogether."""
    how = draw(st.sampled_from(["cut", "flip", "insert", "other"]))
    at = draw(st.one_of(st.integers(0, len(content)), st.integers(0, min(len(content), 300))))
    if how == "cut":
        return content[:at]
    if how == "insert":
        return content[:at] + draw(st.binary(min_size=1, max_size=20)) + content[at:]
    if how == "other":
        return draw(st.binary(max_size=200))
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 8))):
        place = draw(st.one_of(st.integers(0, len(content) - 1), st.integers(0, min(len(content) - 1, 300))))
        changed[place] ^= draw(st.integers(1, 255))
    return bytes(changed)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in some JSON there is something."""
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if type(value) is list else []
    return [path, *(place for key, inner in items for place in places(inner, (*path, key)))]


@st.composite
def changed(draw: Any, value: Any) -> Any:
    """JSON of which an entry is of another value or type, gone, or has an unknown one beside it."""
    value = json.loads(json.dumps(value))
    place = draw(st.sampled_from(places(value)[1:]))
    inner = value
    for key in place[:-1]:
        inner = inner[key]
    how = draw(st.sampled_from(["replace", "remove", "add"]))
    if how == "replace":
        inner[place[-1]] = draw(JUNK)
    elif how == "remove":
        del inner[place[-1]]
    elif isinstance(inner, dict):
        inner[draw(st.text(max_size=5))] = draw(JUNK)
    else:
        inner.append(draw(JUNK))
    return value


# Models and states ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def predictor() -> dict[str, Any]:
    """What a model holds besides its network."""
    rng = np.random.default_rng(0)
    evidence = [Evidence([rng.chisquare(4, (1, n, n)).astype(np.float32) for n in (8, 4)], []) for _ in range(9)]
    threshold = CalibratedThreshold.from_good_images(evidence, alpha=0.3)
    blend = Blend.from_good_images(evidence)
    return Predictor(None, threshold, blend).to_dict()  # type: ignore[arg-type]  # no network is needed


def small_safetensors(header: dict[str, Any]) -> bytes:
    """A file whose header is what it is for our readers, and whose tensors are some bytes."""
    top = {"__metadata__": {"uflow": json.dumps(header)}, "t/a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    text = json.dumps(top).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8)


@QUICK
@given(data=st.data())
def test_bytes_of_a_model_file(data: st.DataObject, room: Path) -> None:
    content = small_safetensors({"kind": "model", "version": model_file.FORMAT_VERSION, "backbone": {}, "flow": {}})
    path = room / "a.uflow"
    path.write_bytes(data.draw(damaged(content)))
    survives(lambda: model_file.load_model(path), room)


@QUICK
@given(data=st.data())
def test_the_header_of_a_model_file(data: st.DataObject, predictor: dict[str, Any], room: Path) -> None:
    """Signed again, as by somebody who knows how; the tensors are made up."""
    history = [{"epoch": 1, "train_nll": 0.5, "held_out_nll": None, "seconds": 0.1}]
    header = {
        "kind": "model",
        "version": model_file.FORMAT_VERSION,
        "backbone": {
            "name": "resnet18",
            "image_size": [64, 64],
            "strides": [4, 8],
            "weights_source": "made",
            "weights_sha256": "0" * 64,
        },
        "flow": {"steps": 1, "affine": False, "clamp": 2.0},
        "predictor": predictor,
        "history": history,
        "record": {"images": "9 abc"},
    }
    path = room / "a.uflow"
    path.write_bytes(sign_content(small_safetensors(data.draw(changed(header)))))
    survives(lambda: describe_model(path), room)
    survives(lambda: uflow.load(path, device="cpu"), room)


@QUICK
@given(data=st.data())
def test_what_a_model_holds_besides_its_network(data: st.DataObject, predictor: dict[str, Any], room: Path) -> None:
    content = data.draw(changed(predictor))

    def read() -> None:
        json.dumps(Predictor.from_dict(None, content).to_dict(), allow_nan=False)  # type: ignore[arg-type]

    survives(read, room)


@QUICK
@given(data=st.data())
def test_a_recipe(data: st.DataObject, room: Path) -> None:
    content = data.draw(changed(Recipe().to_dict()))
    survives(lambda: Recipe.from_dict(content), room)


@QUICK
@given(data=st.data())
def test_the_state_of_a_training(data: st.DataObject, room: Path) -> None:
    path, record = room / "a.state", {"images": "3 abc", "settings": {"epochs": 2}}
    one = {"a.b": torch.zeros(2)}
    state = TrainingState(epoch=1, best_epoch=1, best_nll=0.5, weights=one, best_weights=one, optimizer=one)
    model_file.save_training_state(path, state, record)
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    survives(lambda: model_file.load_training_state(path, record), room)


# Exported folders and checkpoints -------------------------------------------------------------------------------------


NETWORK = b"\x08\x07"  # the first bytes of an ONNX file


@pytest.fixture(scope="module")
def metadata(predictor: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": "uflow export",
        "version": exported.FORMAT_VERSION,
        "uflow": "0",
        "format": "onnx",
        "opset": 18,
        "int8": None,
        "dynamic_size": False,
        "input": "image",
        "outputs": ["energy_0", "energy_1", "anomaly_map"],
        "backbone": {"name": "resnet18"},
        "image_size": [64, 64],
        "strides": [8, 16],
        "latent_channels": [24, 60],
        "predictor": predictor,
        "record": {},
        "files": {"network.onnx": hashlib.sha256(NETWORK).hexdigest()},
    }


@QUICK
@given(data=st.data())
def test_the_description_of_an_exported_folder(data: st.DataObject, metadata: dict[str, Any], room: Path) -> None:
    folder = room / "export"
    folder.mkdir(exist_ok=True)
    (folder / "network.onnx").write_bytes(NETWORK)
    signed = changed(metadata).map(sign).map(to_bytes)
    content = data.draw(st.one_of(damaged(to_bytes(sign(metadata))), signed))
    (folder / "model.json").write_bytes(content)
    survives(lambda: describe_model(folder), room)
    survives(lambda: exported.load(folder), room)


def to_bytes(value: Any) -> bytes:
    return json.dumps(value).encode()


def sign(content: Any) -> Any:
    """The content with the digest that fits it, where it has one at all."""
    try:
        return {**content, "sha256": content_sha256(content)}
    except ValueError:  # NaN
        return content


@QUICK
@given(data=st.data())
def test_a_checkpoint(data: st.DataObject, room: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"state_dict": {"flow.a": torch.zeros(3)}, "epoch": 1}, buffer)
    path = room / "a.ckpt"
    path.write_bytes(data.draw(damaged(buffer.getvalue())))
    survives(lambda: load_checkpoint(path), room)


def test_a_length_in_an_old_file_is_not_believed(room: Path) -> None:
    """torch's format before zip archives: a string of 1.2 GB, in a file of nine bytes."""
    path = room / "a.ckpt"
    path.write_bytes(b"X\x00\x00PK\x03\x04\x00\x00")
    survives(lambda: load_checkpoint(path), room)
    survives(lambda: create_backbone(image_size=64, weights=path), room)


def test_a_length_in_an_image_is_not_believed(room: Path) -> None:
    """A PNG of 9 x 12 pixels that says of its data that they are 84 MB."""
    content = bytearray(picture("PNG", "RGB"))
    at = content.index(b"IDAT") - 4
    content[at : at + 4] = (84_000_000).to_bytes(4, "big")
    (path := room / "a.png").write_bytes(content)
    survives(lambda: images.read_image(path), room)


# Results that a study and a comparison go on from ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluation_file() -> dict[str, Any]:
    image = {"path": "a.png", "defect": "good", "score": 0.1, "log_nfa": 1.5, "flagged": False, "iou": None}
    evaluation = Evaluation(0.9, 0.8, 0.7, 0.6, 0.5, -2.0, {"good": {"images": 1, "share": 0.0}}, images=[image])
    return {
        "kind": "uflow evaluation",
        "version": study.FORMAT_VERSION,
        "uflow": "0",
        "date": "2026-01-01",
        "category": "nut",
        "layout": "mvtec",
        "counts": {"train": 9, "test": 1},
        "model": "nut.uflow",
        "selected_on_test": False,
        "selected_by": None,
        "alpha": 0.05,
        "image_size": [64, 64],
        "tile": False,
        "trained_with": Recipe().to_dict() | {"images": "9 abc"},
        "epochs": 2,
        "training_seconds": 0.5,
        "evaluation": evaluation.to_dict() | {"roc": [[0.0, 0.5], [1.0, 1.0]]},
        "asked": {"protocol": "paper", "changed": {}},
    }


@QUICK
@given(data=st.data())
def test_what_a_study_goes_on_from(data: st.DataObject, evaluation_file: dict[str, Any], room: Path) -> None:
    path = room / "nut.json"
    content = data.draw(st.one_of(damaged(to_bytes(evaluation_file)), changed(evaluation_file).map(to_bytes)))
    path.write_bytes(content)

    def read() -> None:
        if record := study._read(path):
            summary_markdown(summarise([study.Result("nut", "mvtec", record, "already evaluated")]))

    survives(read, room)


@QUICK
@given(data=st.data())
def test_what_a_comparison_goes_on_from(data: st.DataObject, room: Path) -> None:
    results = [asdict(rivals.Result("nut", "uflow", 0, None, "mvtec", 0.9)), asdict(rivals.Result("nut", "spade", 1))]
    settings = rivals.Settings()
    content = {"settings": rivals._common(settings), "machine": {}, "results": results, "published": {}}
    path = room / "comparison.json"
    path.write_bytes(data.draw(st.one_of(damaged(to_bytes(content)), changed(content).map(to_bytes))))
    survives(lambda: rivals.markdown(rivals._read(path, settings), settings), room)


# Thresholds and monitors ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def map_threshold() -> dict[str, Any]:
    maps = np.random.default_rng(0).random((9, 8, 8))
    return Threshold.from_good_maps(maps, alpha=0.2, look_alpha=0.4).to_dict()


@QUICK
@given(data=st.data())
def test_a_threshold_of_maps(data: st.DataObject, map_threshold: dict[str, Any], room: Path) -> None:
    """What can be read judges a map, and can be written again."""
    path = room / "threshold.json"
    signed = changed(map_threshold).map(sign).map(to_bytes)  # as by somebody who knows how
    path.write_bytes(data.draw(st.one_of(damaged(to_bytes(sign(map_threshold))), signed)))

    def read() -> None:
        threshold = Threshold.load(path)
        json.dumps([threshold.to_dict(), threshold.apply(np.eye(5)).to_dict()], allow_nan=False)

    survives(read, room)


@pytest.fixture(scope="module", params=[0, 3])
def monitor_state(request: pytest.FixtureRequest) -> dict[str, Any]:
    monitor = Monitor(9, alpha=0.2)
    for p_value in [0.5, 0.1, 1.0][: request.param]:
        monitor.add(p_value)
    return monitor.to_dict()


@QUICK
@given(data=st.data())
def test_the_state_of_a_monitor(data: st.DataObject, monitor_state: dict[str, Any], room: Path) -> None:
    """What can be read takes note of the next parts: it does not fail later, when nobody looks."""
    content = data.draw(changed(monitor_state))
    said = error_of(lambda: Monitor.from_dict(content))
    if said is not None:
        assert "\n" not in said
        return
    monitor = Monitor.from_dict(content)
    survives(lambda: monitor.add(1.0), room)
    assert monitor.parts == content["parts"] + 1
    assert not np.isnan(monitor.wealth)
    json.dumps(monitor.to_dict(), allow_nan=False)


@QUICK
@given(data=st.data())
def test_lines_of_predictions(data: st.DataObject, room: Path) -> None:
    one = {"image": "a.png", "p_value": 0.5, "calibration_images": 9, "alpha": 0.2, "is_anomalous": False}
    entries = [one, one | {"p_value": 0.1}, {"image": "b.png", "error": "cut short"}]
    path = room / "predictions.jsonl"
    text = data.draw(st.one_of(st.just(entries), changed(entries)))
    content = "".join(json.dumps(entry) + "\n" for entry in text).encode()
    path.write_bytes(data.draw(st.one_of(st.just(content), damaged(content))))

    def read() -> None:
        with path.open(encoding="utf-8") as lines:
            seen = read_observations(lines)
        monitor_lines(seen, Monitor(seen[0].calibration_images))

    survives(read, room)


@pytest.fixture(scope="module")
def post_processor() -> Any:
    """One of anomalib's whose threshold is that of `map_threshold`."""
    pytest.importorskip("anomalib", reason='needs anomalib: pip install "uflow-ad[compare]"')
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from uflow.interop.anomalib_post_processor import CalibratedPostProcessor

    made = CalibratedPostProcessor(alpha=0.2)
    made.threshold = Threshold.from_good_maps(np.random.default_rng(0).random((9, 8, 8)), alpha=0.2)
    made._map_levels, made._score_levels = (0.1, 0.9), (0.8, 0.9)
    return made


@QUICK
@given(data=st.data())
def test_the_state_of_a_post_processor(data: st.DataObject, post_processor: Any, room: Path) -> None:
    """As a checkpoint of anomalib holds it; one that is refused leaves everything as it was."""
    content = bytes(post_processor.get_extra_state().tolist())
    bad = data.draw(st.one_of(damaged(content), changed(json.loads(content)).map(to_bytes)))
    state = data.draw(st.sampled_from([torch.uint8, torch.float64, torch.int64]))
    tensor = torch.tensor(list(bad), dtype=state)
    again = type(post_processor)(alpha=0.3)
    survives(lambda: again.set_extra_state(tensor), room)
    if error_of(lambda: again.set_extra_state(tensor)) is None:
        assert bytes(again.get_extra_state().tolist())
    else:
        assert (again.alpha, again.threshold, again._map_levels) == (0.3, None, None)


@pytest.mark.parametrize("state", [torch.tensor(10**15), torch.zeros(2, 2, dtype=torch.uint8), None, "{}"])
def test_what_is_no_state_of_a_post_processor(state: Any, post_processor: Any, room: Path) -> None:
    survives(lambda: post_processor.set_extra_state(state), room)


# Images, masks and lists ----------------------------------------------------------------------------------------------


def picture(kind: str, mode: str) -> bytes:
    buffer = io.BytesIO()
    values = np.arange(12 * 9 * 3, dtype=np.uint8).reshape(12, 9, 3)
    Image.fromarray(values).convert(mode).save(buffer, kind)
    return buffer.getvalue()


PICTURES = [("PNG", "RGB"), ("PNG", "P"), ("PNG", "1"), ("PNG", "LA"), ("JPEG", "L"), ("BMP", "RGB"), ("TIFF", "L")]


@pytest.fixture
def few_pixels() -> Iterator[None]:
    """A flipped bit of a picture's height makes it large: what may be large is what the limit of pixels allows."""
    images.set_max_pixels(2_000_000)
    yield
    images.set_max_pixels(images.MAX_PIXELS)


@pytest.mark.usefixtures("few_pixels")
@pytest.mark.parametrize(("kind", "mode"), [*PICTURES, ("WEBP", "RGB")])
@settings(parent=QUICK, max_examples=25)
@given(data=st.data())
def test_an_image_and_a_mask(data: st.DataObject, kind: str, mode: str, room: Path) -> None:
    path = room / "a.png"
    path.write_bytes(data.draw(damaged(picture(kind, mode))))
    survives(lambda: images.read_image(path), room)
    survives(lambda: images.image_size(path), room)
    survives(lambda: images.read_mask(path, (12, 9)), room)


@QUICK
@given(st.one_of(st.text(max_size=20), st.lists(st.text(max_size=9), max_size=3), JUNK))
def test_names_of_images(source: Any) -> None:
    said = error_of(lambda: images.list_images(source))
    assert "\n" not in (said or "")


@QUICK
@given(data=st.data())
def test_the_list_of_a_data_set(data: st.DataObject, room: Path) -> None:
    folder = room / "listed/split_csv"
    folder.mkdir(parents=True, exist_ok=True)
    content = b"object,split,label,image,mask\nnut,train,normal,nut/a.png,\nnut,test,anomaly,nut/b.png,nut/c.png\n"
    (folder / "1cls.csv").write_bytes(data.draw(damaged(content)))
    survives(lambda: find_categories(folder.parent, "visa"), room)


@QUICK
@given(data=st.data())
def test_a_list_of_images(data: st.DataObject, room: Path) -> None:
    """One's own list, as JSON."""
    folder = room / "own"
    folder.mkdir(exist_ok=True)
    (folder / "a.png").write_bytes(b"not read")
    train = {"path": "a.png", "split": "train", "label": "good", "category": "nut"}
    content = [train, train | {"path": "./a.png", "split": "test", "label": "scratch", "mask": "a.png"}]
    path = folder / "list.json"
    path.write_bytes(data.draw(st.one_of(damaged(to_bytes(content)), changed(content).map(to_bytes))))
    survives(lambda: find_categories(path), room)
