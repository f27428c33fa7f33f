"""Images that cannot be read: counted, named in a report, and too many of them stop the run."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from spark.data.decode import UnreadableImageError
from spark.errors import UserError
from spark.utils.files import write_text
from spark.utils.printable import counted, printable

UNREADABLE_LIMIT, SPARED = 0.01, 2  # share of a data set's images; how many never stop a training


class NamedImages(Protocol):
    """Images that can be named, and tried again: an ImagePool, for one."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Say where an image is, for people."""

    @property
    def checksum(self) -> str | None:
        """A hash of their content; None if there is none."""

    def load(self, index: int) -> Any:
        """Return an image.

        Raises:
            UnreadableImageError: it cannot be read; the message says why.
        """


class UnreadableFiles:
    """Counts the images that could not be read, names them in a report, and stops the run when there are too many.

    Args:
        pool: the images.
        report: a text file with a line for each, name and reason. It is written when there is something to tell,
            so that it is there however the run ends; what it tells from before a resume is kept, but of files that
            are gone.
        spared: how many never stop the run; an evaluation's number should not depend on what happens to be readable.
    """

    def __init__(self, pool: NamedImages, report: Path | None = None, spared: int = SPARED) -> None:
        self._pool, self._report, self._spared = pool, report, spared
        self.found: set[int] = set()
        told = report.read_text(encoding="utf-8").splitlines() if report and report.is_file() else []
        names = {printable(pool.name(index)) for index in range(len(pool))} if told else set()
        self._lines = dict.fromkeys(line for line in told if line.partition("\t")[0] in names)

    def note(self, indices: Tensor) -> None:
        """Take the `unreadable` entries of a batch; warn of new ones.

        Raises:
            UserError: more than one per cent of all images, and more than are spared, cannot be read.
        """
        for index in sorted(set(indices.tolist()) - {-1} - self.found):
            self.found.add(index)
            name, reason = printable(self._pool.name(index)), self._reason(index)
            self._tell(f"{name}\t{reason}")
            warnings.warn(f"unreadable image {name} is skipped ({len(self.found)} so far): {reason}", stacklevel=2)
            self.judge(len(self.found), f", '{name}' for one ({reason})")

    def judge(self, count: int, example: str = "") -> None:
        """Stop if so many images, of this process or of all, are too many.

        Raises:
            UserError: more than one per cent of all images, and more than are spared, cannot be read.
        """
        total = len(self._pool)
        if count > max(UNREADABLE_LIMIT * total, self._spared):
            raise UserError(f"{count} of {total} images cannot be read (more than {UNREADABLE_LIMIT:.0%}){example}; "
                            "repair or remove them")

    def summary(self) -> str:
        """Say how many images could not be read in the whole run, and where they are named; '' if all could."""
        if not self._lines:
            return ""
        return f"{len(self._lines)} of {counted(len(self._pool), 'image')} could not be read: see {self._report}"

    def _reason(self, index: int) -> str:
        """Find out what is wrong with an image; a worker tells only which it was."""
        try:
            self._pool.load(index)
        except UnreadableImageError as error:
            return " ".join(str(error).split())
        return "readable when tried again"

    def _tell(self, line: str) -> None:
        self._lines[line] = None
        if self._report:
            write_text(self._report, "".join(f"{told}\n" for told in sorted(self._lines)))
