"""The commands, as a user types them: what they write, what they say, and how they fail."""

import errno
import hashlib
import inspect
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from PIL import Image

import uflow
from conftest import call_command
from uflow import cli
from uflow.cli.options import build_recipe
from uflow.cli.predict import output_names
from uflow.cli.train import train
from uflow.detector import Detector, load
from uflow.evaluate.evaluation import Evaluation
from uflow.recipe import Recipe, TrainingSettings


def read_png(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Call the command in an empty folder; returns its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    return partial(call_command, monkeypatch, capsys)


@pytest.fixture
def model(detector, tmp_path: Path) -> Path:
    detector.save(tmp_path / "grating.uflow")
    return tmp_path / "grating.uflow"


@pytest.fixture(scope="module")
def small(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set with 12 images to train on: what is trained here is looked at, not used."""
    root = tmp_path_factory.mktemp("small") / "grating"
    shutil.copytree(dataset, root)
    for path in sorted(root.glob("train/good/*"))[12:]:
        path.unlink()
    return root


def test_train_writes_a_model_named_after_the_category(run, small: Path, tmp_path: Path) -> None:
    code, out, err = run("train", small / "train/good", "--image-size", "64x96", "--epochs", 1, "--alpha", 0.2)
    assert code == 0, err
    assert "Wrote grating.uflow: 1 epoch. Next: uflow predict grating.uflow IMAGES" in out
    assert [path.name for path in tmp_path.glob("grating*")] == ["grating.uflow"]  # the state file is gone
    code, out, err = run("predict", "grating.uflow", small / "test/good/00.png")
    assert code == 0, err
    assert json.loads(out)["image"].endswith("00.png")


def test_flagged_images_join_a_model(run, model: Path, dataset: Path) -> None:
    images = dataset / "test/square"
    code, out, err = run("add-good", model, images)
    assert code == 0, err
    assert "Wrote grating_added.uflow: 4 good images joined its memory and its calibration" in out
    code, out, err = run("info", "grating_added.uflow")
    assert code == 0, err
    assert "added as good" in out
    assert "4 flagged images: 00.png (" in out
    code, out, err = run("predict", "grating_added.uflow", images, "--look-alpha", 0.6, "--device", "cpu")
    assert code == 0, err
    lines = list(map(json.loads, out.splitlines()))
    assert {line["look_alpha"] for line in lines} == {0.6}
    assert [line["verdict"] == "reject" for line in lines] == [line["is_anomalous"] for line in lines]


def test_paper_map_is_of_the_latents_alone(run, small: Path, tmp_path: Path) -> None:
    code, _, err = run("train", small / "train/good", "--image-size", 64, "--epochs", 1, "--alpha", 0.2, "--paper-map")
    assert code == 0, err
    detector = load(tmp_path / "grating.uflow", device="cpu")
    assert detector.network.memory is None
    assert detector.record["settings"]["augment"] is False


def test_exported_folder_predicts_like_the_model(run, model: Path, dataset: Path, tmp_path: Path) -> None:
    code, out, err = run("export", model)
    assert code == 0, err
    assert "Wrote grating_onnx: model.json, network.onnx." in out
    code, exported, err = run("predict", "grating_onnx", dataset / "test", "--runtime", "onnxruntime")
    assert code == 0, err
    _, own, _ = run("predict", model, dataset / "test")
    for a, b in zip(map(json.loads, exported.splitlines()), map(json.loads, own.splitlines()), strict=True):
        assert a["image"] == b["image"]
        assert a["score"] == pytest.approx(b["score"], abs=1e-3)
        assert a["is_anomalous"] == b["is_anomalous"]
        assert [region["box"] for region in a["regions"]] == [region["box"] for region in b["regions"]]
    code, _, err = run("evaluate", "grating_onnx", dataset, "--output", "e.json")
    assert code == 0, err
    code, _, err = run("predict", "grating_onnx", dataset / "test", "--runtime", "tensorrt")
    assert (code, err.count("\n")) == (1, 1)
    assert "which onnxruntime or openvino can run, not 'tensorrt'" in err
    code, _, err = run("export", model, "--format", "tflite")
    assert (code, err.count("\n")) == (1, 1)
    assert "unknown export format 'tflite'; known: onnx, openvino, torch" in err


def test_tiles(run, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.predict, "shows_bars", lambda: True)  # as on a terminal
    code, _, err = run(
        "train", small / "train/good", "-o", "t.uflow", "--image-size", 64, "--epochs", 1, "--alpha", 0.2, "--tile"
    )
    assert code == 0, err
    code, tiled, err = run("predict", "t.uflow", small / "test/good/00.png")
    assert code == 0, err
    assert "Tiles" in err
    again = json.loads(run("predict", "t.uflow", small / "test/good/00.png", "--tile")[1])
    assert {**again, "time": None} == {**json.loads(tiled), "time": None}
    code, whole, err = run("predict", "t.uflow", small / "test/good/00.png", "--no-tile")
    assert code == 0
    assert "Tiles" not in err
    assert json.loads(whole)["score"] != json.loads(tiled)["score"]


def test_predict_writes_pictures_arrays_and_json_lines(run, model: Path, dataset: Path, tmp_path: Path) -> None:
    code, out, err = run("predict", model, dataset / "test", "--output", "results", "--npy")
    assert code == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines == [json.loads(line) for line in (tmp_path / "results/predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    square = next(line for line in lines if line["image"].endswith("square/02.png"))
    assert square["is_anomalous"] is True
    assert square["log_nfa"] < 0
    schema = json.loads((Path(__file__).parent.parent / "docs/prediction.schema.json").read_text())
    for line in lines:
        jsonschema.validate(line, schema)
        assert line["sha256"] == hashlib.sha256(Path(line["image"]).read_bytes()).hexdigest()
        assert (line["model"], line["model_sha256"]) == (model.name, hashlib.sha256(model.read_bytes()).hexdigest())
    stem = tmp_path / "results/square/02"
    mask = read_png(f"{stem}_mask.png")
    assert set(np.unique(mask)) == {0, 255}
    assert (mask > 0).sum() == sum(region["area"] for region in square["regions"])
    anomaly_map = np.load(f"{stem}_map.npy")
    assert anomaly_map.dtype == np.float32
    assert read_png(f"{stem}_map.png").shape == (80, 96, 3)
    np.testing.assert_array_equal(np.load(f"{stem}_log_nfa.npy") < 0, mask > 0)
    assert read_png(f"{stem}_overlay.png").shape == (80, 96, 3)
    assert re.search(r"\d of 8 images have a detected region", err)


def test_images_of_one_name_do_not_overwrite_each_other(run, model: Path, dataset: Path, tmp_path: Path) -> None:
    image = Image.fromarray(read_png(dataset / "test/good/00.png"))
    image.save(tmp_path / "part.png")
    image.save(tmp_path / "part.bmp")
    assert run("predict", model, "part.*", "--output", "results")[0] == 0
    assert {p.name for p in (tmp_path / "results").glob("*_mask.png")} == {"part.png_mask.png", "part.bmp_mask.png"}


def test_folders_alike_below_different_parents_are_kept_apart(run, model: Path, dataset: Path, tmp_path: Path) -> None:
    image = Image.fromarray(read_png(dataset / "test/good/00.png"))
    for line in ("left", "right"):
        (tmp_path / line / "shots").mkdir(parents=True)
        image.save(tmp_path / line / "shots/1.png")
    code, _, err = run("predict", model, "left/shots", "right/shots", "--output", "results")
    assert code == 0, err
    masks = {path.relative_to(tmp_path / "results").as_posix() for path in (tmp_path / "results").rglob("*_mask.png")}
    assert masks == {"left/shots/1_mask.png", "right/shots/1_mask.png"}


def test_evaluate_prints_a_table_and_saves_json(run, model: Path, dataset: Path, tmp_path: Path) -> None:
    code, out, err = run("evaluate", model, dataset)
    assert code == 0, err
    saved = json.loads((tmp_path / "grating_evaluation.json").read_text())
    assert saved["image_auroc"] == 1.0
    assert (saved["model"], saved["root"], saved["protocol"]) == (str(model), str(dataset), "paper")
    assert len(saved["images"]) == 8
    for name in ("AUROC", "AUPRO", "mIoU", "auto", "fair", "best", "defect", "F1", "square"):
        assert name in out
    assert 0 < saved["iou_defective"] < 1
    assert 0 < saved["pixel_f1"] < 1
    assert f"{saved['pixel_auroc']:.3f}" in out
    assert "Wrote grating_evaluation.json" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grating.uflow", "grating_evaluation.json"]


def test_evaluate_a_model_into_a_folder(run, model: Path, dataset: Path, tmp_path: Path) -> None:
    code, out, err = run("evaluate", model, dataset, "--output", "there", "--protocol", "native", "--figures")
    assert code == 0, err
    assert "grating: evaluated; pixel AUROC" in err
    assert "protocol native (at each image's own size" in " ".join(out.split())
    written = {path.relative_to(tmp_path / "there").as_posix() for path in (tmp_path / "there").rglob("*.*")}
    assert {f"results.{suffix}" for suffix in ("md", "csv", "json", "txt")} < written
    assert {"evaluations/grating.json", "figures/grating/curves.png", "figures/grating/examples.png"} < written
    text = (tmp_path / "there/results.txt").read_text()
    assert text.strip() in out
    code, _, err = run("evaluate", model, dataset, "--output", "there", "--protocol", "native")
    assert (code, "grating: already evaluated; " in err) == (0, True)
    code, _, err = run("evaluate", model, dataset, "--output", "there", "--tile", "--protocol", "native")
    assert (code, err.count("\n")) == (1, 1)
    assert "grating.json was made with tile None, not True: give another --output, or delete it" in err


def test_study_trains_and_goes_on(run, small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "data/grating")
    shutil.copytree(small, tmp_path / "data/nut")
    (tmp_path / "data/nut/train/good/03.png").write_bytes(b"no image")
    arguments = ("study", "data", "--epochs", 1, "--image-size", 64, "--alpha", 0.2, "--device", "cpu")
    code, out, err = run(*arguments)
    assert code == 1
    assert "grating: trained, evaluated; pixel AUROC" in err
    assert re.search(r"^nut: failed: .*03\.png", err, re.MULTILINE)
    assert re.search(r"^nut +failed", out, re.MULTILINE)
    assert "Wrote results/results.md, results/results.csv, results/results.json, results/results.txt" in out
    assert [path.name for path in (tmp_path / "results/models").glob("*.uflow")] == ["grating.uflow"]
    shutil.rmtree(tmp_path / "data/nut/test")
    code, out, err = run(*arguments)
    assert code == 1
    assert "grating: already evaluated; pixel AUROC" in err
    assert "nut failed: data/nut has no test (read as mvtec)" in out
    assert run(*arguments, "--categories", "grating")[0] == 0
    code, _, err = run(*arguments, "--categories", "grating,bolt")
    assert (code, err) == (1, "uflow: error: data has no category bolt: it has grating, nut\n")
    code, _, err = run(*arguments, "--categories", "grating", "--seed", 1)
    assert (code, err.count("\n")) == (1, 1)
    assert "grating.uflow was trained with seed 0, not 1: give another --models and --output, or delete it" in err


def test_evaluate_refuses_what_does_not_go_together(run, model: Path, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    shutil.copytree(dataset, tmp_path / "data/grating")
    shutil.copytree(dataset, tmp_path / "data/nut")
    before = sorted(tmp_path.rglob("*"))
    for arguments, message in [
        (
            ("evaluate", model, "data", "--output", "a.json"),
            "--output a.json is a file, for one category without",
        ),
        (("evaluate", model, dataset, "--output", "a.json", "--figures"), "without --figures: give a folder"),
        (("evaluate", model, dataset, "--output", "no/such/a.json"), "cannot write no/such/a.json: there is no folder"),
        (("evaluate", model, dataset, "--output", "file"), "--output file is a file, and a folder is needed"),
        (("evaluate", model, dataset, "--layout", "mvtek"), "there is no layout 'mvtek'"),
        (("evaluate", model, dataset, "--protocol", "own"), "protocol must be one of paper, native, not 'own'"),
        (("evaluate", model, "data", "--categories", "bolt"), "data has no category bolt: it has grating, nut"),
        (("evaluate", dataset, dataset), "is not an exported model"),
        (("study", dataset, "--output", "file"), "--output file is a file, and a folder is needed"),
    ]:
        code, _, err = run(*arguments)
        assert (code, err.count("\n")) == (1, 1), err
        assert message in err
    assert sorted(tmp_path.rglob("*")) == before
    for arguments, message in [
        (("study", dataset, "--protocol", "own"), "protocol must be one of paper, native, not 'own'"),
        (("study", dataset, "--backbone", "resnet1"), "resnet1"),
    ]:
        code, _, err = run(*arguments)
        assert (code, err.count("\n")) == (1, 1), err
        assert message in err
    assert not list(tmp_path.glob("results/*"))


def test_a_model_chosen_on_the_test_set_is_no_fair_one(run, small: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = ("--epochs", 1, "--image-size", 64, "--alpha", 0.2, "--device", "cpu")
    code, out, err = run("study", small, "--select-on-test", *options)
    assert code == 0, err
    assert out.startswith("--select-on-test: each epoch is chosen on the test set, to reproduce. It is no fair figure.")
    assert "NOT A FAIR FIGURE: each epoch chosen by pixel AUROC on the test set" in out
    code, out, err = run("evaluate", "results/models/grating.uflow", small)
    assert code == 0, err
    assert "NOT A FAIR FIGURE" in out
    caplog.clear()
    code, _, err = run("predict", "results/models/grating.uflow", small / "test/good/00.png")
    assert code == 0, err
    assert "chosen on its test set: its figures there are not fair" in caplog.text


def test_defaults_shown_are_those_of_the_library() -> None:
    assert build_recipe() == Recipe()
    for command in (train, cli.evaluate.study):
        shown = {name: parameter.default for name, parameter in inspect.signature(command).parameters.items()}
        options = inspect.signature(build_recipe).parameters
        assert {name: shown[name] for name in options} == {name: option.default for name, option in options.items()}
        assert shown["device"] == inspect.signature(Detector.fit).parameters["device"].default


def test_options_of_a_training_build_its_recipe() -> None:
    settings = TrainingSettings(3, 8, 1e-3, seed=5, augment=False, memory_size=0)
    recipe = build_recipe("resnet18", "64x96", strides="8,16", epochs=3, batch_size=8, learning_rate=1e-3, held_out=0.2,
                          tile=True, paper_test=True, paper_map=True, seed=5)  # fmt: skip
    assert recipe == Recipe(
        "resnet18", (64, 96), strides=(8, 16), settings=settings, held_out=0.2, alpha=None, tile=True
    )


COMMANDS = ["train", "predict", "evaluate", "study", "compare", "calibrate", "export", "info", "benchmark", "demo"]


@pytest.mark.parametrize("command", [*COMMANDS, "weights list", "weights fetch"])
def test_help_shows_a_runnable_example(run, command: str) -> None:
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    assert f"Example: uflow {command}" in out


def test_help_lists_the_commands_in_order_and_imports_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from uflow.cli import main; sys.argv = ['uflow', '--help']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    places = [re.search(rf"^\W*{command} ", done.stdout, re.MULTILINE) for command in COMMANDS]
    assert all(places)
    starts = [place.start() for place in places if place]
    assert starts == sorted(starts)


def test_python_m_uflow_says_its_version() -> None:
    done = subprocess.run([sys.executable, "-m", "uflow", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"uflow {uflow.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "absent"], "absent"),
        (["train", "empty"], "no images"),
        (["train", "DATA", "--image-size", "wide"], "'wide' is not a list of whole numbers"),
        (["train", "DATA", "--backbone", "resnet1"], "resnet1"),
        (["train", "DATA", "--output", "no/such/folder.uflow"], "there is no folder"),
        (["predict", "absent.uflow", "DATA"], "there is no model file absent.uflow"),
        (["predict", "text.uflow", "DATA"], "text.uflow is not a uflow model file"),
        (["evaluate", "MODEL", "empty"], "empty"),
        (
            ["train", "DATA", "--output", "empty"],
            "--output empty is a folder: name the file to write",
        ),
        (["train", "DATA", "--seed", "-1"], "--seed is a whole number from 0 on, got -1"),
        (["train", "DATA", "--quality", "best"], "quality must be one of fast, balanced, fine, got 'best'"),
        (["train", "DATA", "--seed", str(10**20)], "--seed is at most 9223372036854775807, got 1"),
        (["compare", "DATA", "--seeds", f"0,{10**20}"], "--seeds is at most 9223372036854775807, got 1"),
        (["monitor", "MODEL"], "grating.uflow is no text: give the predictions.jsonl that uflow predict wrote"),
        (["monitor", "absent.jsonl"], "uflow: error: absent.jsonl: No such file or directory"),
        (["monitor", "empty"], "uflow: error: empty: Is a directory"),
        (["study", "DATA", "--seed", "-1"], "--seed is a whole number from 0 on, got -1"),
        (["compare", "DATA", "--seeds", "0,-1"], "--seeds is a whole number from 0 on, got -1"),
        (["demo", "--seed", "-1"], "--seed is a whole number from 0 on, got -1"),
        (["demo", "--output", "text.uflow"], "--output text.uflow is a file, and a folder is needed: name another"),
        (
            ["predict", "MODEL", "DATA", "--output", "text.uflow"],
            "--output text.uflow is a file, and a folder is needed",
        ),
        (["calibrate", "MODEL", "DATA", "--output", "empty"], "--output empty is a folder: name the file to write"),
        (["export", "MODEL", "--output", "text.uflow"], "--output text.uflow is a file, and a folder is needed"),
        (["benchmark", "--json", "empty"], "--json empty is a folder: name the file to write"),
    ],
)
def test_bad_input_is_one_line(run, model: Path, dataset: Path, tmp_path: Path, arguments, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.uflow").write_text("hello")
    places = {"DATA": dataset / "train/good", "MODEL": model}
    code, _, err = run(*(places.get(argument, argument) for argument in arguments))
    assert code == 1
    assert err.startswith("uflow: error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["predict", "calibrate"])
def test_a_model_that_is_not_there_is_said_without_torch(name: str, dataset: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from uflow.cli import main; main()"
    command = [sys.executable, "-c", code, name, "absent_onnx", str(dataset / "test/good")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "uflow: error: there is no model file absent_onnx\n"


def test_calibrate_writes_another_model(run, model: Path, dataset: Path, caplog) -> None:
    before = model.read_bytes()
    code, out, err = run("calibrate", model, dataset / "test/good", "--alpha", 0.3)
    assert code == 0, err
    assert "Wrote grating_calibrated.uflow: calibrated for alpha 0.3" in out
    assert "calibrated for alpha 0.3 on 4 good images" in caplog.text
    assert model.read_bytes() == before
    code, out, err = run("predict", "grating_calibrated.uflow", dataset / "test/good")
    assert code == 0, err
    lowest = [json.loads(line)["log_nfa"] for line in out.splitlines()]
    code, out, err = run("predict", model, dataset / "test/good")
    assert lowest != [json.loads(line)["log_nfa"] for line in out.splitlines()]


def test_calibrate_errors(run, model: Path, dataset: Path) -> None:
    code, _, err = run("calibrate", model, dataset / "test/good", "--soft-clamp", "tanh(r/clamp)")
    assert code == 1
    assert "soft_clamp is for checkpoints made elsewhere" in err
    code, _, err = run("calibrate", model, dataset / "test/good", "--alpha", 2)
    assert code == 1
    assert "alpha is a probability" in err
    code, _, err = run("calibrate", model, dataset / "test/good", "--output", "no/such/folder.uflow")
    assert code == 1
    assert "there is no folder" in err


def test_messages_leave_standard_output_to_json(model: Path, dataset: Path, tmp_path: Path) -> None:
    with Image.open(dataset / "test/good/00.png") as image:
        image.convert("P").save(tmp_path / "palette.png")  # said once: a message
    # In a process of its own: pytest takes the messages of this one.
    command = [sys.executable, "-c", "from uflow.cli import main; main()", "predict", model, tmp_path / "palette.png"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["image"].endswith("palette.png")
    assert "palette image" in " ".join(done.stderr.split())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder_is_noticed_before_the_training(run, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    code, _, err = run("train", dataset / "train/good", "--output", "locked/a.uflow")
    assert (code, err) == (1, "uflow: error: cannot write locked/a.uflow: Permission denied\n")


def test_a_full_disk_is_noticed_before_the_training(run, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    code, _, err = run("train", dataset / "train/good", "--output", "a.uflow")
    assert (code, err) == (1, "uflow: error: cannot write a.uflow: No space left on device\n")


def test_names_of_files_are_no_markup(run, model: Path, dataset: Path, tmp_path: Path) -> None:
    name = "[red]part[/]"
    shutil.copytree(dataset / "test/good", tmp_path / name)
    code, out, err = run("calibrate", model, name, "--alpha", 0.3, "--output", f"{name}.uflow")
    assert code == 0, err
    assert f"Wrote {name}.uflow: calibrated" in out
    code, _, err = run("predict", model, name, "--output", f"{name}_out")
    assert code == 0, err
    assert f"pictures and predictions.jsonl in {name}_out" in err


def test_names_of_many_outputs_take_no_time() -> None:
    paths = [Path(f"parts/{i}.png") for i in range(20_000)] + [Path("parts/7.bmp")]
    started = time.perf_counter()
    names = output_names(paths)
    assert time.perf_counter() - started < 5  # seconds; with a look at all others for each it took minutes
    assert [name.as_posix() for name in (names[6], names[7], names[-1])] == ["6", "7.png", "7.bmp"]


def test_demo_prints_its_whole_table(run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    evaluation = Evaluation(0.9, 0.8, 0.7, 0.6, 0.5, -2.0, {"good": {"images": 4, "share": 0.25}})
    monkeypatch.setattr(
        "uflow.demo.run", lambda output, seed, device, progress: {"brick": evaluation, "grass": evaluation}
    )
    monkeypatch.setenv("COLUMNS", "40")  # narrower than the table: its lines are as long as they are
    code, out, err = run("demo")
    assert code == 0, err
    assert [line.split() for line in out.splitlines()[3:5]] == [
        ["brick", "0.900", "0.800", "0.700", "0.600", "0.500", "25.0%"],
        ["grass", "0.900", "0.800", "0.700", "0.600", "0.500", "25.0%"],
    ]


class Ascii(io.TextIOWrapper):
    """A terminal that shows ASCII only."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="ascii", write_through=True)

    def text(self) -> str:
        return self.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]


def test_any_name_is_printed_on_any_terminal(run, model: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Ascii()
    monkeypatch.setattr(sys, "stdout", terminal)
    code, _, err = run("calibrate", model, dataset / "test/good", "--alpha", 0.3, "--output", "tëil.uflow")
    assert code == 0, err
    assert "Wrote t\\xebil.uflow" in terminal.text()
    assert Path("tëil.uflow").is_file()


def test_a_closed_output_does_not_undo_the_work(
    run, model: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    code, _, err = run("evaluate", model, dataset, "--output", "e.json")
    assert code == 0, err
    assert Path("e.json").is_file()
    images = dataset / "test/good/00.png"
    code, _, err = run("predict", model, images, "--output", "results")
    assert code == 1  # for somebody waited for its lines
    assert err.splitlines()[-1].endswith("standard output did not take all results: it was closed from the start")
    assert len(Path("results/predictions.jsonl").read_text().splitlines()) == 1
    assert run("predict", model, images, "--report", "report.html")[0] == 1
    assert Path("report.html").is_file()
    code, _, err = run("predict", "not read", images)
    assert (code, err.count("\n")) == (1, 1)
    assert "the results would be lost: standard output takes nothing, it was closed from the start" in err


def test_outputs_are_looked_at_before_the_work(
    run, model: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    for arguments in [
        ("predict", "not read", dataset / "test", "-o", "there"),
        ("calibrate", "not read", dataset / "test/good", "-o", "there.uflow"),
        ("evaluate", "not read", dataset, "-o", "there.json"),
        ("evaluate", "not read", dataset, "-o", "there"),
        ("study", dataset, "-o", "there"),
        ("export", "not read", "-o", "there"),
        ("benchmark", "--json", "there.json"),
        ("demo", "-o", "there"),
    ]:
        code, out, err = run(*arguments)
        assert (code, out, err.count("\n")) == (1, "", 1), err
        assert re.search(r"cannot write .*: No space left on device", err), err


def test_export_looks_at_its_folder_before_the_work(
    run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "own").mkdir()
    (tmp_path / "own/thing").touch()
    broken = tmp_path / "broken.uflow"
    broken.write_bytes(b"not read")
    for arguments, message in [
        (("-o", "file"), "--output file is a file, and a folder is needed"),
        (("-o", "own"), "own exists and is not an exported model"),
        (("-o", "file/new"), "--output .*/file is a file, and a folder is needed"),
        (("--format", "tflite"), "unknown export format 'tflite'"),
    ]:
        code, _, err = run("export", broken, *arguments)
        assert (code, err.count("\n")) == (1, 1), err
        assert re.search(message, err), err
    monkeypatch.setattr("uflow.deploy.export.export", lambda detector, folder, *_, **__: folder.mkdir())
    code, _, err = run("export", model, "-o", "new/folder")
    assert code == 0, err
    assert (tmp_path / "new/folder").is_dir()


def test_sigterm_is_an_orderly_end(run, monkeypatch: pytest.MonkeyPatch) -> None:
    # By its name: in the package, `app` is the Typer application of that module.
    monkeypatch.setattr(sys.modules["uflow.cli.app"], "say", lambda text: signal.raise_signal(signal.SIGTERM))
    assert run("--version")[0] == 143
