"""Attempts at a node: who works, or has worked, in a folder, and how that ended. They are also its lock.

Attempt n is the file `attempts/n.json`. Whoever wants to work creates the file of the next number; of several, the
file system lets one succeed (O_EXCL, which holds on NFS too). The folder is taken as long as the latest attempt has
not ended and its process is alive: on this machine the process is asked for, of others the file must have been
touched lately. Nothing is ever deleted, so there is no moment at which a dead attempt's lock could be taken twice.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spark.errors import UserError
from spark.utils.files import cannot_write, create_whole, write_json
from spark.utils.json_text import read_as
from spark.utils.process_identity import process_lives, process_start, this_machine

ATTEMPTS = "attempts"
BEAT_SECONDS = 20.0
STALE_SECONDS = 300.0  # without a touch, on another machine; clocks may differ by some minutes
UNKNOWN = "unknown"  # machine of an attempt whose file does not tell
FINISHED, FAILED, STOPPED = "finished", "failed", "stopped"


class HeldError(UserError):
    """Somebody else works in the folder."""


@dataclass(frozen=True)
class AttemptRecord:
    """One attempt, as its file tells.

    Attributes:
        machine: host name and process namespace.
        process: the id of the process that watches over the work, and when it started.
        children: likewise, of those that do it.
        job: the scheduler's id; "" without one.
        begin: how far the run was when this attempt started, in its own unit.
        started, ended: seconds since 1970; `ended` is None until then.
        outcome: finished, failed, or stopped (saved, to go on later).
        reason: in words, why it did not finish.
    """

    number: int
    machine: str
    process: tuple[int, int]
    started: float
    job: str = ""
    children: tuple[tuple[int, int], ...] = ()
    begin: float = 0.0
    ended: float | None = None
    outcome: str = ""
    reason: str = ""
    touched: float = 0.0

    @property
    def alive(self) -> bool:
        """Whether somebody still works."""
        if self.ended is not None:
            return False
        if self.machine == this_machine():
            return any(process_lives(*process) for process in (self.process, *self.children))
        return abs(time.time() - self.touched) < STALE_SECONDS  # a touch in the future: a clock was set back

    @property
    def watched(self) -> bool:
        """Whether, on this machine, the process that watches over the work lives."""
        return process_lives(*self.process)

    @property
    def workers(self) -> list[int]:
        """The processes, on this machine, that do the work and live; each leads a group."""
        return [pid for pid, started in self.children if process_lives(pid, started)]

    @property
    def seconds(self) -> float:
        """How long it has lasted."""
        return max(0.0, (self.ended or self.touched) - self.started)  # a clock may have been set back

    @property
    def place(self) -> str:
        """Who works, for people."""
        host = self.machine.partition("/")[0]
        return f"job {self.job} on {host}" if self.job else f"process {self.process[0]} on {host}"


class Attempt:
    """This process's attempt; as a context, it keeps the folder while the body runs.

    Args:
        folder: that nobody else may work in.
        job: the scheduler's id of this job. An attempt of the same job that has not ended was cut off.
        begin: how far the run is.
        is_over: whether nobody works on an earlier attempt any more, for whoever knows better than its file.

    Raises:
        HeldError: by `__enter__`, if somebody else works there.
    """

    def __init__(
        self, folder: Path, job: str = "", begin: float = 0.0,
        is_over: Callable[[AttemptRecord], bool] = lambda attempt: not attempt.alive,
    ) -> None:
        self._folder, self._job, self._begin, self._is_over = folder / ATTEMPTS, job, begin, is_over
        self._stop = threading.Event()
        self._writing = threading.Lock()

    def __enter__(self) -> Attempt:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self._folder, error) from None
        last = last_attempt(self._folder.parent)
        if last and not (self._job and last.job == self._job) and not self._is_over(last):
            raise HeldError(f"'{self._folder.parent}' is being worked on by {last.place}")
        self._record = AttemptRecord(
            (last.number if last else 0) + 1, this_machine(), (os.getpid(), process_start(os.getpid())), time.time(),
            self._job, begin=self._begin,
        )
        try:
            create_whole(self._path, json.dumps(_plain(self._record)))
        except FileExistsError:
            raise HeldError(f"'{self._folder.parent}' was taken by another process just now") from None
        except OSError as error:
            raise cannot_write(self._path, error) from None
        self._beats = threading.Thread(target=self._beat, daemon=True)
        self._beats.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._stop.set()
        self._beats.join()
        if self._record.ended is None:
            self.end(FAILED if error else FINISHED, repr(error) if error else "")

    @property
    def number(self) -> int:
        """Which attempt this is; the first is 1."""
        return self._record.number

    def children(self, pids: Iterable[int]) -> None:
        """Note the processes that do the work: as long as one lives, the folder is taken."""
        self._write(children=tuple((pid, process_start(pid)) for pid in pids))

    def end(self, outcome: str, reason: str = "") -> None:
        """Note how it ended."""
        self._write(ended=time.time(), outcome=outcome, reason=reason)

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._record.number:04d}.json"

    def _write(self, **changes: Any) -> None:
        with self._writing:
            self._record = dataclasses.replace(self._record, **changes)
            write_json(self._path, _plain(self._record))

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            with self._writing, suppress(OSError):  # a drive that fails now may be back at the next beat
                os.utime(self._path)


def attempts(folder: Path) -> list[AttemptRecord]:
    """Return a folder's attempts, the first one first; a damaged one has no machine, and its reason says why."""
    return list(map(_read, _files(folder)))


def last_attempt(folder: Path) -> AttemptRecord | None:
    """Return a folder's latest attempt."""
    paths = _files(folder)
    return _read(paths[-1]) if paths else None


def attempt_of_job(out: Path, job: str) -> tuple[Path, AttemptRecord] | None:
    """Return the latest attempt that is of a job of the scheduler, with its node's folder, in a study's folder."""
    latest = [(path.parent, last_attempt(path.parent)) for path in out.glob(f"*/{ATTEMPTS}")]
    found = [(folder, attempt) for folder, attempt in latest if attempt and attempt.job == job]
    return max(found, key=lambda pair: pair[1].started, default=None)


def end_for(folder: Path, attempt: AttemptRecord, outcome: str, reason: str) -> None:
    """Note how an attempt ended whose process could not, and end what it started on this machine."""
    if attempt.machine == this_machine():
        for pid in attempt.workers:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
    ended = dataclasses.replace(attempt, ended=time.time(), outcome=outcome, reason=reason)
    write_json(folder / ATTEMPTS / f"{attempt.number:04d}.json", _plain(ended))


def _files(folder: Path) -> list[Path]:
    found = [path for path in (folder / ATTEMPTS).glob("[0-9]*.json") if path.stem.isdecimal()]
    return sorted(found, key=lambda path: int(path.stem))


def _read(path: Path) -> AttemptRecord:
    touched = path.lstat().st_mtime
    try:
        return dataclasses.replace(read_as(AttemptRecord, path, "attempt"), number=int(path.stem), touched=touched)
    except UserError as error:  # created, but not written yet; or damaged
        return AttemptRecord(int(path.stem), UNKNOWN, (0, 0), touched, reason=str(error), touched=touched)


def _plain(record: AttemptRecord) -> dict[str, Any]:
    content = dataclasses.asdict(record)
    del content["touched"]  # the file itself tells
    return content
