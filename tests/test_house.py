"""Rules of the house that no linter knows: who imports the compiled core, how long a file may be."""

from __future__ import annotations

import re
from pathlib import Path

SOURCES = sorted((Path(__file__).parent.parent / "python/uflow").rglob("*.py"))
LONGEST_FILE = 450  # lines


def test_segmentation_alone_imports_the_core() -> None:
    importers = {
        path.parent.name for path in SOURCES if re.search(r"^\s*(from|import) .*\b_core\b", path.read_text(), re.M)
    }
    assert importers == {"segmentation"}


def test_no_file_is_too_long() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE} == {}
