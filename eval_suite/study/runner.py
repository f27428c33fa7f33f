"""One attempt at one node: its command is started, watched, stopped when that is asked for, and its end recorded."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

from eval_suite.study.attempt import FAILED, FINISHED, STOPPED, Attempt, AttemptRecord, attempts
from eval_suite.study.graph import Graph, Node
from eval_suite.study.progress import done_before, finished, finished_above, mark_finished
from spark.errors import UserError
from spark.faults import fault, no_space
from spark.utils.files import writing
from spark.utils.signals import EXIT_CODE

LOG = "output.log"
POLL_SECONDS = 0.1
GOES = 3  # that a job may have without getting any further
TAIL_BYTES = 8192


class Stopping:
    """A request to stop: first in an orderly way, then at once."""

    def __init__(self) -> None:
        self.asked, self.at_once = threading.Event(), threading.Event()

    def ask(self) -> None:
        """Ask to stop; whoever asks twice wants it at once."""
        (self.at_once if self.asked.is_set() else self.asked).set()


@dataclass(frozen=True)
class Result:
    """How an attempt ended: finished, failed or stopped, and why."""

    outcome: str
    reason: str = ""


def run_node(
    graph: Graph, node: Node, environments: Sequence[Mapping[str, str]], stopping: Stopping, job: str = "",
    is_over: Callable[[AttemptRecord], bool] = lambda attempt: not attempt.alive,
) -> Result:
    """Run a node that is ready, or go on with it.

    Args:
        graph: that it is of.
        node: what to run.
        environments: variables beside this process's own, for each process to start: one for each rank.
        stopping: may be asked from another thread, or by a signal.
        job: the scheduler's id of this job, if there is one.
        is_over: as for Attempt.

    Raises:
        HeldError: somebody else works on it.
    """
    with Attempt(node.folder, job, done_before(node), is_over) as attempt:
        if finished(graph, node):
            return Result(FINISHED)
        begins = f"# attempt {attempt.number}, {datetime.now():%Y-%m-%d %H:%M:%S}: {' '.join(node.command())}"
        with _log(node, begins) as log:
            above = finished_above(graph, node)
            result = _run(node, environments, stopping, attempt, log)
        if result.outcome == FINISHED:
            result = _collect(node, above)
        elif result.outcome == STOPPED and job and _gets_nowhere(node):
            result = Result(FAILED, f"stopped {GOES} times in a row without getting any further; it needs longer goes")
        attempt.end(result.outcome, result.reason)
        return result


def _gets_nowhere(node: Node) -> bool:
    """Whether a job that is put back over and over, now being stopped again, is where it was several goes ago."""
    *before, now = attempts(node.folder)[-GOES:]
    stopped = [attempt for attempt in before if attempt.outcome == STOPPED]
    begins = {attempt.begin for attempt in [*before, now]}
    return len(stopped) == GOES - 1 and begins == {done_before(node)}


def run_rank(node: Node, environment: Mapping[str, str], stopping: Stopping) -> int:
    """Run one of the processes of a node that another process watches over; return its exit code."""
    with _log(node) as log:
        return _wait([_start(node, environment, log)], stopping)[0]


def _run(
    node: Node, environments: Sequence[Mapping[str, str]], stopping: Stopping, attempt: Attempt, log: IO[str]
) -> Result:
    children: list[subprocess.Popen[bytes]] = []
    try:
        children.extend(_start(node, environment, log) for environment in environments)
        attempt.children(child.pid for child in children)
        codes = _wait(children, stopping)
    except OSError as error:
        return Result(FAILED, fault(error) or f"cannot start {node.command()[0]}: {error.strerror}")
    finally:
        for child in children:
            _end_group(child)
    worst = next((code for code in codes if code not in (0, EXIT_CODE)), max(codes))
    if worst == 0:
        return Result(FINISHED)
    if worst == EXIT_CODE or stopping.asked.is_set():  # what knows no such exit code has its checkpoints
        return Result(STOPPED, "stopped as asked" if stopping.asked.is_set() else "stopped by a signal, and saved")
    return Result(FAILED, reason_of(worst, node.folder / LOG))


@contextlib.contextmanager
def _log(node: Node, line: str = "") -> Iterator[IO[str]]:
    """Open a node's log to append to it, and begin with a line.

    Raises:
        UserError: the disk is full or fails.
    """
    path = node.folder / LOG
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)  # of several ranks' processes any may be the first
        log = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed below)
    with log:
        with writing(path):
            print(line, end="\n" if line else "", file=log, flush=True)
        yield log


def _start(node: Node, environment: Mapping[str, str], log: IO[str]) -> subprocess.Popen[bytes]:
    """Start the node's command in a session of its own: a terminal's Ctrl-C is for us, who pass it on in order."""
    name, *arguments = node.command()
    # Slurm sends its warnings to all processes of a job, and one that does not know SIGUSR2 would die of it. What is
    # blocked here stays blocked there.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        return subprocess.Popen(
            [_program(name), *arguments], env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait(children: Sequence[subprocess.Popen[bytes]], stopping: Stopping) -> list[int]:
    """Return the exit codes, once all have ended; if one fails, the others are not waited for."""
    told = killed = False
    while any(child.poll() is None for child in children):
        failed = any(child.poll() not in (None, 0, EXIT_CODE) for child in children)
        if (stopping.at_once.is_set() or failed) and not killed:
            killed = True
            for child in children:
                _end_group(child)
        elif stopping.asked.is_set() and not told:
            told = True
            for child in children:
                if child.poll() is None:
                    child.terminate()
        time.sleep(POLL_SECONDS)
    return [child.wait() for child in children]


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """Leave no loader's worker behind."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _collect(node: Node, above: Mapping[str, float]) -> Result:
    try:
        shown = node.find_task().collect(node.work)
    except UserError as error:
        return Result(FAILED, str(error))
    if shown is None:
        return Result(FAILED, "the command ended well, but left no result")
    mark_finished(node, shown, above)
    return Result(FINISHED)


def _program(name: str) -> str:
    """Return the path of a program: one of this Python's before all others."""
    if name == "python":
        return sys.executable
    ours = Path(sysconfig.get_path("scripts")) / name
    return str(ours) if ours.is_file() else shutil.which(name) or name


def reason_of(code: int, log: Path) -> str:
    """Return why a command failed: its own last error, or the signal that ended it."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"ended by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
    lines = [line.strip() for line in tail(log) if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    if not errors and (full := no_space(log)):  # where a command cannot even say so
        errors = [full]
    return f"exit code {code}: {(errors or lines or ['no output'])[-1]}"


def tail(log: Path, lines: int = 20) -> list[str]:
    """Return a log's last lines; of a progress bar that was drawn over and over, its last state."""
    if not log.is_file():
        return []
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    return [line.rpartition("\r")[2] for line in text.splitlines()[-lines:]]
