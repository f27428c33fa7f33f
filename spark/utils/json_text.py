"""The reader of JSON files that others wrote, or a crash or a bad disk damaged: strict, and quick to give up.

What is read becomes instances of dataclasses, whose declarations say what is a sound content.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from spark.errors import UserError
from spark.utils.files import read_regular

MOST_BYTES = 2**26
LARGEST_NUMBER = 1e100  # beyond it nothing was measured, and squares come near to what computers can tell
LARGEST_WHOLE = 2**64
HALF = re.compile(r"\\u[dD][89a-fA-F]")

Schema = TypeVar("Schema")


def read_json(path: Path, what: str, most: int = MOST_BYTES) -> Any:
    """Return the content of a JSON file.

    Args:
        path: of the file.
        what: it is, for messages.
        most: bytes that such a file has.

    Raises:
        UserError: it is no regular file, larger, or no JSON.
    """
    try:
        return parse_json(read_regular(path, what, most))
    except ValueError as error:
        raise UserError(f"{what} '{path}' is damaged: {error}") from None


def read_as(schema: type[Schema], path: Path, what: str) -> Schema:
    """Return the content of a JSON file as an instance of a dataclass.

    Raises:
        UserError: as for `read_json`, or it has other fields, or values of other types.
    """
    content = read_json(path, what)
    try:
        return as_instance(schema, content)
    except (ValueError, TypeError) as error:
        raise UserError(f"{what} '{path}' is damaged: {error}") from None


def parse_json(text: str | bytes) -> Any:
    """Return what a text says: NaN, infinity and numbers that no run measures are refused.

    Raises:
        ValueError: it is no JSON, or has such numbers.
    """
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        content = json.loads(decoded, parse_constant=_no_number, parse_float=_float, parse_int=_int)
        if HALF.search(decoded):  # an escape may stand for a half of a character, which nothing can print
            json.dumps(content, ensure_ascii=False).encode("utf-8")
        return content
    except UnicodeError:
        raise ValueError("it is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON ({error})" if decoded.strip() else "it is empty") from None
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def as_instance(schema: type[Schema], content: Any) -> Schema:
    """Return plain values, as JSON has them, as an instance of a dataclass, whose own checks are made, too.

    Raises:
        ValueError: a field is unknown or missing, or its value is of another type than declared.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"it should hold fields, and is {_kind(content)}")
    fields = {entry.name: entry for entry in dataclasses.fields(schema)}  # type: ignore[arg-type]
    if unknown := [name for name in content if name not in fields]:
        raise ValueError(f"unknown field {str(unknown[0])[:40]!r}")
    if missing := [name for name, entry in fields.items() if name not in content and _is_required(entry)]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    hints = _hints(typing.cast(type, schema))
    return schema(**{name: _value(content[name], hints[name], name) for name in content})


@cache
def _hints(schema: type) -> Mapping[str, Any]:
    """Return the declared types of a dataclass: a report reads thousands of records."""
    return typing.get_type_hints(schema)


def _value(value: Any, hint: Any, name: str) -> Any:
    """Return a value as its declaration wants it, such as a list as a tuple."""
    origin, options = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (typing.Union, types.UnionType) and value is not None:
        return _value(value, next(option for option in options if option is not type(None)), name)
    if hint is Any or (origin is Literal and value in options) or (value is None and type(None) in options):
        return value
    if dataclasses.is_dataclass(origin):
        schema = typing.cast(type, origin)
        try:
            return value if isinstance(value, schema) else as_instance(schema, value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {key: _value(inner, options[1], f"{name}.{key}") for key, inner in value.items()} if options else value
    if origin in (list, tuple, Sequence) and isinstance(value, list | tuple):
        return _sequence(value, origin, options, name)
    if not _is_plain(value, origin):
        raise ValueError(f"{name} should be {getattr(origin, '__name__', hint)}, and is {_kind(value)}")
    return value


def _is_plain(value: Any, origin: Any) -> bool:
    """Return whether a value is of a type as JSON has it: whole numbers are floats too, and a bool is no number."""
    if origin is float and type(value) in (int, float):
        return True
    return isinstance(origin, type) and isinstance(value, origin) and (origin is bool or not isinstance(value, bool))


def _sequence(value: Sequence[Any], origin: Any, options: Sequence[Any], name: str) -> Any:
    if origin is tuple and options and options[-1] is not Ellipsis:
        if len(value) != len(options):
            raise ValueError(f"{name} should have {len(options)} entries, and has {len(value)}")
        return tuple(_value(inner, option, name) for inner, option in zip(value, options, strict=True))
    entries = [_value(inner, options[0] if options else Any, name) for inner in value]
    return tuple(entries) if origin is tuple else entries


def _is_required(entry: dataclasses.Field[Any]) -> bool:
    return entry.init and entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING


def _kind(value: Any) -> str:
    if isinstance(value, list | tuple | Mapping):
        return "a list" if isinstance(value, list | tuple) else "a mapping"
    text = "null" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or abs(value) > LARGEST_NUMBER:
        raise ValueError(f"{text[:40]} is no number that was measured")
    return value


def _int(text: str) -> int:
    if len(text) > 40 or abs(int(text)) >= LARGEST_WHOLE:
        raise ValueError(f"{text[:40]} is a number of more than 64 bits")
    return int(text)
