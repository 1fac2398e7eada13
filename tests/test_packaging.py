"""What is installed under which name: every line that says `pip install`, the extras, and which module is in which."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from uflow import extras

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest brings it there
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, TOOLS = SETTINGS["project"], SETTINGS["tool"]
EXTRAS = PROJECT["optional-dependencies"]
FOR_DEVELOPERS = {"all", "bench", "test", "docs", "lint"}
IMPORTED_AS = {
    "pillow": "PIL",
    "scikit-image": "skimage",
    "prometheus-client": "prometheus_client",
    "paho-mqtt": "paho",
}

FOLDERS = ("python", "docs", "tests", "benchmarks", "examples", "csrc", ".github", "containers")
TEXTS = {".py", ".md", ".toml", ".yml", ".yaml", ".txt", ".hpp", ".cpp", ".sh", ""}
INSTALL = re.compile(r"pip (?:install|wheel|download) .*")
OURS = re.compile(  # options, then this package, a checkout, or what runs the lint before a commit
    r"""pip\ \w+\ (?:--?[\w-]+(?:[ ]wheels)?\ )*
    (?:"?(?:uflow-ad|\{DISTRIBUTION\}|\.)(?:\\*\[[\w,{}]+\\*\])?(?:["`\s]|$)|pre-commit\ )""",
    re.X,
)
WITH_EXTRAS = re.compile(r"""(?:\buflow(?:-ad)?|["' ]\.|\{wheel\}|\.whl)\[([\w,-]+)\\*\]""")


def texts() -> Iterator[tuple[str, str]]:
    """Every file that somebody wrote, by its path."""
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    paths += [path for path in ROOT.iterdir() if path.is_file()]
    for path in sorted(paths):
        if path.suffix in TEXTS and path != Path(__file__) and "__pycache__" not in path.parts:
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def test_nobody_is_sent_to_a_package_of_another_name() -> None:
    wrong = {
        f"{name}: {found[0]}"
        for name, text in texts()
        for found in re.finditer(r"""\buflow\\*\[[a-z]|pip install[^`\n]*["' ]uflow(?=[\s"'\[=<>]|$)""", text, re.M)
    }
    assert wrong == set()


def test_pages_and_messages_install_this_package_or_a_checkout() -> None:
    pages = ("README", "CHANGELOG", "CONTRIBUTING", "docs/", "benchmarks/README", "python/")
    lines = [(name, line) for name, text in texts() if name.startswith(pages) for line in INSTALL.findall(text)]
    assert [(name, line) for name, line in lines if not OURS.match(line)] == []
    assert len(lines) > 10, "the pattern no longer finds them"


def test_extras_that_are_named_exist() -> None:
    named = {
        (name, extra) for name, text in texts() for found in WITH_EXTRAS.findall(text) for extra in found.split(",")
    }
    assert {(name, extra) for name, extra in named if extra not in EXTRAS} == set()
    assert {"train", "onnx", "compare"} <= {extra for _, extra in named}, "the pattern no longer finds them"


def test_the_page_on_installing_has_every_extra() -> None:
    page = (ROOT / "docs/guide/install.md").read_text(encoding="utf-8")
    table = {extra for row in re.findall(r"^\| (`.*?) \|", page, re.M) for extra in re.findall(r"`(\w+)`", row)}
    assert table == (EXTRAS.keys() - FOR_DEVELOPERS) | {"all"}
    (everything,) = EXTRAS["all"]
    assert everything == f"uflow-ad[{','.join(sorted(table - {'all'}))}]"


# Modules --------------------------------------------------------------------------------------------------------------


def imports() -> dict[str, set[str]]:
    """The modules from elsewhere that the package imports, each with the files that do."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "python/uflow").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in names:
                found.setdefault(name.partition(".")[0], set()).add(path.name)
    return {name: files for name, files in found.items() if name not in sys.stdlib_module_names | {"uflow"}}


def name_of(requirement: str) -> str:
    return re.split(r"[^\w-]", requirement)[0]


def brought(extra: str) -> set[str]:
    """The packages of an extra, with those of the extras in it."""
    names: set[str] = set()
    for requirement in EXTRAS[extra]:
        inner = re.match(r"uflow-ad\[([\w,]+)\]", requirement)
        names |= set().union(*map(brought, inner[1].split(","))) if inner else {name_of(requirement)}
    return names


def test_every_import_is_a_dependency_or_has_an_extra() -> None:
    base = {IMPORTED_AS.get(name, name) for name in map(name_of, PROJECT["dependencies"])}
    base.add("markupsafe")  # comes with Jinja2
    assert imports().keys() == base | extras.EXTRA_OF.keys()


@pytest.mark.parametrize("module", extras.EXTRA_OF)
def test_the_extra_of_a_module_brings_it(module: str) -> None:
    through_others = {"huggingface_hub": "timm", "lightning": "anomalib"}
    names = {IMPORTED_AS.get(name, name) for name in brought(extras.EXTRA_OF[module])}
    assert through_others.get(module, module) in names


# Slim -----------------------------------------------------------------------------------------------------------------

BLOCK = f"import sys; sys.modules.update(dict.fromkeys({list(extras.EXTRA_OF)!r}))\n"
MAIN = "import sys; from uflow.cli import main; sys.argv = ['uflow', *sys.argv[1:]]; main()"


def run_without_extras(*arguments: object) -> tuple[int, str, str]:
    """The command where no module of an extra can be imported: exit code, standard output, standard error."""
    command = [sys.executable, "-c", BLOCK + MAIN, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_every_help_works_without_extras() -> None:
    code = """
import typer
from uflow.cli import app
program = typer.main.get_command(app)
for name, command in program.commands.items():
    with command.make_context(name, [], resilient_parsing=True) as context:
        print(command.get_help(context), "SHOWN", name)
"""
    done = subprocess.run([sys.executable, "-c", BLOCK + code], capture_output=True, text=True, check=True)
    assert {"train", "predict", "compare", "export", "demo"} <= set(re.findall(r"SHOWN (\w+)", done.stdout))


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["train", "good"], "train"),
        (["predict", "tile.uflow", "."], "train"),
        (["calibrate", "tile.uflow", "."], "train"),
        (["export", "tile.uflow"], "export"),
        (["study", "tile"], "train"),
        (["study", "tile", "--figures"], "figures"),
        (["evaluate", "tile.uflow", "tile"], "train"),
        (["compare", "tile", "--methods", "padim"], "compare"),
        (["demo"], "demo"),
        (["predict", "tile.uflow", "good", "--engine", "ray", "--output", "results"], "ray"),
        (["study", "tile", "--engine", "ray"], "ray"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_command_that_needs_an_extra_says_which(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], extra: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tile").symlink_to(dataset)
    (tmp_path / "good").symlink_to(dataset / "train/good")
    (tmp_path / "tile.uflow").write_bytes(b"PK\x03\x04")  # begins as a checkpoint
    before = set(tmp_path.iterdir())
    code, out, err = run_without_extras(*arguments)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("uflow: error: ")
    assert err.endswith(f'pip install "uflow-ad[{extra}]"\n')
    assert set(tmp_path.iterdir()) == before  # no empty folder for results


@pytest.mark.parametrize("arguments", [["predict", "--output", "a/b"], ["calibrate"], ["add-good"]])
def test_what_is_no_model_is_said_without_torch(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command, *options = arguments
    (tmp_path / "part.jpg").write_bytes(b"\xff\xd8\xff\xe0 a JPEG")
    code, out, err = run_without_extras(command, "part.jpg", dataset / "test/good", *options)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "part.jpg is not a uflow model file, or was cut short" in err
    assert [path.name for path in tmp_path.iterdir()] == ["part.jpg"]


def test_python_says_which_extra_too() -> None:
    code = "import uflow\ntry:\n    uflow.Detector\nexcept ModuleNotFoundError as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", BLOCK + code], capture_output=True, text=True, check=True)
    assert done.stdout == 'torch is not installed, and this needs it: pip install "uflow-ad[train]"\n'


def test_help_imports_nothing_heavy() -> None:
    heavy = {"numpy", "PIL", "torch", "matplotlib", "rich.progress"}
    code = "import atexit, sys; atexit.register(lambda: print('LOADED', *sys.modules)); " + MAIN
    done = subprocess.run([sys.executable, "-c", code, "predict", "--help"], capture_output=True, text=True, check=True)
    loaded = done.stdout.partition("LOADED")[2].split()
    assert "uflow.cli.predict" in loaded
    assert heavy & set(loaded) == set()


def cpu_seconds(*arguments: str) -> float:
    """The processor time of a run of this Python: waiting for other programs is no part of it."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


@pytest.mark.skipif(sys.platform == "win32", reason="os.times() knows no children there")
def test_help_is_quick() -> None:
    """Below 0.3 s; on a machine so slow that a program of one option takes that, below twice its time."""
    one_option = """
import typer
app = typer.Typer(rich_markup_mode="rich")
@app.command()
def show(number: int = 1) -> None: ...
app(["--help"])
"""
    # In turn, the least of several: other programs slow both down alike.
    rounds = [(cpu_seconds("-c", MAIN, "predict", "--help"), cpu_seconds("-c", one_option)) for _ in range(8)]
    ours, least = map(min, zip(*rounds, strict=True))
    assert ours < max(0.3, 2 * least)


# The index, and where wheels are made ---------------------------------------------------------------------------------


def test_the_readme_on_the_index_has_no_relative_link() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    hook = TOOLS["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    links = len(re.findall(r"\]\(", text))
    for substitution in hook["substitutions"]:
        text = re.sub(substitution["pattern"], substitution["replacement"], text)
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert len(targets) == links
    assert [target for target in targets if not target.startswith("https://")] == []
    home = PROJECT["urls"]["Homepage"]
    assert f"![A part, its anomaly map, and what is outlined]({home}/raw/main/docs/hero.png)" in text
    assert f"[installing]({home}/blob/main/docs/guide/install.md)" in text


def test_versions_and_pythons_agree_everywhere() -> None:
    assert f"project(uflow VERSION {PROJECT['version']} " in (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    assert f"\n## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    minors = [name.rpartition(".")[2] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)]
    built = TOOLS["cibuildwheel"]["build"].split()
    assert built == [f"cp3{minor}-*" for minor in minors] + ["cp314t-*"]
    assert PROJECT["requires-python"] == f">=3.{minors[0]}"


def test_what_a_release_publishes_is_what_is_tried() -> None:
    release, wheels = ((ROOT / f".github/workflows/{name}.yml").read_text() for name in ("release", "wheels"))
    assert "uses: ./.github/workflows/wheels.yml" in release
    assert 'pattern: "dist-*"' in release
    assert len(re.findall(r"name: \"?dist-", wheels)) == 2
    assert "password" not in release.replace("there is no password", "")
