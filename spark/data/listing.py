"""Which files lie below a folder: those that are data, in an order that is the same on every machine.

A large set is listed faster when it was listed before: what a folder held is kept in the user's cache beside the times
of its last change, which differ after any file is added, removed or renamed. Each folder is asked for its times anew.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from spark.errors import UserError
from spark.utils.cache import keep, recall, user_cache
from spark.utils.provenance import content_hash

NOT_DATA = ("@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "lost+found")  # that systems leave beside files
CONFIG = "config.yaml"
RUN_MARKS = (CONFIG, "metrics.jsonl", "checkpoints", "result.json", "encoder.json")  # a run has two of these, or more
STUDY_MARKS = ("graph.json", "report")
SETTLED_S = 5.0  # a folder that was changed less than this before it was listed may change again at the same time
WORTH_KEEPING = 10_000  # files; fewer are listed in no time


class Folder(NamedTuple):
    """What a folder held after its last change: names of folders (links to folders, too) and of other files."""

    changed: list[int]  # times of the last change of content and of anything, in ns, and inode
    folders: list[str]
    files: list[str]


def list_files(root: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Return the names of all files below a folder with one of the suffixes, relative to it, sorted by their parts.

    Hidden files and folders, what systems leave beside files, and the folders of our own runs hold no data. Links are
    followed, as to class folders, but none to a folder around it.

    Raises:
        UserError: the folder is missing, or one below it cannot be read.
    """
    if not root.is_dir():
        raise UserError(f"image folder '{root}' does not exist; set data.root to a folder of images")
    found = [f"{prefix}{name}" for prefix, names in walk(root) for name in names
             if name.lower().endswith(suffixes) and name[0] != "."]  # fmt: skip
    found.sort(key=lambda name: name.split("/"))
    return found


def walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield all folders of data ('' for the root, else ending in '/') with the names of their files."""
    known = _Known(root)
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while pending:
        prefix, around = pending.pop()
        path = os.path.join(root, prefix)
        status = os.stat(path)
        place = (status.st_dev, status.st_ino)
        if place in around:
            continue
        folder = known.folder(prefix, path, status)
        if prefix and is_run(folder):
            continue
        pending += [(f"{prefix}{name}/", around | {place}) for name in folder.folders if not _is_left_out(name)]
        yield prefix, folder.files
    known.keep()


def is_run(folder: Folder) -> bool:
    """Whether a folder is that of a run, or of a study with its report, which may hold pictures."""
    names = {*folder.files, *folder.folders}
    return len(names.intersection(RUN_MARKS)) > 1 if CONFIG in names else names.issuperset(STUDY_MARKS)


def _is_left_out(name: str) -> bool:
    return name[0] == "." or name in NOT_DATA


class _Known:
    """What was found below a root before.

    Args:
        root: its absolute path names the file in the cache.
    """

    def __init__(self, root: Path) -> None:
        self._file = user_cache("listings") / f"{content_hash(os.path.abspath(root))}.json"
        self._before = {prefix: Folder(*entry) for prefix, entry in (recall(self._file) or {}).items()}
        self._now: dict[str, Folder] = {}
        self._changed = False

    def folder(self, prefix: str, path: str, status: os.stat_result) -> Folder:
        """Return what a folder holds."""
        changed = [status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        before = self._before.get(prefix)
        if before is not None and before.changed == changed:
            self._now[prefix] = before
            return before
        listed_ns = time.time_ns()
        found = Folder(changed, *_listed(path))
        # Two changes within one tick of a clock leave the same time, and clocks of servers differ a little.
        if listed_ns - max(status.st_mtime_ns, status.st_ctime_ns) > SETTLED_S * 1e9:
            self._now[prefix] = found
            self._changed = True
        return found

    def keep(self) -> None:
        """Write down what was found, if that is worth while."""
        worth = sum(len(folder.files) for folder in self._now.values()) >= WORTH_KEEPING
        if worth and (self._changed or self._now.keys() != self._before.keys()):
            keep(self._file, self._now)


def _listed(path: str) -> tuple[list[str], list[str]]:
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                (folders if entry.is_dir() else files).append(entry.name)
    except OSError as error:
        raise UserError(f"folder '{path}' cannot be read: {error.strerror}") from None
    return sorted(folders), sorted(files)
