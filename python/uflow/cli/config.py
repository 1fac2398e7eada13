"""Options from a TOML file, and as one: `--config`, `--print-config`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import typer

from ..files import read_toml

__all__ = ["NOT_IN_A_FILE", "UsageError", "config_text", "use_config", "use_product"]

NOT_IN_A_FILE = ("config", "print-config", "help", "product")  # options that say what to do with options


class UsageError(ValueError):
    """What was typed, or stands in a configuration file, is no command line of this program."""


def use_config(context: typer.Context, file: Path | None) -> Path | None:
    """Take what stands in a file for the command's defaults: what is typed comes before it.

    The file's keys are the names of options. A table with a command's name is for that command alone; what stands above
    all tables is for every command that reads the file.

    Raises:
        UsageError: no such file, no TOML, an option that the command does not have, or a value of another kind.
    """
    if file is not None and not context.resilient_parsing:  # as it is while a shell completes a line
        file = Path(os.path.expanduser(file))  # noqa: PTH111 (pathlib fails for a name that is no user's)
        context.default_map = {**(context.default_map or {}), **_defaults(context, file)}
    return file


def use_product(context: typer.Context, file: Path | None) -> Path | None:
    """Take what a product's file says for the command's defaults: what is typed, or in a --config file, comes before.

    Of a command that takes a model, the model may be left out, see `common.split_arguments`.

    Raises:
        FileNotFoundError, ValueError: see `product.read_product`.
    """
    if file is not None and not context.resilient_parsing:
        from ..product import read_product

        file = Path(os.path.expanduser(file))  # noqa: PTH111 (pathlib fails for a name that is no user's)
        product = read_product(file)
        said = {name: getattr(product, name) for name in ("alpha", "look_alpha", "tile", "bit_depth")}
        # As if typed, so that it is checked in the same way; switches stay true or false.
        found = {name: v if isinstance(v, bool) else str(v) for name, v in said.items() if v is not None}
        context.default_map = {**found, **(context.default_map or {})}
        arguments = {each.name: each for each in context.command.params if each.param_type_name == "argument"}
        for argument in arguments.values() if "model" in arguments else ():
            argument.required = False
    return file


def _defaults(context: typer.Context, file: Path) -> dict[str, Any]:
    """Parameters' names and values of what the file says for the command of this context."""
    content, command = _read_options(file), _name(context)
    tables = {key: value for key, value in content.items() if isinstance(value, dict)}
    commands = _all_names(context.find_root().command)
    if unknown := [name for name in tables if name not in commands]:
        raise UsageError(f"{file}: there is no command for the table [{unknown[0]}]; there are: {', '.join(commands)}")
    chosen = {key: value for key, value in content.items() if key not in tables} | tables.get(command, {})
    options = _options(context)
    found = {}
    for key, value in chosen.items():
        if key not in options:
            import difflib

            near = difflib.get_close_matches(key, options, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(options)}"
            raise UsageError(f"{file}: uflow {command} has no option {key!r}; {hint}")
        found[options[key].name] = _value(options[key], value, f"{file}: {key}")
    return found


def _name(context: Any) -> str:
    """ "train", or "weights fetch"."""
    return "" if context.parent is None else f"{_name(context.parent)} {context.info_name}".strip()


def _all_names(command: Any, name: str = "") -> list[str]:
    """The names of all commands below one."""
    below = getattr(command, "commands", None)
    if below is None:
        return [name]
    return [found for key, each in below.items() for found in _all_names(each, f"{name} {key}".strip())]


def _read_options(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UsageError(f"there is no configuration file {file}")
    try:
        return read_toml(file)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(str(error)) from None


def _options(context: typer.Context) -> dict[str, Any]:
    """The command's options that may stand in a file, by their long names without dashes."""
    named = {
        max(parameter.opts, key=len).lstrip("-"): parameter
        for parameter in context.command.params
        if parameter.param_type_name == "option"
    }
    return {name: parameter for name, parameter in named.items() if name not in NOT_IN_A_FILE}


def _value(option: Any, value: Any, where: str) -> Any:
    """A value as if it had been typed, so that it is checked in the same way; switches stay true or false."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise UsageError(f"{where} is true or false, not {value!r}")
        return value
    values = value if isinstance(value, list) else [value]
    if any(isinstance(each, bool) or not isinstance(each, str | int | float) for each in values):
        raise UsageError(f"{where} is a text or a number, not {value!r}")
    if option.multiple:
        return [str(each) for each in values]
    if isinstance(value, list):
        raise UsageError(f"{where} is one value, not {value!r}")
    return str(value)


def config_text(context: typer.Context, values: Mapping[str, Any]) -> str:
    """The options of a command, with their values now, as TOML that `--config` reads; unset ones as comments."""
    name = _name(context)
    lines = [f'["{name}"]' if " " in name else f"[{name}]"]
    for key, option in _options(context).items():
        value = values[option.name]
        lines.append(f"# {key} =" if value is None else f"{key} = {_toml(value)}")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    """A value as TOML writes it, whose texts are those of JSON but for one character."""
    import json

    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bool | str | os.PathLike):
        text = value if isinstance(value, bool) else os.fspath(value)
        return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
