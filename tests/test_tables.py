"""Tables: what they say of figures, that they fit a terminal, and that every file holds all of it."""

import csv
import json
from pathlib import Path

import pytest

from uflow.evaluate import published
from uflow.evaluate.evaluation import Evaluation
from uflow.evaluate.study import Result
from uflow.evaluate.summary import flagged_table, summarise, summary_markdown, summary_text, write_summary
from uflow.evaluate.tables import FIGURES, Table, evaluations_table, write_json

FLAGGED = {"good": {"images": 4, "share": 0.25}, "a": {"images": 1, "share": 1.0}, "b": {"images": 3, "share": 0.0}}


def test_a_table_of_evaluations_gives_figures_and_shares_of_images() -> None:
    evaluation = Evaluation(0.9, 0.8, 0.7, 0.4, 0.5, -2.0, FLAGGED, iou_defective=0.3, pixel_f1=0.6)
    table = evaluations_table({"tile": evaluation})
    (row,) = table.rows
    assert dict(zip([title.replace("\n", " ") for title in table.header], row, strict=True)) == {
        "category": "tile",
        "pixel AUROC": "0.900",
        "AUPRO": "0.800",
        "image AUROC": "0.700",
        "mIoU auto": "0.400",
        "defect IoU": "0.300",
        "pixel F1": "0.600",
        "mIoU best": "0.500",  # mIoU fair was not measured
        "good flagged": "25.0%",
        "defects flagged": "25.0%",
    }


def test_a_figure_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    write_json({"auroc": 0.5}, path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json({"auroc": float("nan")}, path)
    assert json.loads(path.read_bytes()) == {"auroc": 0.5}


def test_a_table_in_three_forms() -> None:
    table = Table(["part", "kind", "mIoU\nauto", "paper"], [["a | b", "x", "0.5", "-"], ["c", "y", "10.0", "0.25"]],
                  texts=2, tight=[3], rules=[1])  # fmt: skip
    assert table.to_text().splitlines() == [
        "             mIoU",
        "part   kind  auto paper",
        "-----------------------",
        "a | b  x      0.5     -",
        "-----------------------",
        "c      y     10.0  0.25",
    ]
    assert table.to_markdown().splitlines() == [
        "| part | kind | mIoU auto | paper |",
        "| --- | --- | ---: | ---: |",
        "| a \\| b | x | 0.5 | - |",
        "| c | y | 10.0 | 0.25 |",
    ]
    records = Table.from_records(["a", "b"], [{"a": 1.5, "c": 3}, {"a": "x, y", "b": None}])
    assert records.to_csv() == 'a,b\n1.5,\n"x, y",\n'


def test_a_dash_for_what_cannot_be_computed() -> None:
    lacking = Evaluation(0.5, None, 0.75, None, None, None, {})
    whole = Evaluation(0.7, 0.5, 0.25, None, None, None, {})
    table = evaluations_table({"a": lacking, "b": whole})
    assert [list(row) for row in table.rows] == [
        ["a", "0.500", "-", "0.750"],
        ["b", "0.700", "0.500", "0.250"],
        ["mean", "0.600", "-", "0.500"],  # a mean needs the figure of every category
    ]


# Of a study ---------------------------------------------------------------------------------------------------


def summary_of(*names: str, **changed) -> dict:
    """What `summarise` gives for made figures; `changed` of every category."""
    results = []
    for name in names:
        flagged = {"good": {"images": 10, "share": 0.1}, "bent": {"images": 4, "share": 1.0}}
        figures = {field: 0.5 for field in FIGURES if not field.endswith("flagged")}
        figures |= {"pixel_auroc": 0.98765, "aupro": None, "iou_defective": 0.25, "best_log_nfa": -2.0}
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
        results.append(Result(name, "mvtec", record | changed, "evaluated"))
    return summarise(results)


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_text_fits_a_terminal_and_stands_beside_the_published_figures() -> None:
    names = [*published.MVTEC_AD, "a_category_with_a_name_that_is_much_too_long_to_print"]
    text = summary_text(summary_of(*names))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 120
    assert squeezed(lines[0]) == "pixel image mIoU defect pixel mIoU mIoU good defects"
    tile = next(line for line in lines if line.startswith("tile "))
    assert squeezed(tile) == "tile 0.988 0.975 - 0.930 0.500 0.500 0.619 0.250 0.500 0.500 0.500 0.623 10.0% 100.0%"
    means = [line.split("  ")[0] for line in lines if line.startswith("mean")]
    assert means == ["mean of 5 textures", "mean of 10 objects", "mean of 15 MVTec AD", "mean of 16"]
    assert "Paper: U-Flow with MS-CaiT at 448 pixels, its epoch chosen on the test set" in text
    assert "Not measured here" in squeezed(text)
    assert "mcait at 448x448, at most 200 epochs, seed 1" in text


def test_text_without_published_figures_has_no_columns_for_them() -> None:
    text = summary_text(summary_of("nut"))
    assert "paper" not in text.lower().split("protocol")[0]
    assert "published" not in text
    assert "mean" not in text.split("mIoU auto:")[0]
    assert squeezed(text.splitlines()[3]) == "nut 0.988 - 0.500 0.500 0.250 0.500 0.500 0.500 10.0% 100.0%"


def test_figures_that_are_not_fair_say_so_in_every_file(tmp_path: Path) -> None:
    files = write_summary(summary_of("nut", "tile", selected_on_test=True), tmp_path)
    for path in files:
        text = path.read_text()
        assert "NOT A FAIR FIGURE" in text or (path.suffix == ".csv" and text.count("True") == 5), path
    fair = write_summary(summary_of("nut"), tmp_path)
    assert not any("NOT A FAIR" in path.read_text() or "True" in path.read_text() for path in fair)


def test_failures_stand_in_every_file(tmp_path: Path) -> None:
    good = summary_of("tile")
    failed = summarise([Result("wood", "mvtec", error="bent/1.png has no mask | none")])
    summary = good | {"categories": good["categories"] + failed["categories"]}
    files = {path.suffix: path.read_text() for path in write_summary(summary, tmp_path)}
    assert "wood failed: bent/1.png has no mask | none" in files[".txt"]
    assert files[".txt"].count("failed") == len(FIGURES) + 1
    assert "| wood | failed |" in files[".md"]
    assert json.loads(files[".json"])["categories"][1]["error"] == "bent/1.png has no mask | none"
    errors = [row["error"] for row in csv.DictReader(files[".csv"].splitlines())]
    assert errors == ["", "bent/1.png has no mask | none", ""]
    nothing = summary_text(failed)
    assert "wood failed: bent/1.png" in nothing


def test_files_hold_what_was_measured(tmp_path: Path) -> None:
    summary = summary_of("tile", "wood")
    files = write_summary(summary, tmp_path / "new")
    assert sorted(files) == sorted((tmp_path / "new").iterdir())
    assert json.loads((tmp_path / "new/results.json").read_text()) == summary
    rows = list(csv.DictReader((tmp_path / "new/results.csv").read_text().splitlines()))
    assert [(row["category"], row["kind"]) for row in rows] == [
        *(("tile", "category"), ("wood", "category"), ("textures", "mean"), ("all", "mean"))
    ]
    assert (float(rows[0]["pixel_auroc"]), rows[0]["aupro"]) == (0.98765, "")
    assert (float(rows[0]["published_miou_best"]), rows[0]["epochs"]) == (0.6229, "200")
    assert [float(rows[0][name]) for name in ("iou_defective", "pixel_f1", "good_flagged", "defective_flagged")] == [
        *(0.25, 0.5, 0.1, 1.0)
    ]
    page = (tmp_path / "new/results.md").read_text()
    assert "| category | pixel AUROC | paper | AUPRO | paper | image AUROC | mIoU auto | paper | defect IoU |" in page
    assert "| PatchCore | 0.981 | 0.935 | - | - |" in page
    assert "| FastFlow | 0.985 | 0.922 | 0.383 | 0.493 |" in page
    assert "| tile | bent | 4 | 100.0% |" in page
    assert page == summary_markdown(summary)
    assert flagged_table(summary).rows[0] == ["tile", "good", "10", "10.0%"]
