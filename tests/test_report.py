"""Pictures show what they should: outlines on the border of the mask, files complete."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from uflow.detector import Prediction
from uflow.evaluate import published
from uflow.evaluate import study as experiments
from uflow.evaluate import tables as report
from uflow.evaluate.evaluation import Evaluation


@pytest.fixture
def prediction() -> Prediction:
    anomaly_map = np.zeros((40, 60), np.float32)
    anomaly_map[10:20, 30:50] = 0.9
    mask = anomaly_map > 0.5
    log_nfa = np.where(mask, -3, 5).astype(np.float32)
    return Prediction(0.9, True, anomaly_map, log_nfa, mask, [], np.full((40, 60, 3), 100, np.uint8))


def test_outline_is_the_inner_border() -> None:
    mask = np.zeros((9, 9), bool)
    mask[2:7, 3:8] = True
    border = report.outline(mask)
    expected = mask.copy()
    expected[3:6, 4:7] = False
    np.testing.assert_array_equal(border, expected)
    whole = report.outline(np.ones((4, 4), bool))
    assert whole.sum() == 12  # the border of the picture is a border


def test_overlay_outlines_regions_and_leaves_normal_pixels(prediction: Prediction) -> None:
    picture = np.asarray(report.overlay(prediction))
    np.testing.assert_array_equal(picture[10, 30:50], np.tile(report.OUTLINE, (20, 1)))
    assert (picture[:8] == 100).all()
    assert picture[15, 40, 0] > 180  # hot


def test_write_prediction_leaves_no_temporary_file(prediction: Prediction, tmp_path: Path) -> None:
    written = report.write_prediction(prediction, tmp_path / "new/part", arrays=True)
    assert sorted(written) == sorted((tmp_path / "new").iterdir())
    assert len(written) == 5


def test_table_gives_shares_of_good_and_defective_images() -> None:
    flagged = {"good": {"images": 4, "share": 0.25}, "a": {"images": 1, "share": 1.0}, "b": {"images": 3, "share": 0.0}}
    evaluation = Evaluation(0.9, 0.8, 0.7, 0.4, 0.5, -2.0, flagged)
    header, row = report.table({"tile": evaluation})
    assert dict(zip(header, row, strict=True)) == {
        "category": "tile",
        "pixel AUROC": "0.900",
        "AUPRO": "0.800",
        "image AUROC": "0.700",
        "mIoU": "0.400",
        "mIoU best": "0.500",
        "good flagged": "25.0%",
        "defective flagged": "25.0%",
    }


# Tables ---------------------------------------------------------------------------------------------------------------


def summary_of(*names: str, **changed) -> dict:
    """What `experiments.summary` gives for made figures; `changed` of every category."""
    results = []
    for name in names:
        flagged = {"good": {"images": 10, "share": 0.1}, "bent": {"images": 4, "share": 1.0}}
        figures = dict.fromkeys(experiments.METRICS, 0.5) | {"pixel_auroc": 0.98765, "aupro": None}
        record = {
            "category": name,
            "counts": {"train": 230, "test": 117},
            "model": f"{name}.uflow",
            "selected_on_test": False,
            "alpha": 0.05,
            "trained_with": {"backbone": "mcait", "image_size": [448, 448], "settings": {"epochs": 200, "seed": 1}},
            "epochs": 200,
            "training_seconds": 3.5,
            "evaluation": {"protocol": "paper", "flagged": flagged, **figures},
        }
        results.append(experiments.Result(name, "mvtec", record | changed, "evaluated"))
    return experiments.summary(results)


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_text_fits_a_terminal_and_stands_beside_the_published_figures() -> None:
    names = [*published.MVTEC_AD, "a_category_with_a_name_that_is_much_too_long_to_print"]
    text = report.summary_text(summary_of(*names))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 120
    assert squeezed(lines[0]) == "pixel pub- pub- image mIoU pub- mIoU mIoU pub- good defective"
    tile = next(line for line in lines if line.startswith("tile "))
    assert squeezed(tile) == "tile 0.988 0.975 - 0.930 0.500 0.500 0.619 0.500 0.500 0.623 10.0% 100.0%"
    means = [line.split("  ")[0] for line in lines if line.startswith("mean")]
    assert means == ["mean of 5 textures", "mean of 10 objects", "mean of 15 MVTec AD", "mean of 16"]
    assert "* published: U-Flow with MS-CaiT at 448 pixels, its epoch chosen on the test set" in text
    assert "Not measured here" in squeezed(text)
    assert "mcait at 448x448, at most 200 epochs, seed 1" in text


def test_text_without_published_figures_has_no_columns_for_them() -> None:
    text = report.summary_text(summary_of("nut"))
    assert "published" not in text
    assert "mean" not in text.split("mIoU auto:")[0]
    assert squeezed(text.splitlines()[3]) == "nut 0.988 - 0.500 0.500 0.500 0.500 10.0% 100.0%"


def test_figures_that_are_not_fair_say_so_in_every_file(tmp_path: Path) -> None:
    files = report.write_summary(summary_of("nut", "tile", selected_on_test=True), tmp_path)
    for path in files:
        text = path.read_text()
        assert "NOT A FAIR FIGURE" in text or (path.suffix == ".csv" and text.count("True") == 5), path
    fair = report.write_summary(summary_of("nut"), tmp_path)
    assert not any("NOT A FAIR" in path.read_text() or "True" in path.read_text() for path in fair)


def test_failures_stand_in_every_file(tmp_path: Path) -> None:
    good = summary_of("tile")
    failed = experiments.summary([experiments.Result("wood", "mvtec", error="bent/1.png has no mask | none")])
    summary = good | {"categories": good["categories"] + failed["categories"]}
    files = {path.suffix: path.read_text() for path in report.write_summary(summary, tmp_path)}
    assert "wood failed: bent/1.png has no mask | none" in files[".txt"]
    assert files[".txt"].count("failed") == 9
    assert "| wood | failed |" in files[".md"]
    assert json.loads(files[".json"])["categories"][1]["error"] == "bent/1.png has no mask | none"
    errors = [row["error"] for row in csv.DictReader(files[".csv"].splitlines())]
    assert errors == ["", "bent/1.png has no mask | none", ""]
    nothing = report.summary_text(failed)
    assert "wood failed: bent/1.png" in nothing


def test_files_hold_what_was_measured(tmp_path: Path) -> None:
    summary = summary_of("tile", "wood")
    files = report.write_summary(summary, tmp_path / "new")
    assert sorted(files) == sorted((tmp_path / "new").iterdir())
    assert json.loads((tmp_path / "new/results.json").read_text()) == summary
    rows = list(csv.DictReader((tmp_path / "new/results.csv").read_text().splitlines()))
    assert [(row["category"], row["kind"]) for row in rows] == [
        *(("tile", "category"), ("wood", "category"), ("textures", "mean"), ("all", "mean"))
    ]
    assert (float(rows[0]["pixel_auroc"]), rows[0]["aupro"]) == (0.98765, "")
    assert (float(rows[0]["published_miou_best"]), rows[0]["epochs"]) == (0.6229, "200")
    page = (tmp_path / "new/results.md").read_text()
    assert "| category | pixel AUROC | published* | AUPRO | published* | image AUROC |" in page
    assert "| PatchCore* | 0.981 | - | - |" in page
    assert "| FastFlow* | 0.985 | 0.383 | 0.493 |" in page
    assert "| tile | bent | 4 | 100.0% |" in page


def test_a_table_prints_a_dash_for_what_cannot_be_computed() -> None:
    evaluation = Evaluation(None, None, 0.75, None, None, None, {})
    rows = report.table({"a": evaluation, "b": evaluation})
    assert rows[1] == ["a", "-", "-", "0.750", "-", "-", "-", "-"]
    assert rows[-1][:4] == ["mean", "-", "-", "0.750"]
