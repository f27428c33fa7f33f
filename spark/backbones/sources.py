"""The files that a user's own network is made of: its own, and those beside it that it imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from spark.utils.files import sha256


def helpers(file: Path, root: Path) -> dict[str, str]:
    """Return the SHA-256 of each module below a folder that a file imports, directly or not, by relative path.

    Imports are read from the sources, wherever they stand in them; modules that are named at run time are not seen.

    Args:
        file: that names the network; not in the result.
        root: where its imports are looked up.
    """
    found: set[Path] = set()
    waiting = [file]
    while waiting:
        new = {path.resolve() for path in _imported(waiting.pop(), root)} - found - {file.resolve()}
        found |= new
        waiting += new
    return {path.relative_to(root.resolve()).as_posix(): sha256(path) for path in sorted(found)}


def _imported(file: Path, root: Path) -> Iterator[Path]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # of a module that the network can do without: it was imported all the same
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(root, alias.name)
        elif isinstance(node, ast.ImportFrom):
            start = file.parents[node.level - 1] if node.level else root
            module = node.module or ""
            for name in ("", *(alias.name for alias in node.names)):  # what is imported may be a module itself
                for path in _files(start, ".".join(filter(None, (module, name)))):
                    if path.resolve().is_relative_to(root.resolve()):
                        yield path


def _files(folder: Path, module: str) -> Iterator[Path]:
    """Return the files of a module and of the packages that it lies in, as far as they are there."""
    parts = module.split(".") if module else []
    for end in range(1, len(parts) + 1):
        place = folder.joinpath(*parts[:end])
        yield from (path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file())
