"""Every published figure stands beside what was measured, under its category and its method."""

import importlib
from pathlib import Path

import pytest

from uflow.evaluate import published, rivals, study
from uflow.evaluate.literature import FIGURES, beside_literature, literature_markdown
from uflow.evaluate.rivals import Result, Settings
from uflow.evaluate.summary import summarise, write_summary
from uflow.recipe import PAPER_TRAINING

ROOT = Path(__file__).parent.parent

OURS = {"pixel_auroc": 0.1111, "aupro": 0.2222, "miou": 0.3333, "miou_fair": 0.3, "miou_best": 0.4444}


def rows_of(layout: str, names: list[str]) -> dict[str, dict[str, dict[str, str]]]:
    tables = beside_literature({name: {"ours": OURS} for name in names}, layout)
    return {
        title: {row[0]: dict(zip(t.header[1:], row[1:], strict=True)) for row in t.rows} for title, t in tables.items()
    }


@pytest.mark.parametrize(("layout", "count"), [("mvtec", 375), ("btad", 60)])
def test_every_published_figure_of_every_category_and_method_is_there(layout: str, count: int) -> None:
    rows = rows_of(layout, list(published.categories(layout)))
    seen = 0
    for method, by_category in published.CONTENT[layout]["categories"].items():
        for category, figures in by_category.items():
            for field, value in figures.items():
                (title,) = [title for title, fields in FIGURES.items() if field in fields]
                assert rows[title][category][f"*{method}*"] == f"{value:.4f}"
                seen += 1
    assert seen == count
    means = published.CONTENT[layout]["means"]
    for title, row in ((title, table[f"mean of {len(published.categories(layout))}"]) for title, table in rows.items()):
        for method, figures in means.items():
            known = [figures[field] for field in FIGURES[title] if field in figures]
            misprinted = (layout, method, title) == ("mvtec", "FastFlow", "AUPRO")  # the note in published.json
            if known and row.get(f"*{method}*", "-") != "-" and not misprinted:
                # BT-mean is weighted by images
                assert float(row[f"*{method}*"]) == pytest.approx(known[0], abs=1.1e-4 if layout == "mvtec" else 0.05)
    assert rows["Pixel AUROC"][published.categories(layout)[0]]["ours"] == "0.1111"
    assert (
        rows["mIoU at the method's own threshold, or at the fair one"][published.categories(layout)[0]]["ours"]
        == "0.3333"
    )


@pytest.mark.parametrize("layout", ["lgg-mri", "shanghaitech"])
def test_a_set_that_was_published_as_a_whole_is_one_row(layout: str) -> None:
    rows = rows_of(layout, [layout])
    for method, figures in published.CONTENT[layout]["means"].items():
        for field, value in figures.items():
            (title,) = [title for title, fields in FIGURES.items() if field in fields]
            assert rows[title] == {layout: rows[title][layout]}
            assert rows[title][layout][f"*{method}*"] == f"{value:.4f}"


def test_other_data_has_nothing_beside_it() -> None:
    assert beside_literature({"tile": {"ours": OURS}}, "folder") == {}
    assert beside_literature({"nut": {"ours": OURS}}, "mvtec") == {}
    assert literature_markdown({"nut": {"ours": OURS}}, "visa") == []


def test_study_and_compare_write_them_with_their_source(tmp_path: Path) -> None:
    evaluation = {"protocol": "paper", "image_auroc": 0.5, "best_log_nfa": 0.0, "flagged": {}, **OURS}
    record = {
        "counts": {"train": 1, "test": 1},
        "selected_on_test": False,
        "alpha": None,
        "trained_with": {},
        "evaluation": evaluation,
    }
    write_summary(summarise([study.Result("carpet", "mvtec", record), study.Result("nut", "folder", record)]), tmp_path)
    results = [Result("carpet", name, 0, layout="mvtec", **OURS) for name in ("uflow", "padim")]
    results.append(Result("carpet", "fre", 0, layout="mvtec", failure="KeyError: made"))
    rivals._write(results, Settings(), tmp_path)
    for name, methods in (("results.md", "measured here"), ("comparison.md", "uflow | padim")):
        text = (tmp_path / name).read_text()
        assert published.CITATION in text
        assert "doi 10.1007/s10851-024-01193-y, tables 1, 2, 3, 5, 8" in text
        (_, pixel_auroc) = text.split("### Pixel AUROC\n\n")
        header, _, row, *_ = pixel_auroc.splitlines()
        assert header.startswith(f"| category | {methods} | *U-Flow* | *CFlow* | *FastFlow* | *PatchCore* |")
        assert row.startswith("| carpet | 0.1111 |")
        assert "| 0.9942 | 0.9925 | 0.9940 | 0.9890 |" in row
        assert "nut" not in pixel_auroc


def test_the_guides_costs_are_those_that_its_command_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the flow; MS-CaiT, which takes long to build, is counted by the command alone."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    paper_cost = importlib.import_module("paper_cost")
    forward, both, _ = paper_cost.count_flow()
    shown = sum(PAPER_TRAINING[name][0] * train for name, (train, _) in published.IMAGES.items())
    judged = sum(PAPER_TRAINING[name][0] * test for name, (_, test) in published.IMAGES.items())
    guide = (ROOT / "docs/guide/paper.md").read_text()
    assert f"| training | {shown * both / 1e15:.1f} | {shown * both / 1e11 / 3600:.1f} |" in guide
    assert f"| choosing the epoch | {judged * forward / 1e15:.1f} |" in guide
