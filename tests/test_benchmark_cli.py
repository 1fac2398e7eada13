"""`uflow benchmark`: what it measures, prints and writes, and how it fails."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from uflow import benchmark, cli
from uflow.evaluate import tables as report
from uflow.images import list_images, read_image
from uflow.predictor import Predictor
from uflow.scoring import Evidence
from uflow.threshold import CalibratedThreshold


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Call the command in an empty folder; returns its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["uflow", "benchmark", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        return (exit_info.value.code or 0, *capsys.readouterr())

    return call


SMALL = ["--shape", "20x8x10", "--shape", "12x4x5", "--size", "16x20", "--batch", 2, "--repeats", 3]


def test_prints_a_table_and_writes_json(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.common, "shows_bars", lambda: True)  # as on a terminal
    code, out, err = run(*SMALL, "--threads", "1,2", "--json", "speed.json")
    assert code == 0, err
    assert "Measuring" in err  # the progress bar is not part of the output
    saved = json.loads((tmp_path / "speed.json").read_text())
    assert saved["shapes"] == [[20, 8, 10], [12, 4, 5]]
    assert (saved["size"], saved["batch"], saved["repeats"]) == ([16, 20], 2, 3)
    assert saved["machine"]["cores"] >= 1
    assert saved["machine"]["versions"]["numpy"] == np.__version__
    phases = [(m["phase"], m["threads"]) for m in saved["measurements"]]
    assert phases == [
        ("max-tree 8x10", 1),
        ("max-tree 4x5", 1),
        ("energy", 1),
        ("energy", 2),
        ("segmentation", 1),
        ("segmentation", 2),
        ("log_nfa", 1),
        ("log_nfa", 2),
    ]
    for m in saved["measurements"]:
        assert 0 < m["ms_median"] <= m["ms_p99"]
        assert m["images_per_second"] == pytest.approx(1000 / m["ms_median"])
        assert (m["ns_per_pixel"] is not None) == m["phase"].startswith("max-tree")
        assert f"{m['ms_median']:.3g}" in out
    assert saved["measurements"][0]["ns_per_pixel"] == pytest.approx(saved["measurements"][0]["ms_median"] * 1e6 / 80)


def test_latents_and_test_of_a_model(run, detector, tmp_path: Path) -> None:
    detector.save(tmp_path / "grating.uflow")
    code, _, err = run("--model", "grating.uflow", "--repeats", 1, "--batch", 1, "--json", "speed.json")
    assert code == 0, err
    shapes = json.loads((tmp_path / "speed.json").read_text())["shapes"]
    flow = detector.network.flow
    assert shapes == [[c, *size] for c, size in zip(flow.latent_channels, flow.sizes, strict=True)]


def test_default_is_mscait(run, tmp_path: Path) -> None:
    code, _, err = run("--batch", 1, "--repeats", 1, "--json", "speed.json")
    assert code == 0, err
    saved = json.loads((tmp_path / "speed.json").read_text())
    assert saved["shapes"] == [[816, 28, 28], [192, 14, 14]]
    threads = {m["threads"] for m in saved["measurements"]}
    assert threads == {1, benchmark.cores()}


def test_help_shows_a_runnable_example(run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert "Example: uflow benchmark --shape" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "20x8"], "--shape is CHANNELSxHEIGHTxWIDTH, such as 816x28x28; got '20x8'"),
        (["--shape", "20xAx8"], "'20xax8' is not a list of whole numbers"),
        (["--shape", "20x0x8"], "all positive; got 20x0x8"),
        (["--shape", "900000x90000x90000"], "need 4.67e+08 GB, more than there is"),
        (["--size", "1x2x3"], "--size is a side or HEIGHTxWIDTH"),
        (["--size", "0"], "size must be positive, got 0"),
        (["--batch", 0], "at least 1 image, got 0"),
        (["--threads", "1,0"], "the number of threads must be at least 1, got [1, 0]"),
        (["--threads", "many"], "'many' is not a list of whole numbers"),
        (["--repeats", 0], "--repeats must be at least 1, got 0"),
        (["--model", "absent.uflow"], "there is no model file absent.uflow"),
        (["--model", "a.uflow", "--shape", "20x8x8"], "give --shape or --model, not both"),
        (["--json", "no/such/speed.json"], "there is no folder"),
        (["--end-to-end"], "--end-to-end needs --model and images"),
        (["--end-to-end", "parts/"], "--end-to-end needs --model and images"),
        (["parts/"], "images go with --end-to-end"),
        (["--model", "a.uflow", "--runtime", "openvino"], "a runtime is for an exported folder, and 'a.uflow' is none"),
    ],
)
def test_bad_input_is_one_line(run, arguments, message: str) -> None:
    code, _, err = run(*arguments)
    assert code == 1
    assert err.startswith("uflow: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_json_is_written_whole_or_not_at_all(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "speed.json").write_text("before")
    monkeypatch.setattr(report.schema, "write_json", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    code, _, err = run(*SMALL, "--json", "speed.json")
    assert code == 1
    assert err == "uflow: error: cannot write speed.json: disk full\n"
    assert [path.name for path in tmp_path.iterdir()] == ["speed.json"]
    assert (tmp_path / "speed.json").read_text() == "before"


def test_measure_times_every_call() -> None:
    calls = []

    def function() -> None:
        calls.append(None)
        time.sleep(0.02 if len(calls) == 3 else 0.002)

    measurement = benchmark.measure(benchmark.Step("step", 1, 2, function), repeats=5)
    assert len(calls) == 6  # one to warm up
    assert 1 <= measurement.ms_median < 8  # 2 ms a call of 2 images
    assert measurement.ms_p99 > measurement.ms_median
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        benchmark.measure(benchmark.Step("step", 1, 2, function), repeats=0)


def test_steps_of_a_calibrated_threshold_run() -> None:
    rng = np.random.default_rng(0)
    energies, distances = rng.chisquare(20, (2, 9, 1, 6, 6)).astype(np.float32)
    evidence = [Evidence([e], [d]) for e, d in zip(energies, distances, strict=True)]
    threshold = CalibratedThreshold.from_good_images(evidence, alpha=0.2)
    steps = benchmark.steps([(20, 6, 6)], 12, 3, (1, 2), threshold)
    maps = [step.function() for step in steps if step.phase in ("segmentation", "log_nfa")]
    assert len(maps) == 2  # its threads are its own business
    for log_nfa in maps:
        assert log_nfa.shape == (3, 12, 12)
        np.testing.assert_array_equal(log_nfa, maps[0])


def test_end_to_end_by_phase(run, detector, dataset: Path, tmp_path: Path) -> None:
    detector.save(tmp_path / "grating.uflow")
    call = ("--end-to-end", "--model", "grating.uflow", "--repeats", 5, "--batch", 2, dataset / "test")
    code, out, err = run(*call, "--json", "speed.json", "--device", "cpu")
    assert code == 0, err
    saved = json.loads((tmp_path / "speed.json").read_text())
    found = {m["phase"]: m for m in saved["measurements"]}
    phases = ["read", "resize", "backbone", "flow", "segmentation"]
    assert list(found) == [*phases, "one image", "stream, batch 2"]
    assert all(m["threads"] is None and m["ms_median"] > 0 for m in found.values())
    parts = sum(found[phase]["ms_median"] for phase in phases)
    assert parts < 2 * found["one image"]["ms_median"]
    assert found["one image"]["ms_median"] < 2 * parts
    assert "stream, batch 2" in out


def test_phases_of_tiles_add_up(detector, dataset: Path) -> None:
    images = [np.tile(read_image(path), (3, 2, 1)) for path in list_images(dataset / "test/good")[:1]]
    own = detector.predictor
    tiled = Predictor(own.network, own.threshold, own.blend, tile=True)
    measured = {m.phase: m for m in benchmark.end_to_end(tiled, images, batch=4, repeats=2)}
    assert measured["flow"].ms_median < measured["one image"].ms_median
    with pytest.raises(ValueError, match="at least one image is needed"):
        next(benchmark.end_to_end(tiled, []))
    with pytest.raises(ValueError, match="must be at least 1, got 0 and 3"):
        next(benchmark.end_to_end(tiled, images, batch=0, repeats=3))
