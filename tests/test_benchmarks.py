"""The benchmark suite itself: its quick mode writes JSON, tables and plots; targets are judged by their worst case."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).parent.parent
PAGE = "# Page\n\n<!-- benchmark:begin -->\nold figures\n<!-- benchmark:end -->\n\nafter\n"

pytest.importorskip("pytest_benchmark", reason="the benchmarks' libraries are not installed: pip install -e '.[bench]'")


@pytest.fixture(scope="module")
def run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run", REPOSITORY / "benchmarks/run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two pages, after a run of the quick mode."""
    root = tmp_path_factory.mktemp("benchmarks")
    (root / "docs").mkdir()
    for page in ("README.md", "docs/performance.md"):
        (root / page).write_text(PAGE)
    command = [sys.executable, str(REPOSITORY / "benchmarks/run.py"), "--quick", "--root", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return root


def test_results(root: Path) -> None:
    result = json.loads((root / "benchmarks/results/segmentation.json").read_text())
    assert result["quick"] is True
    assert result["machine"]["cores"] >= 1
    assert set(result["machine"]["versions"]) >= {"uflow", "numpy", "higra", "scikit-image", "scipy", "mpmath"}
    libraries = {race["library"] for race in result["benchmarks"]}
    assert libraries >= {"uflow", "Higra, explicit graph", "scikit-image", "numpy.argsort"}
    has_spots = importlib.util.find_spec("meaningful_spot_detector") is not None  # there is no wheel for every machine
    assert ("meaningful-spot-detector" in libraries) == has_spots
    assert len(result["targets"]) >= 11  # without those that need two cores
    for target in result["targets"]:
        median = target["worst"]["median"]
        assert target["worst"]["low"] <= median <= target["worst"]["high"]
        assert target["met"] == (median >= target["bound"] if target["sense"] == ">=" else median <= target["bound"])
    races = [race for race in result["benchmarks"] if race["group"].startswith("max_tree") and "ours" in race]
    assert len(races) >= 24  # 3 sides, 2 kinds, 4 libraries
    off = [race["faster"]["median"] * race["ours"]["median"] / race["time"]["median"] for race in races]
    assert 0.5 < np.median(off) < 2  # ratios of neighbouring rounds are about the ratio of the medians
    for race in result["benchmarks"]:
        for claim in race.get("claims", []):
            faster = race["faster"]["median"]
            expected = faster if claim["sense"] == ">=" else 1 / faster
            assert claim["ratio"]["median"] == pytest.approx(expected)


def test_cost_per_pixel_is_per_pixel(root: Path) -> None:
    result = json.loads((root / "benchmarks/results/segmentation.json").read_text())
    for race in result["benchmarks"]:
        if race["group"].startswith("cost per pixel"):
            growth = race["ours"]["median"] / race["time"]["median"] / (56 / 28) ** 2
            assert race["claims"][0]["ratio"]["median"] == pytest.approx(growth, rel=0.9)


def test_pages(root: Path) -> None:
    for page in ("README.md", "docs/performance.md"):
        text = (root / page).read_text()
        assert text.startswith("# Page\n\n<!-- benchmark:begin -->\n\n| target | wanted |")
        assert text.endswith("<!-- benchmark:end -->\n\nafter\n")
        assert "old figures" not in text
        assert "times faster than Higra" in text
        assert "QUICK MODE" in text
    assert "| max-tree of noise, ms | 14 px | 28 px | 56 px |" in (root / "docs/performance.md").read_text()


def test_plots(root: Path) -> None:
    for name in ("max-tree", "pixel-cost", "threads"):
        with Image.open(root / f"docs/benchmark-{name}.png") as picture:
            assert picture.width >= 800
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 50


def test_redraw_measures_nothing_and_changes_nothing(
    root: Path, run: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*.md")}
    monkeypatch.setattr(sys, "argv", ["run.py", "--redraw", "--root", str(root)])
    monkeypatch.setattr(run, "measure", None)
    run.main()
    assert {path: path.read_bytes() for path in root.rglob("*.md")} == before


def test_quick_figures_are_not_published(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--quick"])
    monkeypatch.setattr(run, "measure", None)
    with pytest.raises(SystemExit):
        run.main()
    assert "give another --root" in capsys.readouterr().err


def race_of(side: int, median: float, sense: str) -> dict[str, object]:
    ratio = {"low": median - 1, "median": median, "high": median + 1}
    return {"kind": "noise", "side": side, "claims": [{"text": "speed", "sense": sense, "bound": 5.0, "ratio": ratio}]}


@pytest.mark.parametrize(
    ("sense", "worst", "where", "best", "met"),
    [(">=", 4.9, "noise, 28 px", 30.0, False), ("<=", 30.0, "noise, 14 px", 4.9, False)],
)
def test_the_worst_case_decides(run: ModuleType, sense: str, worst: float, where: str, best: float, met: bool) -> None:
    races = [race_of(56, 7.0, sense), race_of(28, 4.9, sense), race_of(14, 30.0, sense)]
    (target,) = run.targets(races)
    assert (target["worst"]["median"], target["where"], target["best"]) == (worst, where, best)
    assert target["met"] is met
    (target,) = run.targets([race_of(28, 5.0, sense)])
    assert target["met"] is True  # the bound itself is enough


def test_page_without_markers_is_named(run: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Page\n")
    with pytest.raises(SystemExit, match=r"README\.md lacks the lines"):
        run.replace(tmp_path / "README.md", ["table"])
    assert (tmp_path / "README.md").read_text() == "# Page\n"


def test_numbers_have_three_digits(run: ModuleType) -> None:
    numbers = (0.00012345, 0.012345, 1.2345, 12.345, 123.45, 12345.0)
    assert [run.number(v) for v in numbers] == ["0.00012", "0.0123", "1.23", "12.3", "123", "12,300"]
