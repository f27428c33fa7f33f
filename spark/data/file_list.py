"""Images that are files of their own: found below a folder, or named in a list."""

from __future__ import annotations

import csv
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from spark.data.sampled_checksum import sampled_checksum
from spark.errors import UserError
from spark.utils.files import open_regular
from spark.utils.provenance import content_hash

SEPARATORS = {".csv": ",", ".tsv": "\t"}
LIST_SUFFIXES = (".txt", ".lst", *SEPARATORS)
COLUMN = "path"
LOOKED_FOR = 100  # entries of a list, one of which must exist


class FileSource:
    """Image files.

    Args:
        folder: what the names are relative to.
        names: in the order of their indices; absolute ones are welcome.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder, self._names = folder, names

    def __len__(self) -> int:
        return len(self._names)

    def path(self, index: int) -> Path:
        """Return where the image is."""
        return self._folder / self._names[index]

    def open(self, index: int) -> BinaryIO:
        """Open the file, unless it is a pipe or a device, whose end one might wait for."""
        return open_regular(self.path(index))

    def name(self, index: int) -> str:
        """Return the path."""
        return str(self.path(index))

    @property
    def identity(self) -> str:
        """A hash of the names. Not of the sizes: asking for a million of them takes minutes on a network disk."""
        return content_hash(list(self._names))

    @functools.cached_property
    def checksum(self) -> str:
        """A hash of what the files hold; of a sample where there are many."""
        return sampled_checksum(len(self), self.open)


def read_list(path: Path) -> list[str]:
    """Read a list of images: one a line, or the column `path` of a table. They are relative to the list's folder.

    Raises:
        UserError: the list is no text, has no such column, is empty, or its images are not there.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() in SEPARATORS:
                names = _column(csv.reader(file, delimiter=SEPARATORS[path.suffix.lower()]), path)
            else:
                names = [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"file list '{path}' cannot be read: {error}") from None
    if not names:
        raise UserError(f"file list '{path}' names no images: one path a line, or a column '{COLUMN}', is expected")
    if not any(os.path.isfile(path.parent / name) for name in names[:LOOKED_FOR]):
        raise UserError(
            f"file list '{path}': '{path.parent / names[0][:200]}' does not exist, nor do the next; "
            "paths are relative to the list's folder"
        )
    return names


def _column(rows: Iterator[list[str]], path: Path) -> list[str]:
    """Return the column `path` of a table, which one without a header does not have."""
    header = [title.strip().lower() for title in next(rows, [])]
    if COLUMN not in header:
        raise UserError(f"'{path}' has no column '{COLUMN}', only {', '.join(header) or 'nothing'}; name one so")
    place = header.index(COLUMN)
    return [row[place].strip() for row in rows if len(row) > place and row[place].strip()]
