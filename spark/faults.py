"""What machines do to programs, for people: full disks, drives that fail, folders that vanish, workers that die."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

ADVICE = {
    errno.ENOSPC: "no space left on {device}: free some, or write elsewhere",
    errno.EDQUOT: "the disk quota on {device} is used up: free some space, or write elsewhere",
    errno.EROFS: "{device} is read-only: write elsewhere, or see why (an error of the disk makes it so, too)",
    errno.EIO: "{device} fails (input/output error): check the disk, or the network drive",
    errno.ESTALE: "{device} lost the file (stale handle): check the network drive",
    errno.ETIMEDOUT: "{device} does not answer: check the network drive",
    errno.EFBIG: "the file would be larger than is allowed: see `ulimit -f`, or write to another file system",
    errno.EMFILE: "too many files are open: see `ulimit -n`",
    errno.ENFILE: "too many files are open on this machine",
}
OS_ERROR = re.compile(r"\(os error (\d+)\)")  # safetensors' way to say which
DEAD_WORKER = re.compile(r"DataLoader worker \(pid[^)]*\) (is killed by signal: \w+|exited unexpectedly)")


def fault(error: BaseException, path: Path | None = None) -> str | None:
    """Return, in a line, what fault of the machine an error tells of; None if it is of another kind.

    Args:
        error: as raised by Python, torch, safetensors or a DataLoader.
        path: that was being written, if the error does not tell.
    """
    if died := DEAD_WORKER.search(str(error)):
        return (f"a process that loads images ended (it {died[1]}): most often the machine has too little memory, and "
                "fewer workers need less")
    for cause in _causes(error):
        number = _number(cause)
        if number in ADVICE:
            there = path or _path(cause)
            place = f"'{device(there)}'" if there else "the disk"
            return (f"cannot write '{path}': " if path else f"'{there}': " if there else "") + (
                ADVICE[number].format(device=place))
    return None


def no_space(path: Path) -> str | None:
    """Return, in words, that nothing more can be written to a path; None if it can, or nobody knows."""
    try:
        there = device(path)
        return None if os.statvfs(there).f_bavail else ADVICE[errno.ENOSPC].format(device=f"'{there}'")
    except OSError:
        return None


def device(path: Path) -> Path:
    """Return where the file system is mounted that a path lies on, or would."""
    there = Path(os.path.abspath(path))
    while not os.path.ismount(there) and there != there.parent:
        there = there.parent
    return there


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those in whose handling it came up: torch raises another one over that of the file."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    found = OS_ERROR.search(str(error))
    return int(found[1]) if found else None


def _path(error: BaseException) -> Path | None:
    name = getattr(error, "filename", None)
    return Path(os.fsdecode(name)) if isinstance(name, str | bytes) else None
