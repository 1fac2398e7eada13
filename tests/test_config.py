"""Options from a TOML file and as one, what is printed with --quiet, `~`, exit codes: what all commands have."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from conftest import call_command
from uflow import cli
from uflow.cli import config
from uflow.detector import Detector
from uflow.recipe import Recipe, TrainingSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Call the command in an empty folder; returns its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    return partial(call_command, monkeypatch, capsys)


@pytest.fixture(autouse=True)
def _loud_again() -> Iterator[None]:
    yield
    cli.common.set_quiet(False)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `uflow train` asked of `Detector.fit_recipe`, which here takes no time."""
    found: dict[str, Any] = {}

    def fit(images: str, recipe: Recipe, *, state_file: Path, **options: Any) -> Any:
        found.update(images=images, recipe=recipe, state_file=state_file, **options)
        state_file.touch()
        return SimpleNamespace(history=[], save=lambda path: path.touch())

    monkeypatch.setattr(Detector, "fit_recipe", fit)
    return found


# --config -------------------------------------------------------------------------------------------------------------


def test_options_of_a_file_and_what_is_typed_before_them(run: Run, asked: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "product.toml").write_text(
        'device = "cpu"  # for all commands\n'
        "[train]\n"
        'output = "made.uflow"\n'
        'image-size = 64\nstrides = "8,16"\nlearning-rate = 1e-3\nepochs = 3\ntile = true\npaper-test = true\n'
        'weights = ["a.pth", "b.pth"]\n'
        "[predict]\n"
        'output = "results"\n'
    )
    code, _, err = run("train", "parts", "--config", "product.toml", "--epochs", 5)
    assert code == 0, err
    settings = TrainingSettings(epochs=5, learning_rate=1e-3)
    wanted = Recipe("efficientnet_lite0", 64, strides=(8, 16), settings=settings, alpha=None, tile=True)
    assert asked["recipe"] == wanted
    assert (asked["device"], asked["weights"]) == ("cpu", [Path("a.pth"), Path("b.pth")])
    assert (tmp_path / "made.uflow").exists()
    code, out, _ = run("predict", "--config", "product.toml", "--print-config")
    assert code == 0
    assert tomllib.loads(out)["predict"].items() >= {"output": "results", "device": "cpu"}.items()


def test_what_is_printed_is_read_back(run: Run, asked: dict[str, Any], tmp_path: Path) -> None:
    typed = ("--epochs", 3, "--tile", "--alpha", 0.02, "--weights", 'a "b" ü.pth', "--weights", "c\\d.pth")
    code, text, _ = run("train", "--print-config", *typed)
    assert code == 0
    (tmp_path / "product.toml").write_text(text, encoding="utf-8")
    assert run("train", "--print-config", "--config", "product.toml")[1] == text
    run("train", "parts", "--config", "product.toml")
    from_file = asked.copy()
    run("train", "parts", *typed)
    assert from_file == asked
    assert asked["weights"] == [Path('a "b" ü.pth'), Path("c\\d.pth")]


def test_every_command_prints_its_options(run: Run) -> None:
    program: Any = typer.main.get_command(cli.app)
    names = config._all_names(program)
    assert {"train", "predict", "weights fetch", "info"} < set(names)
    tables = ""
    for name in names:
        code, text, err = run(*name.split(), "--print-config")
        assert code == 0, err
        (table,) = tomllib.loads(text).items()
        assert table[0] == name
        tables += text
    assert set(tomllib.loads(tables)) == set(names)  # one file for all commands


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "product.toml: uflow train has no option 'epoch'; did you mean 'epochs'?"),
        ("[train]\nzzz = 3", "product.toml: uflow train has no option 'zzz'; it has: output, "),
        ("images = 'parts'", "product.toml: uflow train has no option 'images'"),
        ("config = 'other.toml'", "product.toml: uflow train has no option 'config'"),
        ("[trian]\nepochs = 3", "product.toml: there is no command for the table [trian]; there are: train, predict,"),
        ("epochs = true", "product.toml: epochs is a text or a number, not True"),
        ("epochs = [3]", "product.toml: epochs is one value, not [3]"),
        ("epochs = 2026-01-01", "product.toml: epochs is a text or a number, not datetime.date"),
        ("tile = 1", "product.toml: tile is true or false, not 1"),
        ("weights = [['a']]", "product.toml: weights is a text or a number, not [['a']]"),
        ("epochs = ", "product.toml is not TOML: "),
        ("epochs = 3\nepochs = 4", "product.toml is not TOML: "),
    ],
)
def test_a_file_that_is_wrong_is_one_line(run: Run, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "product.toml").write_text(text)
    code, out, err = run("train", "parts", "--config", "product.toml")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"uflow: error: {message}")


def test_values_are_checked_as_if_typed(run: Run, tmp_path: Path) -> None:
    for text in ("epochs = 1.5", "epochs = 'many'"):
        (tmp_path / "product.toml").write_text(text)
        code, _, err = run("train", "parts", "--config", "product.toml")
        assert (code, "--epochs" in err) == (2, True)
    (tmp_path / "product.toml").write_text("alpha = 7")
    code, _, err = run("train", "parts", "--config", "product.toml")
    assert (code, err.count("\n")) == (1, 1)
    assert "alpha is a probability" in err
    code, _, err = run("train", "parts", "--config", "absent.toml")
    assert (code, err) == (2, "uflow: error: there is no configuration file absent.toml\n")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_written_as_toml(text: str) -> None:
    assert tomllib.loads(f"key = {config._toml(text)}") == {"key": text}


@given(st.integers(-(2**60), 2**60) | st.floats() | st.booleans())
def test_any_number_is_written_as_toml(value: float) -> None:
    found = tomllib.loads(f"key = {config._toml([value])}")["key"][0]
    assert found == pytest.approx(value, nan_ok=True, rel=0, abs=0)
    assert type(found) is type(value)


# ~ --------------------------------------------------------------------------------------------------------------------


def test_home_is_found_in_every_path(
    run: Run, asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / "weights").mkdir(parents=True)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(home))
    (home / "product.toml").write_text('[train]\nweights = "~/weights"\noutput = "~/made.uflow"\n')
    code, _, err = run("train", "~/parts/train/good", "--config=~/product.toml")
    assert code == 0, err
    assert asked["images"] == str(home / "parts/train/good")
    assert asked["weights"] == [home / "weights"]
    assert (home / "made.uflow").exists()
    code, _, err = run("info", "~/absent.uflow")
    assert (code, err) == (1, f"uflow: error: there is no model file {home / 'absent.uflow'}\n")
    assert run("train", "~nobody-of-this-name/parts")[0] == 0
    assert asked["images"] == "~nobody-of-this-name/parts"


# --quiet, exit codes, completion --------------------------------------------------------------------------------------


def test_quiet_prints_no_notes_and_shows_no_bars(
    run: Run, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, out, err = run("train", "parts", "--quiet")
    assert (code, out, err) == (0, "", "")
    assert asked["progress"] is False
    code, out, _ = run("train", "parts")
    assert (code, asked["progress"]) == (0, True)
    assert "Wrote parts.uflow" in out
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    run("train", "parts")
    assert asked["progress"] is False
    code, out, _ = run("weights", "list", "--json", "--quiet")
    assert (code, bool(json.loads(out))) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["train", "--help"], 0),
        (["info", "absent.uflow"], 1),
        (["train", "no/such/folder/*.png"], 1),
        (["trian"], 2),
        (["train"], 2),
        (["train", "parts", "--epoch", "3"], 2),
        (["train", "parts", "--epochs", "many"], 2),
        (["weights", "fetch", "resnet18"], 2),
    ],
)
def test_exit_codes(run: Run, arguments: list[str], code: int) -> None:
    assert run(*arguments)[0] == code


def test_exit_codes_are_in_the_help(run: Run) -> None:
    text = " ".join(run("--help")[1].split())
    assert "Exit codes: 0 done, 1 error, 2 wrong command line, 3 some images could not be judged" in text


def test_a_shell_is_given_names(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setenv("_UFLOW_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "uflow pre")
    monkeypatch.setenv("COMP_CWORD", "1")
    monkeypatch.setattr("typer.completion._get_shell_name", lambda: "bash", raising=False)
    assert run()[1].split() == ["predict"]
