"""What all commands have: `--config`, `--print-config`, `--quiet`, and `~` in every path."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from .common import say, set_quiet
from .config import config_text, use_config

__all__ = ["Commands"]

Command = Callable[..., None]


def _need_nothing(context: typer.Context, wanted: bool) -> bool:
    """Where options are only printed, arguments may be left out."""
    for parameter in context.command.params if wanted else ():
        parameter.required = False
    return wanted


def _shared(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file of options: docs/guide/command-line.md", callback=use_config, is_eager=True),
    ] = None,
    print_config: Annotated[
        bool,
        typer.Option("--print-config", help="print the options as TOML", callback=_need_nothing, is_eager=True),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="results, warnings and errors only")] = False,
) -> None:
    """Its parameters are those that every command has."""


SHARED = ("config", "print_config", "quiet")


class Commands(typer.Typer):
    """A Typer whose commands have these options too."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Run; behind the name of a command, the options of the program itself are not parsed.

        Parsing them imports pydantic: a tenth of a second that no command's help need wait for.
        """
        commands = {each.name or getattr(each.callback, "__name__", "") for each in self.registered_commands}
        is_command = len(sys.argv) > 1 and sys.argv[1].replace("-", "_") in commands
        completes = any(name.endswith("_COMPLETE") for name in os.environ)
        self._add_completion = self.info.add_help_option = completes or not is_command
        try:
            return super().__call__(*arguments, **keywords)
        finally:
            self._add_completion = self.info.add_help_option = True

    def command(self, name: str | None = None, **keywords: Any) -> Callable[[Command], Command]:  # type: ignore[override]
        """As `typer.Typer.command`; the function itself stays as it is."""
        register = super().command(name, **keywords)

        def decorate(function: Command) -> Command:
            register(_with_shared(function))
            return function

        return decorate


def _with_shared(command: Command) -> Command:
    """The command with the parameters of `_shared` behind its own; a `context` of its own is the same one."""

    @functools.wraps(command)
    def call(context: typer.Context, **values: Any) -> None:
        _call(command, context, values)

    own = [parameter for parameter in _parameters(command) if parameter.name != "context"]
    parameters = [*own, *_shared_parameters()]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """A function's parameters by keyword, their types as objects."""
    hints = get_type_hints(function, include_extras=True)
    return [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
        for name, parameter in inspect.signature(function).parameters.items()
    ]


@functools.cache
def _shared_parameters() -> list[inspect.Parameter]:
    return _parameters(_shared)


def _call(command: Command, context: typer.Context, values: dict[str, Any]) -> None:
    shared = {name: values.pop(name) for name in list(values) if name in SHARED}
    if shared["print_config"]:
        say(config_text(context, {**values, **shared}))
        return
    set_quiet(shared["quiet"])
    given = {name: _expand_user(value) for name, value in values.items()}
    if "context" in inspect.signature(command).parameters:
        given["context"] = context
    command(**given)


def _expand_user(value: Any) -> Any:
    """A path, or several, whose `~` is the home folder; anything else as it is."""
    if isinstance(value, list | tuple):
        return [_expand_user(each) for each in value]
    if isinstance(value, str | Path) and not isinstance(value, Enum):
        return type(value)(os.path.expanduser(value))  # noqa: PTH111 (pathlib fails for a name that is no user's)
    return value
