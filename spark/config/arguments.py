"""The command lines' arguments, declared as settings are; what is wrong with them is one line, as of settings."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from spark.config.values import Place, declared, shown
from spark.errors import UserError

WORDS = {int: "whole number", float: "number"}


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are our errors: a line without the usage, which `--help` shows."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the arguments; settings may stand behind options, too: RECIPE --dry-run key=value."""
        options, others = self.parse_known_args(args, namespace)
        if isinstance(settings := getattr(options, "overrides", None), list):
            settings += [word for word in others if _is_setting(word)]
            others = [word for word in others if not _is_setting(word)]
        if others:
            self.error(f"unrecognized arguments: {' '.join(others)}")
        return options

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(f"{message}; see {self.prog} --help")


def _is_setting(word: str) -> bool:
    return "=" in word and not word.startswith("-")


def number(declaration: Any) -> Callable[[str], Any]:
    """Return the `type=` of a number that is declared as settings are."""
    return _checked(declaration)


def a_name(text: str) -> str:
    """Return a word of the command line that names something.

    Raises:
        argparse.ArgumentTypeError: nothing can be called so.
    """
    return _checked(Place)(text)


def add_trust(parser: argparse.ArgumentParser, named_by: str) -> None:
    """Add the flag by which a person says whose code may run, as files name modules and files of their choice."""
    parser.add_argument("--trust", action="append", default=[], metavar="FILE.py:CLASS",
                        help=f"an own network or task whose code may run though it is {named_by} that names it")


def a_path(text: str) -> Path:
    """Return the path that a word of the command line is.

    Raises:
        argparse.ArgumentTypeError: no path can be so.
    """
    return Path(a_name(text))


def _checked(declaration: Any) -> Callable[[str], Any]:
    base, limits = declared(declaration)

    def read(text: str) -> Any:
        try:
            value = base(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{shown(text)}' is no {WORDS[base]}") from None
        for limit in limits:
            if complaint := limit.complaint(value):
                raise argparse.ArgumentTypeError(f"{shown(value)} {complaint}")
        return value

    return read
