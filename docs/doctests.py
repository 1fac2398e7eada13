"""For mkdocs: the three-line examples of docstrings, shown as code and not as quotations of quotations."""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^(>>> (?:.+\n?)+)", re.M)


class Doctests(griffe.Extension):
    """Puts each example of a docstring, from `>>>` to the next empty line, into a fence."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each thing that is documented."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(
                lambda match: f"```pycon\n{match[1].rstrip()}\n```\n", obj.docstring.value
            )
