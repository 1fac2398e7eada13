"""Report pages as the commands write them: predictions, evaluations, comparisons."""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from conftest import call_command
from uflow.cli import reports
from uflow.cli.reports import write_comparison_report
from uflow.evaluate import datasets, rivals
from uflow.evaluate.kept import KeptMaps, kept_file
from uflow.evaluate.rivals import Result, Settings
from uflow.pages import Card


def data_of(page: Path) -> dict:
    """What the script of a page works on."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.S)
    return json.loads(text)


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


def test_predict_writes_a_report(
    run, model: Path, dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code, out, err = run("predict", model, dataset / "test", "--report", "report.html")
    assert code == 0, err
    assert re.search(r"report report\.html: 8 images, 0\.\d MB\. Nothing is left out\.", caplog.text)
    data = data_of(tmp_path / "report.html")
    lines = [json.loads(line) for line in out.splitlines()]
    for image, line in zip(data["images"], lines, strict=True):
        (finding,) = image["findings"]
        assert line["image"].endswith(image["name"])
        assert not Path(image["name"]).is_absolute()
        assert (finding["score"], finding["p"], finding["flagged"]) == (
            line["score"], line["p_value"], line["is_anomalous"]
        )  # fmt: skip
        assert [r["area"] for r in finding["levels"][0]["regions"]] == [r["area"] for r in line["regions"]]
        assert image["kind"] is None
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "Learnt from" in text
    assert "efficientnet_lite0" in text


def test_a_report_that_cannot_be_written_is_said_before_the_work(run, model: Path, dataset: Path) -> None:
    for command in (
        ["predict", model, dataset / "test"],
        ["evaluate", model, dataset],
        ["study", dataset],
        ["compare", dataset],
    ):
        code, out, err = run(*command, "--report", "nowhere/report.html")
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "cannot write nowhere/report.html: there is no folder" in err


def test_a_report_may_lie_in_the_folder_that_is_made_for_the_results(run, model: Path, dataset: Path) -> None:
    code, _, err = run("evaluate", model, dataset, "--output", "all", "--report", "all/report.html")
    assert code == 0, err
    assert data_of(Path("all/report.html"))["images"]
    for command, wrong in (("study", ("--weights", "no/weights.pt")), ("compare", ("--seeds", "one"))):
        code, _, err = run(command, dataset, "--output", "new", "--report", "new/report.html", *wrong)
        assert code != 0
        assert "there is no folder" not in err, err
        assert not Path("new").exists(), "an error leaves nothing behind"


def test_evaluate_writes_a_report(run, model: Path, dataset: Path, tmp_path: Path) -> None:
    code, _, err = run("evaluate", model, dataset, "--report", "report.html")
    assert code == 0, err
    saved = json.loads((tmp_path / "grating_evaluation.json").read_text())
    data = data_of(tmp_path / "report.html")
    for image, measured in zip(data["images"], saved["images"], strict=True):
        assert measured["path"].endswith(image["name"])
        assert image["kind"] == measured["defect"]
        assert image["findings"][0]["flagged"] == measured["flagged"]
        assert bool(image["truth"]) is (measured["defect"] != "good")
    assert data["categories"][0]["name"] == "grating"
    text = (tmp_path / "report.html").read_text("utf-8")
    assert f"{saved['pixel_auroc']:.3f}" in text
    assert "Images flagged, by kind" in text


def test_a_comparison_shows_each_method_on_the_same_images(detector, dataset: Path, tmp_path: Path) -> None:
    category = replace(datasets.read_mvtec(dataset), name="grating")
    count = len(category.test)
    detector.save(file := tmp_path / "kept.uflow")
    (tmp_path / "kept").mkdir()
    file.replace(kept_file(tmp_path, "grating", "uflow", 0, None))
    maps = np.linspace(0, 5, count * 16, dtype=np.float32).reshape(count, 4, 4)
    KeptMaps(maps, maps.max(axis=(1, 2)).astype(float), 1.0, 2.0).save(kept_file(tmp_path, "grating", "other", 0, 3))
    results = [
        Result("grating", "other", 0, 3, pixel_auroc=0.9),
        Result("grating", "other", 1, 3, pixel_auroc=0.8),
        Result("grating", "uflow", 0, pixel_auroc=0.95),
        Result("grating", "broken", 0, failure="KeyError: made"),
    ]
    page = tmp_path / "report.html"
    write_comparison_report([category], results, Settings(), tmp_path, page)
    data = data_of(page)
    assert [method["name"] for method in data["methods"]] == ["U-Flow", "other"]
    assert [method["calibrated"] for method in data["methods"]] == [True, False]
    assert [image["findings"][1]["score"] for image in data["images"]] == maps.max(axis=(1, 2)).tolist()
    assert all(image["findings"][1]["flagged"] is None for image in data["images"])
    text = page.read_text("utf-8")
    assert text.count('id="map-0-') == 2
    assert "broken is not shown. It failed on grating: KeyError: made" in text
    assert "0.850" in text

    alone = tmp_path / "alone.html"
    write_comparison_report([category], results[:1], Settings(), tmp_path, alone)
    data = data_of(alone)
    assert (data["alpha"], [method["judges"] for method in data["methods"]]) == (None, [False])
    assert alone.read_text("utf-8").count('id="photo-') == count


def test_maps_of_a_method_are_coloured_by_good_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it was trained on it may remember, with maps of nought."""
    asked = []
    monkeypatch.setattr(reports, "coloured_values", lambda values, usual, reach: asked.append((usual, reach)))
    limits = SimpleNamespace(map_picture=lambda picture: None)
    maps = np.arange(3 * 4, dtype=np.float32).reshape(3, 2, 2)
    cards = [Card(str(i), (2, 2), [], kind=kind) for i, kind in enumerate(["good", "good", "scratch"])]
    kept = KeptMaps(maps, np.zeros(3), usual=1e-6, fair=1e-5)
    reports._add_findings(cards, kept, limits)
    assert asked == [pytest.approx((5, 3 + 0.95 * 4))] * 3
    asked.clear()
    reports._add_findings(cards[2:], KeptMaps(maps[2:], kept.scores[2:], kept.usual, kept.fair), limits)
    assert asked == [(1e-6, 1e-5)]


def test_maps_of_a_method_are_kept_where_asked(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bright(images, settings, seed):
        return (32, 48), lambda batch: (batch.mean(1), batch.mean(1).amax((1, 2)))

    monkeypatch.setattr(rivals, "find_method", lambda name: bright)
    category = datasets.read_mvtec(dataset)
    kept = kept_file(tmp_path, category.name, "a:bright", 0, None)
    rivals._measure(category, "a:bright", 0, Settings(image_size=64), kept=kept)
    found = KeptMaps.load(kept)
    assert found.maps.shape == (len(category.test), 128, 128)
    assert found.scores == pytest.approx(found.maps.max(axis=(1, 2)), abs=0.1)
    assert 0 < found.usual < found.fair
    kept.write_bytes(b"PK")
    with pytest.raises(ValueError, match="is damaged") as error:
        KeptMaps.load(kept)
    assert "\n" not in str(error.value)


def test_results_without_maps_are_measured_again(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Path | None] = []

    def measure(category, method, seed, epochs, settings, logs, kept) -> Result:
        ran.append(kept)
        if kept is not None:
            kept.parent.mkdir(exist_ok=True)
            kept.write_bytes(b"kept")
        return Result(category.name, method, seed, epochs, pixel_auroc=0.9)

    monkeypatch.setattr(rivals, "_in_own_process", measure)
    category = datasets.read_mvtec(dataset)
    for keep in (False, False, True, True):
        rivals.compare([category], ["neighbours"], [0], tmp_path, keep=keep)
    assert ran == [None, kept_file(tmp_path, category.name, "neighbours", 0, None)]
