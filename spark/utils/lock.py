"""Whoever writes into a folder or a file keeps it to itself: the second of two is refused.

The lock is the operating system's (`fcntl`, which network file systems know, too) on a small file. It ends with its
process, however that ends, and workers do not inherit it. The file tells whose it is, and is removed at the end; one
that a killed process left behind means nothing.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark.errors import UserError
from spark.utils.files import cannot_write
from spark.utils.process_identity import process_lives, process_start, this_machine

if TYPE_CHECKING:  # it imports torch
    from spark.utils.distributed import Ranks

NAME = ".lock"
HELD = (errno.EACCES, errno.EAGAIN)
CANNOT_LOCK = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # file systems that know no locks
CANNOT_WRITE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR)  # a file may be in the way
PATIENCE_SECONDS = 120.0  # for what a broken machine held: a file server keeps its locks for a while


class TakenError(UserError):
    """Another process writes there."""


@contextmanager
def sole_writer(folder: Path, ranks: Ranks | None = None) -> Iterator[None]:
    """Keep a folder, which is made if it is not there, while the body runs.

    Where nothing can be written at all there is nothing to keep, and the body itself will say why.

    Args:
        folder: to be written to.
        ranks: the processes that do that together: the first keeps it for all.

    Raises:
        TakenError: another process writes there.
        UserError: it cannot be written to.
        SystemExit: in all other processes, instead of these.
    """
    with ExitStack() as kept:
        if ranks is None:
            kept.enter_context(_kept(folder, folder / NAME))
        else:
            ranks.on_main(lambda: kept.enter_context(_kept(folder, folder / NAME)))
        yield


def sole_writer_of_file(file: Path) -> AbstractContextManager[None]:
    """Keep a file that is to be written or replaced; errors as for `sole_writer`."""
    return _kept(file, file.with_name(f".{file.name}{NAME}"))


@contextmanager
def _kept(place: Path, path: Path) -> Iterator[None]:
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor: int | None = _taken(path, place)
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise cannot_write(path, error) from None
        descriptor = None
    try:
        yield
    finally:
        with suppress(OSError):  # it may be gone, with its drive
            if descriptor is not None:
                path.unlink()  # not after it is closed, when it may be another's
        if descriptor is not None:
            os.close(descriptor)
        with suppress(OSError):  # whoever fails before writing anything leaves nothing
            for folder in made:
                folder.rmdir()


def _taken(path: Path, place: Path) -> int:
    """Return the descriptor of the locked file, which is this process's now."""
    patience = time.monotonic() + PATIENCE_SECONDS
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            holder = _holder(descriptor)
            if not _locked(descriptor, holder):
                if not _was_this_job(holder) or time.monotonic() > patience:
                    raise TakenError(f"'{place}' is being written by {_named(holder)}; wait until it ends or stop it, "
                                     "or write elsewhere (out=…)")
            elif _is_there(path, descriptor):
                _introduce(descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # removed by its last holder just now, or still kept for a part of this job that is gone
        time.sleep(0.05)


def _locked(descriptor: int, holder: dict[str, Any]) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            return False
        if error.errno not in CANNOT_LOCK:
            raise
        alive = holder.get("machine") == this_machine() and process_lives(holder["process"], holder["started"])
        return not (alive and holder["process"] != os.getpid())
    return True


def _is_there(path: Path, descriptor: int) -> bool:
    """Whether the file that was locked still has its name: the last holder removes it."""
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False


def _introduce(descriptor: int) -> None:
    """Write down, for people, whose the lock is; on a full disk it holds without."""
    own = {"machine": this_machine(), "process": os.getpid(), "started": process_start(os.getpid()),
           "since": time.time(), "job": _job()}
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(own).encode(), 0)


def _holder(descriptor: int) -> dict[str, Any]:
    try:
        content = json.loads(os.pread(descriptor, 4096, 0))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _was_this_job(holder: dict[str, Any]) -> bool:
    """Whether an earlier go of this very job of Slurm held it, on a machine that broke."""
    return bool(_job()) and holder.get("job") == _job() and holder.get("machine") != this_machine()


def _job() -> str:
    return os.environ.get("SLURM_JOB_ID", "")


def _named(holder: dict[str, Any]) -> str:
    try:
        host, since = str(holder["machine"]).partition("/")[0], datetime.fromtimestamp(holder["since"])
        return f"process {holder['process']} on {host} since {since:%Y-%m-%d %H:%M:%S}"
    except (KeyError, TypeError, ValueError, OverflowError):
        return "another process"
