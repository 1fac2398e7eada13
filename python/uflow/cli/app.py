"""The command that holds the others, and how their messages and mistakes are shown."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from ..extras import describe_missing
from ..processes import exit_on_terminate
from .commands import Commands
from .common import lose_output, lost_results, remove_empty_folders, say
from .config import UsageError

__all__ = ["app", "main"]

FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # a disk, or a user's share of it

app = Commands(
    name="uflow",
    help="Learn what good parts look like; find what is not: anomaly maps, and masks with no threshold to tune.",
    epilog="Exit codes: 0 done, 1 error, 2 wrong command line, 3 some images could not be judged (uflow predict), "
    "4 the line has changed (uflow monitor).",
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
    with ExitStack() as stack:
        _prepare_streams(stack)
        stack.callback(remove_empty_folders)
        logging.basicConfig(level="INFO", format="%(levelname)-8s %(message)s", handlers=[_StandardError()])
        logging.getLogger().setLevel("WARNING")
        logging.getLogger("uflow").setLevel("INFO")
        try:
            with exit_on_terminate():
                app(prog_name="uflow")  # also as python -m uflow
        except ImportError as error:
            _fail(describe_missing(error))
        except UsageError as error:
            _fail(str(error), code=2)
        except SystemExit as end:  # how all goes well
            if why := lost_results():
                _fail(why, end.code or 1)
            raise
        except (ValueError, OSError, RuntimeError) as error:
            _fail(_describe(error))


def _fail(message: str, code: int | str = 1) -> None:
    say(f"uflow: error: {message}", err=True)
    sys.exit(code)


def _prepare_streams(stack: ExitStack) -> None:
    """Make standard output and error take any text, and be there: hours of work must not end in a print that fails."""
    _open_closed()
    lose_output("it was closed from the start" if sys.stdout is None else "")
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever called us
            nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (the stack closes it)
            setattr(sys, name, stack.enter_context(nowhere))
            stack.callback(setattr, sys, name, None)  # before it is closed
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name in another alphabet than the terminal's


def _open_closed() -> None:
    """Give the numbers of standard streams that are closed to a file of nothing.

    Else the next files to be opened have them, such as results, and what a library prints would go there.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free


def _describe(error: Exception) -> str:
    """What an error says; of a full disk without a name, that results could not be written; the system's, by name."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    if error.errno in FULL and error.filename is None:
        return f"cannot write the results: {error.strerror}"
    return str(error) if error.filename is None else f"{error.filename}: {error.strerror}"
