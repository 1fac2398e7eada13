"""The command that holds the others, and how their messages and mistakes are shown."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import rich
import typer
from rich.logging import RichHandler

from .. import __version__
from .common import say

__all__ = ["app", "main"]

app = typer.Typer(
    name="uflow",
    help="Learn what good parts look like; find what is not: anomaly maps, and masks with no threshold to tune.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"uflow {__version__}")
        raise typer.Exit


@app.callback()
def _uflow(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: what a user did wrong is one line, not a traceback."""
    # On standard error, as predict's standard output is JSON alone; and on the console of the bars: lines that another
    # console writes go through them.
    rich.reconfigure(stderr=True)
    handler = RichHandler(show_time=False, show_path=False)
    logging.basicConfig(level="INFO", format="%(message)s", handlers=[handler])
    logging.getLogger().setLevel("WARNING")
    logging.getLogger("uflow").setLevel("INFO")
    try:
        app()
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"uflow: error: {error}", file=sys.stderr)
        sys.exit(1)
