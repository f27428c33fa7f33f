"""What a setting may be, declared beside it, and the one check of it, for the configurations of all verbs.

A declaration is a type with its limits, `epochs: Count = 300`, which OmegaConf and type checkers read as the bare type.
What is declared as a mere `float`, `int` or `str`, and what stands in free mappings, must still be finite and of a size
that computers can store.
"""

from __future__ import annotations

import dataclasses
import math
import os
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

SHOWN = 60  # characters of a value in a message
UNIONS = (typing.Union, types.UnionType)
LARGEST = 2**63 - 1  # what 64 bits hold


@dataclass(frozen=True)
class Range:
    """The numbers that make sense.

    Attributes:
        low: the smallest.
        high: the largest.
        above: the smallest itself is none of them.
        below: the largest itself is none of them.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False

    def complaint(self, value: Any) -> str | None:
        """Say what a number must be; None if it is so."""
        if not isinstance(value, int | float) or isinstance(value, bool) or self._holds(value):
            return None
        if isinstance(value, float) and not math.isfinite(value):
            return "must be a finite number"
        if self.high <= 1:
            return f"must be in {'(' if self.above else '['}{self.low:g}, {self.high:g}{')' if self.below else ']'}"
        if value > self.low:
            return f"must be at most {self.high:,}"
        if self.low:
            return f"must be at least {self.low:,}"
        return "must be positive" if self.above else "must not be negative"

    def _holds(self, value: float) -> bool:
        """Whether a number is one of these; NaN never is."""
        enough = self.low < value if self.above else self.low <= value
        return enough and (value < self.high if self.below else value <= self.high)


@dataclass(frozen=True)
class Text:
    """Text that systems take.

    Attributes:
        part: the most bytes between two slashes; of a file's name, they allow 255.
        whole: the most bytes of all.
        empty: whether it may be.
        utf8: whether it must be; names of files that are there already need not.
    """

    part: int
    whole: int = 4095
    empty: bool = True
    utf8: bool = False

    def complaint(self, value: Any) -> str | None:
        """Say what a text must be; None if it is so."""
        if not isinstance(value, str):
            return None
        if not (value or self.empty):
            return "must not be empty"
        if "\0" in value:
            return "must not hold the character NUL"
        try:
            # Names that are no UTF-8 are, to Python, text with escaped bytes.
            encoded = value.encode("utf-8") if self.utf8 else os.fsencode(value)
        except UnicodeEncodeError:
            return f"must not hold {'bytes that are no UTF-8' if self.utf8 else 'halves of characters'}"
        longest = max(map(len, encoded.split(b"/")))
        if longest > self.part or len(encoded) > self.whole:
            return f"is too long ({len(encoded):,} bytes): at most {self.part} between slashes, {self.whole:,} in all"
        return None


ANY_NUMBER = Range(-LARGEST - 1, LARGEST)
ANY_TEXT = Text(part=65_535, whole=65_535)

Count = Annotated[int, Range(1, 10**9)]
CountOrNone = Annotated[int, Range(0, 10**9)]  # zero is one of them
Seed = Annotated[int, Range(0, LARGEST)]
Epochs = Annotated[int, Range(1, 10**6)]
EpochsOrNone = Annotated[int, Range(0, 10**6)]
Pixels = Annotated[int, Range(1, 2**16)]
Channels = Annotated[int, Range(1, 2**16)]
Width = Annotated[int, Range(1, 2**16)]  # channels of a layer
Jobs = Annotated[int, Range(1, 4096)]
Workers = Annotated[int, Range(0, 4096)]
Positive = Annotated[float, Range(0, 10**6, above=True)]
NotNegative = Annotated[float, Range(0, 10**6)]
Minutes = Annotated[float, Range(0, 10**9)]
Seconds = Annotated[float, Range(0, 10**6, above=True)]
Share = Annotated[float, Range(0, 1, above=True)]  # of a whole: (0, 1]
Part = Annotated[float, Range(0, 1, above=True, below=True)]  # of a whole: (0, 1)
Probability = Annotated[float, Range(0, 1)]
Decay = Annotated[float, Range(0, 1, below=True)]  # [0, 1)
Level = Annotated[float, Range(-(10**6), 10**6)]  # of a pixel
Name = Annotated[str, Text(part=255)]  # also a path
Place = Annotated[str, Text(part=255, empty=False)]  # a path that there must be
Output = Annotated[str, Text(part=255, empty=False, utf8=True)]  # a path to write to, which libraries take


def wrong_values(config: Any, schema: type | None = None, prefix: str = "") -> Iterator[str]:
    """Yield what is wrong with the values of a configuration, each in a line that names the setting.

    Args:
        config: a dataclass; or nested mappings, with `schema`.
        schema: the dataclass whose declarations hold.
        prefix: of the settings' names.
    """
    schema = schema or type(config)
    hints = type_hints(schema)
    for entry in dataclasses.fields(schema):
        name, hint = f"{prefix}{entry.name}", hints[entry.name]
        value = config.get(entry.name) if isinstance(config, Mapping) else getattr(config, entry.name)
        if dataclasses.is_dataclass(hint):
            if isinstance(value, Mapping) or dataclasses.is_dataclass(value):
                yield from wrong_values(value, typing.cast(type, hint), f"{name}.")
        else:
            yield from wrong_value(name, value, hint)


def wrong_value(name: str, value: Any, declaration: Any = Any) -> Iterator[str]:
    """Yield what is wrong with one value: of a list or mapping, the first mistake of each entry.

    Args:
        name: of the setting.
        value: of it.
        declaration: a type, perhaps with limits.
    """
    base, limits = declared(declaration)
    if _must_be_number(declaration) and _is_no_number(value):
        yield f"{name}={shown(value)} must be a number"
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from wrong_value(f"{name}.{shown(key)}", inner)
    elif isinstance(value, list | tuple):
        inner_declaration = (typing.get_args(base) or (Any,))[0]
        found = (complaint for entry in value for complaint in wrong_value("", entry, inner_declaration))
        yield from (f"{name}={shown(value)}: each {complaint.partition(' ')[2]}" for complaint in list(found)[:1])
    else:
        for limit in limits or (ANY_NUMBER, ANY_TEXT):
            if complaint := limit.complaint(value):
                yield f"{name}={shown(value)} {complaint}"


def shown(value: Any, most: int = SHOWN) -> str:
    """Return a value as messages show it: in one line, not more of it than so many characters."""
    try:
        text = value if isinstance(value, str) else str(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"
    text = " ".join(text.split()) if "\n" in text else text
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


@cache
def type_hints(schema: type) -> Mapping[str, Any]:
    """Return the declaration of each of a dataclass's settings, limits included; read once."""
    return typing.get_type_hints(schema, include_extras=True)


def _must_be_number(declaration: Any) -> bool:
    """Whether a setting can be nothing else, but for None."""
    options = typing.get_args(declaration) if typing.get_origin(declaration) in UNIONS else (declaration,)
    return all(option is type(None) or declared(option)[0] in (int, float) for option in options)


def _is_no_number(value: Any) -> bool:
    """Whether a value is of another kind, which recipes that are programs may hold; references are resolved later."""
    if isinstance(value, str):
        return not value.startswith("${")
    return isinstance(value, bool | list | tuple | Mapping)


def text_is_wanted(declaration: Any) -> bool:
    """Whether a setting is text, such as a path or a name."""
    return declared(declaration)[0] is str


def is_optional(declaration: Any) -> bool:
    """Whether a setting may be None."""
    return type(None) in typing.get_args(declaration)


def declared(declaration: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return the bare type of a declaration and its limits, of `T | None` those of T."""
    if typing.get_origin(declaration) in UNIONS:
        declaration = next(option for option in typing.get_args(declaration) if option is not type(None))
    if typing.get_origin(declaration) is Annotated:
        base, *limits = typing.get_args(declaration)
        return base, tuple(limits)
    return declaration, ()

