"""Which process on which machine, and whether it lives: ids are used again, and every container counts from 1."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path

LOOK_SECONDS = 1.0


def this_machine() -> str:
    """Return the name of the place in which a process id means something: host name and process namespace."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        namespace = ""
    return f"{socket.gethostname()}/{namespace}"


def process_lives(pid: int, started: int) -> bool:
    """Whether a process of this machine lives, by its id and what `process_start` said of it."""
    return process_start(pid) == started != 0


def process_start(pid: int) -> int:
    """Return when a process started, in clock ticks; 0 if there is none. Ids are used again, but not at that tick."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        if Path("/proc/self").exists():
            return 0
        return _exists(pid)  # not Linux
    fields = status.rpartition(")")[2].split()
    return 0 if fields[0] in "ZX" else int(fields[19])  # proc(5): state is field 3, starttime field 22


def end_with_parent() -> None:
    """End this process when the one that started it is gone, as nobody else would: it may hold a GPU, and a lock."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)  # it may be waiting for processes that are gone

    threading.Thread(target=watch, daemon=True).start()


def _exists(pid: int) -> int:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return 0
    except PermissionError:
        return 1
    return 1
