"""The benchmarks run on tiny input: answers agree, tables are printed, JSON is written; the harness itself is fair."""

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PAGE = "# Page\n\n<!-- benchmark:begin -->\nold figures\n<!-- benchmark:end -->\n\nafter\n"

pytest.importorskip("higra", reason="the benchmarks' libraries are not installed: pip install -e '.[bench]'")


@pytest.fixture(scope="module", autouse=True)
def _importable() -> Iterator[None]:
    """The benchmarks are scripts that stand side by side; what they say of a training is not for the tests after."""
    log = logging.getLogger("uflow")
    level = log.level
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))
    log.setLevel(level)


@pytest.fixture(scope="module")
def race() -> ModuleType:
    return importlib.import_module("race")


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return importlib.import_module("tables")


def run(script: str, *arguments: object) -> str:
    """Call a script's main as its command would; returns what it prints."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other libraries' own
        patch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
        importlib.import_module(script).main()
    return out.getvalue()


# The harness ----------------------------------------------------------------------------------------------------------


def test_contestants_take_turns(race: ModuleType) -> None:
    calls: list[str] = []
    contestants = {name: lambda name=name: calls.append(name) for name in "ab"}
    result = race.run(race.Contest("work", "case", contestants, None), race.Pace(1e-9, 1, 101, rounds=4))
    assert calls[:2] == ["a", "b"]  # the answers
    assert calls[-10:] == ["a", "b"] * 5  # one turn warms up
    assert result["rounds"] == 4
    assert [entry["name"] for entry in result["contestants"]] == ["a", "b"]
    assert "ratio" not in result["contestants"][0]


def test_answers_are_compared_before_anything_is_timed(race: ModuleType) -> None:
    calls: list[str] = []
    contestants = {"right": lambda: calls.append("right") or 1.0, "wrong": lambda: calls.append("wrong") or 1.1}
    with pytest.raises(AssertionError):
        race.run(race.Contest("work", "case", contestants, race.agree_within(1e-3)), race.QUICK)
    assert calls == ["right", "wrong"]


def busy(loops: int) -> Callable[[], object]:
    return lambda: sum(range(loops))


def test_ratios_are_of_the_times_a_unit(race: ModuleType) -> None:
    claims = [race.at_least(1, "faster", "thrice"), race.at_most(1, "slower")]
    contestants = {"once": busy(20_000), "thrice": busy(60_000), "again": busy(20_000)}
    contest = race.Contest("work", "case", contestants, None, claims, work=(1, 3, 0.5), unit="loop")
    result = race.run(contest, race.Pace(0.001, 0.2, 21))
    _, thrice, again = result["contestants"]
    assert 0.5 < thrice["ratio"]["median"] < 2  # three times the time for three times the work
    assert 1 < again["ratio"]["median"] < 4
    found = [(claim["text"], claim["rival"]) for claim in result["claims"]]
    assert found == [("faster", "thrice"), ("slower", "thrice"), ("slower", "again")]
    assert result["claims"][0]["ratio"] == thrice["ratio"]
    assert result["claims"][2]["ratio"]["median"] == pytest.approx(1 / again["ratio"]["median"], rel=0.01)
    for spread in (thrice["ratio"], thrice["seconds"]):
        assert spread["low"] <= spread["median"] <= spread["high"]


def test_a_slow_round_is_measured_three_times(race: ModuleType) -> None:
    pace = race.Pace(budget=2.0, most=101)
    assert [pace.rounds_of(seconds) for seconds in (1e-3, 0.1, 0.9, 1.1, 30)] == [101, 20, 5, 3, 3]


@pytest.mark.parametrize(("sense", "worst", "where", "best"), [(">=", 4.9, "28 px", 30.0), ("<=", 30.0, "14 px", 4.9)])
def test_the_worst_case_decides(tables: ModuleType, sense: str, worst: float, where: str, best: float) -> None:
    races = [race_of("56 px", 7.0, sense), race_of("28 px", 4.9, sense), race_of("14 px", 30.0, sense)]
    (target,) = tables.targets(races)
    assert (target["worst"]["median"], target["where"], target["best"]) == (worst, where, best)
    assert target["met"] is False
    (target,) = tables.targets([race_of("28 px", 5.0, sense)])
    assert target["met"] is True  # the bound itself is enough


def race_of(case: str, median: float, sense: str) -> dict[str, object]:
    ratio = {"low": median - 1, "median": median, "high": median + 1}
    return {"case": case, "claims": [{"text": "speed", "sense": sense, "bound": 5.0, "rival": "b", "ratio": ratio}]}


def test_page_without_markers_is_left_alone(tables: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Page\n")
    assert tables.redraw(tmp_path / "README.md", "benchmark", ["table"]) is False
    assert tables.redraw(tmp_path / "absent.md", "benchmark", ["table"]) is False
    assert (tmp_path / "README.md").read_text() == "# Page\n"


def test_numbers_have_three_digits(tables: ModuleType) -> None:
    numbers = (0.00012345, 0.012345, 1.2345, 12.345, 123.45, 12345.0)
    assert [tables.number(v) for v in numbers] == ["0.00012", "0.0123", "1.23", "12.3", "123", "12,300"]


# The segmentation's and the networks' benchmarks ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two pages, after a run of the quick mode."""
    root = tmp_path_factory.mktemp("benchmarks")
    (root / "docs/notebook").mkdir(parents=True)
    for page in ("README.md", "docs/notebook/performance.md"):
        (root / page).write_text(PAGE)
    out = run("run", "--quick", "--rounds", 1, "--root", root)
    assert "| target | wanted |" in out
    assert "redrew README.md, docs/notebook/performance.md" in out
    return root


def test_results(root: Path, tables: ModuleType) -> None:
    result = json.loads((root / "benchmarks/results/segmentation.json").read_text())
    assert result["quick"] is True
    assert result["machine"]["cores"] >= 1
    assert set(result["machine"]["versions"]) >= {"uflow", "numpy", "higra", "scikit-image", "scipy", "mpmath"}
    rivals = {entry["name"] for race in result["races"] for entry in race["contestants"]}
    assert rivals >= {"uflow", "Higra, explicit graph", "scikit-image", "numpy.argsort"}
    has_spots = importlib.util.find_spec("meaningful_spot_detector") is not None  # there is no wheel for every machine
    assert ("meaningful-spot-detector" in rivals) == has_spots
    assert len(tables.targets(result["races"])) >= 11  # without those that need two cores
    growth = [race for race in result["races"] if race["unit"] == "pixel"]
    for race in growth:
        large, small = race["contestants"]
        expected = small["seconds"]["median"] / large["seconds"]["median"] * (56 / 28) ** 2
        assert small["ratio"]["median"] == pytest.approx(expected)


def test_pages(root: Path) -> None:
    readme, notebook = (root / page for page in ("README.md", "docs/notebook/performance.md"))
    for page in (readme, notebook):
        text = page.read_text()
        assert text.startswith("# Page\n\n<!-- benchmark:begin -->\n\n| ")
        assert text.endswith("<!-- benchmark:end -->\n\nafter\n")
        assert "old figures" not in text
        assert "times faster than Higra's better graph" in text
        assert "QUICK MODE" in text
        assert max(map(len, text.splitlines())) <= 120
    assert "| max-tree of noise, ms | 14 px | 28 px | 56 px |" in notebook.read_text()
    assert len(readme.read_text().splitlines()) < 25


def test_plots(root: Path) -> None:
    for name in ("max-tree", "pixel-cost", "threads"):
        with Image.open(root / f"docs/notebook/benchmark-{name}.png") as picture:
            assert picture.width >= 800
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 50


def test_redraw_measures_nothing_and_changes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*.md")}
    monkeypatch.setattr(importlib.import_module("run"), "measure", None)
    run("run", "--redraw", "--root", root)
    assert {path: path.read_bytes() for path in root.rglob("*.md")} == before


def test_quick_figures_are_not_published(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.import_module("run"), "measure", None)
    with pytest.raises(SystemExit):
        run("run", "--quick")
    assert "give another --root" in capsys.readouterr().err


def test_networks(tmp_path: Path) -> None:
    pytest.importorskip("FrEIA")
    out = run("run", "network", "--quick", "--rounds", 1, "--root", tmp_path)
    assert "image to mask: times faster than others †" in out
    result = json.loads((tmp_path / "benchmarks/results/network.json").read_text())
    names = {race["name"] for race in result["races"]}
    assert names >= {"flow, features to latents", "MS-CaiT features", "image to mask, Lite0", "a training epoch"}


# Benchmarks on data sets ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A category in the MVTec layout, images of 128 x 160: large enough for tiles of 64 x 64."""
    root = tmp_path_factory.mktemp("data") / "parts"
    rng = np.random.default_rng(0)
    for folder, count in (("train/good", 12), ("test/good", 2), ("test/square", 2), ("ground_truth/square", 2)):
        (root / folder).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(100, 140, (128, 160), np.uint8)
            if "square" in folder:
                image[30:70, 40:90] = 230
            if folder.startswith("ground_truth"):
                Image.fromarray((image == 230).astype(np.uint8) * 255).save(root / folder / f"{i}_mask.png")
            else:
                Image.fromarray(image).save(root / folder / f"{i}.png")
    return root


@pytest.mark.parametrize(
    ("script", "options", "printed", "keys"),
    [
        ("accuracy", (), "| parts |", ("categories", "races")),
        ("threshold", ("--seeds", 0), "| parts, alpha |", ("promises", "seeds")),
        ("region", ("--seeds", 0), "| parts, alpha |", ("promises", "seeds")),
        ("monitor", (), "| gain 0.8", ("promises", "delays")),
        ("mask", ("--seeds", "0"), "| parts | automatic |", ("categories", "alpha")),
        ("anomalib_maps", (), "| parts | padim | anomalib's F1", ("categories", "seeds")),
        pytest.param("scale", (), "| actors of one thread |", ("actors", "images"), marks=pytest.mark.slow),
        pytest.param("tiles", (), "| tiles, 64x64 |", ("ways", "borders", "large", "races"), marks=pytest.mark.slow),
        pytest.param("export", (), "| ONNX Runtime, INT8 |", ("categories", "races"), marks=pytest.mark.slow),
    ],
)
def test_data_sets(
    parts: Path, tmp_path: Path, script: str, options: tuple[object, ...], printed: str, keys: tuple[str, ...]
) -> None:
    if script == "export":
        pytest.importorskip("openvino")
    if script == "anomalib_maps":
        pytest.importorskip("anomalib")
    file = tmp_path / "results.json"
    out = run(script, parts, "--quick", "--rounds", 1, "--json", file, *options)
    assert printed in out
    saved = json.loads(file.read_text())
    assert set(saved) >= {*keys, "machine", "date"}


def test_exports(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the exports themselves, which take a minute: torch's own network stands for them."""
    script = importlib.import_module("export")
    written: list[object] = []

    def write(detector: object, good: object, folder: Path, kinds: object) -> None:
        written.append(detector)
        (folder / "torch").mkdir()

    monkeypatch.setattr(script, "write_exports", write)
    monkeypatch.setattr(script, "open_exports", lambda *_: {"torch.export": written[-1].predictor})
    file = tmp_path / "results.json"
    out = run("export", parts, "--quick", "--rounds", 1, "--kinds", "torch", "--json", file)
    assert "| torch.export | 0 | 0.0e+00 | 0.0e+00 | 0 |" in out
    saved = json.loads(file.read_text())
    assert saved["categories"]["parts"]["torch.export"]["judged otherwise"] == 0
    assert {race["name"] for race in saved["races"]} == {"the network"}


def test_promise_of_alpha() -> None:
    """With good images alone, a share alpha of them lies beyond the threshold."""
    threshold = importlib.import_module("threshold")
    calibrated, scoring = importlib.import_module("uflow.threshold"), importlib.import_module("uflow.scoring")
    cells = np.random.default_rng(0).chisquare(20, (9, 1, 6, 6)).astype(np.float32)
    rule = calibrated.CalibratedThreshold.from_good_images([scoring.Evidence([x]) for x in cells], alpha=0.05)
    minima = tuple(float(i) for i in range(-50, 49))
    rule = dataclasses.replace(rule, minima=minima)
    lowest = np.array([*minima, -1000.0])
    found = threshold.Run(rule, lowest, np.array([True] * len(minima) + [False]))
    promised = threshold.promise([found], 0.1)
    assert promised["good"] == pytest.approx(0.09, abs=0.011)
    assert promised["defective"] == 1.0
    assert promised["supported"] == pytest.approx(0.01)
    for images, share in ((38, 1 / 39), (39, 1 / 20)):  # one image more, and alpha is used in full
        counted = threshold.by_count([found], images)
        assert counted["good"] == pytest.approx(share, abs=0.003)
        assert counted["defective"] == 1.0


def test_levels_of_masks_are_set_by_images_that_were_kept_out(parts: Path, tmp_path: Path) -> None:
    mask, names = importlib.import_module("mask"), [Path(f"{i}.png") for i in range(12)]
    learnt, kept_out = mask.split(parts, names, 0)
    assert (len(learnt), len(kept_out)) == (9, 3)
    assert set(learnt) | set(kept_out) == set(names)
    (tmp_path / "calibration").mkdir()
    Image.new("L", (9, 9)).save(tmp_path / "calibration/a.png")
    assert mask.split(tmp_path, names, 0) == (names, [tmp_path / "calibration/a.png"])
