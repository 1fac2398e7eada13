"""What is read from JSON becomes a dataclass, or an error: types, finite numbers, no entry missing and none unknown.

Ranges are the business of each class, in its `__post_init__`. Needs no torch.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

__all__ = ["content_sha256", "parse", "read_json", "write_json"]

T = TypeVar("T")

MAX_SHOWN = 60  # characters of a wrong value in a message


def read_json(text: str | bytes, where: str) -> Any:
    """The content of a JSON text; ValueError, one line that begins with `where`, for anything else.

    NaN and infinity, which Python's reader takes and JSON does not have, are refused.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON, or was cut short: {error or type(error).__name__}") from None


def write_json(content: Any, **options: Any) -> str:
    """The text that `read_json` reads; ValueError where a number is not finite."""
    return json.dumps(content, allow_nan=False, **options)


def content_sha256(content: Mapping[str, Any]) -> str:
    """SHA-256 of what JSON holds, in hexadecimal, whatever the order of entries and the spaces between them."""
    import hashlib  # a hundredth of a second, that --help need not wait for

    return hashlib.sha256(write_json(content, sort_keys=True).encode()).hexdigest()


def _refuse_constant(name: str) -> float:
    raise ValueError(f"the number {name}")


def parse(kind: type[T], content: Any, where: str) -> T:
    """A value of a type with hints, such as a dataclass, of what was read from JSON.

    Args:
        kind: dataclass, TypedDict, `int`, `float` (also written as an int), `str`, `bool`, `None`, `Literal`,
            `tuple`, `list`, `dict` of str, unions of these, or Any.
        content: dicts, lists, strings, numbers, booleans, None.
        where: begins the message, such as the name of the file.

    Raises:
        ValueError: another type, a number that is not finite, an entry that is missing or unknown, or what the
            dataclass itself refuses; one line.

    >>> parse(tuple[int, ...], [1, 2], "sizes")
    (1, 2)
    >>> parse(float, "1", "model.json: alpha")
    Traceback (most recent call last):
    ValueError: model.json: alpha should be a number, found '1'
    """
    value: T = _parse(kind, content, where)
    return value


def _parse(kind: Any, content: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind) or is_typeddict(kind):
        return _parse_entries(kind, content, where)
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _parse_union(get_args(kind), content, where)
    reader = _READERS.get(origin or kind)
    if reader is None:
        raise TypeError(f"no way to read {kind}")
    return reader(get_args(kind), content, where)


def _parse_entries(kind: Any, content: Any, where: str) -> Any:
    if not isinstance(content, Mapping):
        raise _wrong("an object", content, where)
    hints, optional = _hints(kind)
    if missing := [name for name in hints if name not in content and name not in optional]:
        raise ValueError(f"{where} has no {missing[0]!r}")
    if unknown := [name for name in content if name not in hints]:
        raise ValueError(f"{where} has an unknown entry {_short(unknown[0])}")
    values = {name: _parse(hints[name], content[name], f"{where}: {name}") for name in hints if name in content}
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


@cache
def _hints(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """The entries of a class with their types, and those that may be missing."""
    hints = get_type_hints(kind)
    if is_typeddict(kind):
        return hints, frozenset(kind.__optional_keys__)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}, frozenset()


def _parse_union(kinds: tuple[Any, ...], content: Any, where: str) -> Any:
    if content is None and types.NoneType in kinds:
        return None
    failed = ""
    for kind in kinds:
        if kind is not types.NoneType:
            try:
                return _parse(kind, content, where)
            except ValueError as error:
                failed = failed or str(error)
    raise ValueError(failed)


def _parse_number(_: tuple[Any, ...], content: Any, where: str) -> float:
    if isinstance(content, bool) or not isinstance(content, int | float):
        raise _wrong("a number", content, where)
    try:
        number = float(content)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _wrong("a finite number", content, where)
    return number


def _parse_literal(known: tuple[Any, ...], content: Any, where: str) -> Any:
    if not any(content == each and type(content) is type(each) for each in known):
        raise _wrong(f"one of {', '.join(map(repr, known))}", content, where)
    return content


def _parse_tuple(kinds: tuple[Any, ...], content: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(content, list | tuple):
        raise _wrong("a list", content, where)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = kinds[:1] * len(content)
    if len(kinds) != len(content):
        raise _wrong(f"a list of {len(kinds)}", content, where)
    return tuple(
        _parse(kind, value, f"{where}[{i}]") for i, (kind, value) in enumerate(zip(kinds, content, strict=True))
    )


def _parse_list(kinds: tuple[Any, ...], content: Any, where: str) -> list[Any]:
    return list(_parse_tuple((kinds[0], Ellipsis), content, where))


def _parse_dict(kinds: tuple[Any, ...], content: Any, where: str) -> dict[str, Any]:
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise _wrong("an object", content, where)
    return {name: _parse(kinds[1], value, f"{where}: {_short(name)[1:-1]}") for name, value in content.items()}


def _parse_any(_: tuple[Any, ...], content: Any, where: str) -> Any:
    """Anything that JSON can hold, its numbers finite."""
    if isinstance(content, float):
        return _parse_number((), content, where)
    if isinstance(content, Mapping):
        return _parse_dict((str, Any), content, where)
    return _parse_list((Any,), content, where) if isinstance(content, list | tuple) else content


def _exactly(kind: type, words: str) -> Callable[[tuple[Any, ...], Any, str], Any]:
    def read(_: tuple[Any, ...], content: Any, where: str) -> Any:
        if type(content) is not kind:
            raise _wrong(words, content, where)
        return content

    return read


def _wrong(wanted: str, content: Any, where: str) -> ValueError:
    return ValueError(f"{where} should be {wanted}, found {_short(content)}")


def _short(content: Any) -> str:
    text = repr(content)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


_READERS: dict[Any, Callable[[tuple[Any, ...], Any, str], Any]] = {
    bool: _exactly(bool, "true or false"),
    int: _exactly(int, "a whole number"),
    str: _exactly(str, "a text"),
    types.NoneType: _exactly(types.NoneType, "null"),
    float: _parse_number,
    Literal: _parse_literal,
    tuple: _parse_tuple,
    list: _parse_list,
    dict: _parse_dict,
    Any: _parse_any,
}
