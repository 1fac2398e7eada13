"""Style and scripts of pages, put together from the files in `static/`. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

__all__ = ["STATIC", "json_for_script", "read_script", "read_style"]

STATIC = Path(__file__).parent / "static"


def read_style() -> str:
    """The style that all pages share."""
    environment = Environment(loader=PackageLoader("uflow.pages", "static"), autoescape=False)
    return environment.get_template("report.css").render()


def read_script(paths: Iterable[Path]) -> str:
    """Files as one script; what is defined in it is seen nowhere else."""
    parts = [path.read_text(encoding="utf-8") for path in paths]
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"


def json_for_script(content: Any) -> str:
    """JSON that no browser takes for the end of a script, whatever names are in it."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)  # ASCII: other letters are escaped
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
