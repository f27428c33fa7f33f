"""A command line, run in a process of its own that begins warm: it may hang, crash or fill memory, and is judged."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

MOST_MEMORY = 24 << 30  # bytes of addresses, of which libraries alone take several billions
GRACE_S = 2.0  # for what a program started to end after it
Program = Callable[[Sequence[str]], int]


class Ended(NamedTuple):
    """How a program ended."""

    code: int | None  # None: it had to be killed
    signal: int
    told: str  # on both streams
    mebibytes: int  # of memory, at its peak
    left_running: bool  # something that it started

    def fault(self) -> str | None:
        """Return what no file may do to a program; None if it answered as programs should."""
        errors = [line for line in self.told.splitlines() if line.startswith("error:")]
        faults = {
            "hangs": self.code is None,
            f"ended by signal {self.signal}": bool(self.signal),
            f"traceback: {self.told[-1500:]}": "Traceback" in self.told,
            "left a process running": self.left_running,
            f"told badly: exit code {self.code}, {self.told[-400:]!r}": (
                self.code not in (0, 2) or (self.code == 2) != (len(errors) == 1)),
            f"told at odd length: {errors[:1]!r:.400}": any(not 20 < len(line) < 1500 for line in errors),
        }
        return next((told for told, holds in faults.items() if holds), None)


def run(program: Program, words: Sequence[str], folder: Path, seconds: float) -> Ended:
    """Run a program in a folder, with all that is imported here, for so long at most."""
    log = folder / ".told"
    child = os.fork()
    if child == 0:
        _be(program, words, folder, log)
    deadline = time.monotonic() + seconds
    done, status, usage = os.wait4(child, os.WNOHANG)
    while not done and time.monotonic() < deadline:
        time.sleep(0.01)
        done, status, usage = os.wait4(child, os.WNOHANG)
    if not done:
        os.killpg(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
    left_running = _group_lives(child) and bool(done)
    if left_running:
        os.killpg(child, signal.SIGKILL)
    told = log.read_text(encoding="utf-8", errors="replace")
    log.unlink()
    ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    code = (os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1) if done else None
    return Ended(code, ended_by, told, usage.ru_maxrss >> 10, left_running)


def _be(program: Program, words: Sequence[str], folder: Path, log: Path) -> NoReturn:
    """Be the program, and end without what pytest would do at the end."""
    code = 1
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # pytest has put others there
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
        code = program(words)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _group_lives(group: int) -> bool:
    """Whether any process of a group is there after a moment, which loaders' processes may need to end."""
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.02)
    return True
