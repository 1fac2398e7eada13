"""The pages: true to the tree, short, no broken link, and every piece of code in them runs."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PACKAGE = ROOT / "python/uflow"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
FOR_USERS = [ROOT / "README.md", DOCS / "api/index.md", *sorted((DOCS / "guide").glob("*.md"))]

MAX_README_LINES, MAX_README_WORDS = 120, 900
MAX_LINE = 119  # characters, tables too
# Blocks that need what is not here.
NOT_RUN = {"anomalib.md": 2, "checkpoints.md": 3, "scale.md": 1, "service.md": 1, "tracking.md": 1}
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
ROOM = re.compile(r"`([\w.]+(?:\.py|\.json|/))`")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# The tree -------------------------------------------------------------------------------------------------------------


def tree() -> dict[str, set[str]]:
    """The rooms that there are: files by folder, "" for the spine."""
    rooms: dict[str, set[str]] = {"": set()}
    for path in PACKAGE.rglob("*"):
        if path.suffix in (".py", ".json") and "__pycache__" not in path.parts:
            folder = path.parent.relative_to(PACKAGE).as_posix()
            rooms.setdefault("" if folder == "." else folder, set()).add(path.name)
    for folder in rooms.keys() - {""}:
        rooms[folder].discard("__init__.py")
    return rooms


def rooms_in(page: str) -> dict[str, list[str]]:
    """The rooms that docs/architecture.md names, in the same form.

    The table under "The spine" has a row for each file. A row under "The wings" that begins with a folder names its
    files; a table whose header is a folder has rows of files.
    """
    rooms: dict[str, list[str]] = {"": []}
    spine, wings = re.findall(r"^### The (?:spine|wings).*?(?=^###? )", page, re.M | re.S)
    for row in re.findall(r"^\| `.*$", spine, re.M):
        rooms[""] += ROOM.findall(row.split("|")[1])
    folder = ""
    for row in re.findall(r"^\| `.*$", wings, re.M):
        cells = row.strip("| ").split("|")
        first = ROOM.findall(cells[0])
        if first[0].endswith("/"):
            folder = first[0].rstrip("/")
            rooms.setdefault(folder, []).extend(ROOM.findall(cells[-1]) if len(cells) == 3 else [])
        else:
            rooms[folder] += first
    return rooms


def test_architecture_is_the_tree() -> None:
    named = rooms_in((DOCS / "architecture.md").read_text(encoding="utf-8"))
    assert {folder: sorted(files) for folder, files in named.items()} == {
        folder: sorted(files) for folder, files in tree().items()
    }


# The pages ------------------------------------------------------------------------------------------------------------


def test_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_README_LINES
    assert len(text.split()) <= MAX_README_WORDS


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_lines_fit(page: Path) -> None:
    lines = enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
    assert {number: len(line) for number, line in lines if len(line) > MAX_LINE} == {}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    targets = [target for target in targets if target and not target.startswith(("http:", "https:"))]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_pages_named_in_code_exist() -> None:
    folders = ("python", "csrc", "examples", "benchmarks", "tests")
    files = [
        path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".hpp", ".cpp")
    ]
    files += [ROOT / name for name in ("pyproject.toml", "Makefile", "CMakeLists.txt", "benchmarks/README.md")]
    named = {(name_of(path), page) for path in files for page in re.findall(r"\bdocs/[\w/-]+\.md", path.read_text())}
    assert sorted((path, page) for path, page in named if not (ROOT / page).exists()) == []


def test_no_table_stands_twice() -> None:
    seen: dict[str, str] = {}
    for page in PAGES:
        for table in re.findall(r"(?:^\|.*\n)+", page.read_text(encoding="utf-8"), re.M):
            assert seen.setdefault(table, name_of(page)) == name_of(page), f"{name_of(page)} repeats {table[:80]}"


# Code in Python -------------------------------------------------------------------------------------------------------


def python_blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Each block's source, and the marker comment on the line above it: "not run: why", "needs onnx", or nothing."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        if match[1] == "python":
            before = text[: match.start()].rstrip("\n").rpartition("\n")[2]
            marker = re.fullmatch(r"<!-- (not run: .+|needs \w+) -->", before)
            yield match[2], marker[1] if marker else ""


def test_blocks_that_do_not_run_are_known() -> None:
    found = {page.name: sum(m.startswith("not run") for _, m in python_blocks(page)) for page in FOR_USERS}
    assert {name: count for name, count in found.items() if count} == NOT_RUN


@pytest.fixture(scope="module")
def small_model(_quick: None, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of a detector that was trained for a second on images of 64 pixels."""
    path = tmp_path_factory.mktemp("docs") / "tile.uflow"
    quick_fit(dataset / "train/good").save(path)
    return path


def quick_fit(images: Any, *arguments: Any, **keywords: Any) -> Any:
    """`Detector.fit`, small: what the pages say but for what takes time."""
    from uflow.detector import Detector
    from uflow.training import TrainingSettings

    settings = TrainingSettings(epochs=1, batch_size=8, augment=False, memory_size=20)
    keywords |= {"image_size": 64, "settings": settings, "progress": False, "device": "cpu"}
    return Detector.fit_for_real(images, *arguments, **keywords)


@pytest.fixture(scope="module")
def _quick() -> Iterator[None]:
    """`Detector.fit` is `quick_fit` while the pages run."""
    from uflow.detector import Detector

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Detector, "fit_for_real", Detector.fit, raising=False)
        patch.setattr(Detector, "fit", quick_fit)
        yield


@pytest.fixture
def workplace(dataset: Path, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the pages speak of: data/tile, new_parts, good_parts, part.png, tile.uflow, product.toml."""
    shutil.copytree(dataset, tmp_path / "data/tile")
    for folder, source in (("new_parts", "test/square"), ("good_parts", "test/good")):
        (tmp_path / folder).mkdir()
        for number, path in enumerate(sorted((dataset / source).glob("*.png"))):
            Image.open(path).save(tmp_path / folder / f"{number}.png")
    for number, path in enumerate(sorted((dataset / "train/good").glob("*.png"))[:10], 10):
        shutil.copy(path, tmp_path / f"good_parts/{number}.png")
    shutil.copy(tmp_path / "new_parts/0.png", tmp_path / "part.png")
    shutil.copy(small_model, tmp_path / "tile.uflow")
    (tmp_path / "product.toml").write_text('name = "tile"\nmodel = "tile.uflow"\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("default")  # of the exporter
@pytest.mark.parametrize("page", FOR_USERS, ids=name_of)
@pytest.mark.usefixtures("workplace")
def test_code_runs(page: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "page"}
    blocks = list(python_blocks(page))
    needs = {marker.partition(" ")[2] for _, marker in blocks if marker.startswith("needs")}
    missing = {name for name in needs if importlib.util.find_spec(name) is None}
    for number, (source, marker) in enumerate(blocks, 1):
        if not marker.startswith("not run") and marker.partition(" ")[2] not in missing:
            exec(compile(source, f"{name_of(page)}, block {number}", "exec"), namespace)


# Lines for the shell --------------------------------------------------------------------------------------------------


def shell_lines(page: Path) -> Iterator[str]:
    """The `uflow` commands of a page: in blocks for the shell, and in the text between backticks."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        if match[1] in ("sh", "shell", "bash"):
            yield from re.findall(r"^uflow .*", match[2], re.M)
    for code in re.findall(r"`(uflow \w[^`]*)`", FENCE.sub("", text)):
        yield " ".join(code.split())


@pytest.mark.parametrize("page", [*FOR_USERS, *sorted((DOCS / "notebook").glob("*.md"))], ids=name_of)
def test_shell_lines_parse(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    from uflow.cli import app

    monkeypatch.chdir(tmp_path)
    (tmp_path / "options.toml").touch()
    (tmp_path / "product.toml").write_text('name = "tile"\nmodel = "tile.uflow"\n')
    program: Any = typer.main.get_command(app)
    for line in shell_lines(page):
        name, *arguments = shlex.split(re.sub(r" >>? \S+$", "", line), comments=True)[1:]
        if name.startswith("--"):
            assert name in {"--help", *(text for parameter in program.params for text in parameter.opts)}
            continue
        assert name in program.commands, f"{line!r}: there is no command {name}"
        if arguments:  # the name alone is how the text speaks of a command
            program.commands[name].make_context(name, arguments)  # raises where an option or an argument is wrong
