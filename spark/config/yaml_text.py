"""The one reader of YAML: data, never code, and not more of it than a person would write.

It reads what OmegaConf reads: `4e-4` is a number and `2024-01-01` is text; keys must not stand twice.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader  # what OmegaConf.load reads with; it has no public name

from spark.config.values import shown
from spark.errors import UserError
from spark.utils.files import read_regular

MOST_BYTES = 2**21
MOST_VALUES = 100_000
DEEPEST = 50
GLUED = re.compile(r"([^:=]*?)\s*[:=]\s*(.+)", re.DOTALL)
PLAIN = (str, int, float, bool, type(None))


def read_yaml(path: Path, what: str = "recipe") -> Any:
    """Return the content of a YAML file: mappings, lists and plain values; None if it is empty.

    Args:
        path: of the file.
        what: it is, for messages.

    Raises:
        UserError: it is no such file, or no YAML, or more than a person would write.
    """
    try:
        text = read_regular(path, what, MOST_BYTES).decode("utf-8")
        return parse_yaml(text)
    except (UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{what} '{path}' is not valid YAML: {_line(error)}") from None


def parse_yaml(text: str, loader: Any = None) -> Any:
    """Return what a text says.

    Args:
        text: of YAML.
        loader: another of PyYAML's safe ones.

    Raises:
        ValueError: it is no YAML, or more than a person would write.
    """
    try:
        content = yaml.load(text, Loader=loader or _loader())
        _measure(content, {}, 0)
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep") from None
    except (yaml.YAMLError, OverflowError, TypeError) as error:
        raise ValueError(_line(error)) from None
    return content


@cache
def _loader() -> Any:
    """Return OmegaConf's loader, a class that it would make anew for each text."""
    return get_yaml_loader()


def require_values(content: Any) -> None:
    """Raise ValueError for `{a:1}` and `{a=1}`, which to YAML are a key `a:1` without a value: nothing would be set."""
    if isinstance(content, list | dict):
        for inner in content.values() if isinstance(content, dict) else content:
            require_values(inner)
    for key in (key for key, value in content.items() if value is None) if isinstance(content, dict) else ():
        if glued := GLUED.fullmatch(str(key)):
            raise ValueError(f"'{shown(key)}' has no value: write '{shown(f'{glued[1]}: {glued[2]}')}', with a space "
                             "after the colon")


def _measure(value: Any, known: dict[int, int], depth: int) -> int:
    """Return how many values there are, those that aliases repeat counted each time.

    Args:
        value: with what is in it.
        known: the numbers of lists and mappings that were seen before, by identity; 0 while they are being counted.
        depth: of lists and mappings around it.

    Raises:
        ValueError: too many, too deep, without end, or no plain values.
    """
    if isinstance(value, int) and abs(value) >= 2**64:
        raise ValueError("it has a number of more than 64 bits")
    if type(value) in PLAIN:
        return 1
    if not isinstance(value, dict | list):
        raise ValueError(f"it has a {type(value).__name__}, where text, numbers, lists and mappings are expected")
    if depth > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")
    if known.get(id(value)) == 0:
        raise ValueError("it contains itself")
    if id(value) not in known:
        known[id(value)] = 0
        if isinstance(value, dict) and not all(isinstance(key, str | int | float | bool) for key in value):
            raise ValueError("its keys must be words or numbers")
        inside = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_measure(inner, known, depth + 1) for inner in inside)
    if known[id(value)] > MOST_VALUES:
        raise ValueError(f"its aliases (*) stand for more than {MOST_VALUES:,} values")
    return known[id(value)]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
