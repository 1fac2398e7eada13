"""The command that holds the others, and how their messages and mistakes are shown."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from ..extras import describe_missing
from .commands import Commands
from .common import say
from .config import UsageError

__all__ = ["app", "main"]

app = Commands(
    name="uflow",
    help="Learn what good parts look like; find what is not: anomaly maps, and masks with no threshold to tune.",
    epilog="Exit codes: 0 done, 1 error, 2 wrong command line, 3 some images could not be judged (uflow predict).",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__  # tens of milliseconds

        say(f"uflow {__version__}")
        raise typer.Exit


@app.callback()
def _uflow(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


class _StandardError(logging.Handler):
    """Messages on what is standard error when they come: while progress bars are shown, that goes through them."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record), err=True)


def main() -> None:
    """Entry point: what a user did wrong is one line, not a traceback."""
    logging.basicConfig(level="INFO", format="%(levelname)-8s %(message)s", handlers=[_StandardError()])
    logging.getLogger().setLevel("WARNING")
    logging.getLogger("uflow").setLevel("INFO")
    try:
        app(prog_name="uflow")  # also as python -m uflow
    except ImportError as error:
        _fail(describe_missing(error))
    except UsageError as error:
        _fail(str(error), code=2)
    except (ValueError, OSError, RuntimeError) as error:
        _fail(str(error))


def _fail(message: str, code: int = 1) -> None:
    say(f"uflow: error: {message}", err=True)
    sys.exit(code)
