"""Attempts are the lock of a folder: one at a time, and a dead one does not keep it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from eval_suite.study.attempt import STALE_SECONDS, Attempt, HeldError, attempts, last_attempt
from spark.utils.process_identity import this_machine


def leave(folder: Path, machine: str, process: tuple[int, int], job: str = "", age: float = 0.0) -> None:
    """Leave what a process that ended without a word leaves."""
    with Attempt(folder, job) as attempt:
        pass
    path = folder / "attempts" / f"{attempt.number:04d}.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "machine": machine, "process": process, "ended": None, "outcome": ""}))
    os.utime(path, (path.stat().st_mtime - age,) * 2)


def test_a_folder_is_kept_while_the_body_runs(tmp_path: Path) -> None:
    with Attempt(tmp_path) as first:
        with pytest.raises(HeldError, match=f"process {os.getpid()} on"), Attempt(tmp_path):
            pass
        first.end("failed", "no disk")
    with Attempt(tmp_path) as second:
        assert (first.number, second.number) == (1, 2)
    assert [(entry.outcome, entry.reason) for entry in attempts(tmp_path)] == [("failed", "no disk"), ("finished", "")]


def test_an_error_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="odd"), Attempt(tmp_path):
        raise ValueError("odd")
    last = last_attempt(tmp_path)
    assert last is not None
    assert last.outcome == "failed"


@pytest.mark.parametrize(("machine", "process", "age", "free"), [
    (this_machine(), (os.getpid(), 1), 0.0, True),  # the id is used again, by a process that started later
    ("elsewhere/pid:[1]", (1, 1), 0.0, False),
    ("elsewhere/pid:[1]", (1, 1), STALE_SECONDS + 60, True),
])
def test_stale_attempts_are_recognised(
    tmp_path: Path, machine: str, process: tuple[int, int], age: float, free: bool
) -> None:
    leave(tmp_path, machine, process, age=age)
    if free:
        with Attempt(tmp_path) as attempt:
            assert attempt.number == 2
        return
    with pytest.raises(HeldError, match="on elsewhere"), Attempt(tmp_path):
        pass


def test_a_job_that_begins_again_knows_that_it_was_cut_off(tmp_path: Path) -> None:
    leave(tmp_path, "elsewhere/pid:[1]", (1, 1), job="12_3")
    with pytest.raises(HeldError), Attempt(tmp_path, job="13"):
        pass
    with Attempt(tmp_path, job="12_3") as attempt:
        assert attempt.number == 2


def test_a_scheduler_may_know_better_than_a_file(tmp_path: Path) -> None:
    """A job that was killed elsewhere has touched its file just now."""
    leave(tmp_path, "elsewhere/pid:[1]", (1, 1), job="12_3")
    with pytest.raises(HeldError), Attempt(tmp_path, "13", is_over=lambda attempt: attempt.job != "12_3"):
        pass
    with Attempt(tmp_path, "13", is_over=lambda attempt: attempt.job == "12_3") as attempt:
        assert attempt.number == 2


def test_children_keep_the_folder(tmp_path: Path) -> None:
    """Their watcher may have been killed."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with Attempt(tmp_path) as attempt:
        attempt.children([child.pid])
        path = tmp_path / "attempts" / "0001.json"
        content = path.read_text()
    path.write_text(content.replace(f"{os.getpid()},", "999999999,"))
    with pytest.raises(HeldError), Attempt(tmp_path):
        pass
    child.communicate(b"\n")
    with Attempt(tmp_path):
        pass


def test_of_many_at_once_one_succeeds(tmp_path: Path) -> None:
    leave(tmp_path, this_machine(), (os.getpid(), 1))
    won: list[int] = []
    begin, others = threading.Barrier(8), threading.Semaphore(0)

    def contend() -> None:
        begin.wait()
        try:
            with Attempt(tmp_path) as attempt:
                won.append(attempt.number)
                for _ in range(7):
                    assert others.acquire(timeout=30)
        except HeldError:
            others.release()

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [2]


def test_a_clock_that_was_set_back_keeps_no_folder_and_makes_no_negative_times(tmp_path: Path) -> None:
    leave(tmp_path, "elsewhere/pid:[1]", (1, 1), age=-STALE_SECONDS - 60)
    with Attempt(tmp_path):
        pass
    assert all(attempt.seconds >= 0 for attempt in attempts(tmp_path))
