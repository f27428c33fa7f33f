"""The end of a job's batch script, where a signal reached that, too, as `scancel --full` and some clusters have it.

srun then kills the job's processes before they can save or say a word. The script outlives the signal, notes how the
attempt ended, and puts the job back into the queue: its node goes on from the last checkpoint.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from pathlib import Path

from eval_suite.study.attempt import FAILED, FINISHED, STOPPED, AttemptRecord, attempt_of_job, end_for
from eval_suite.study.launch.slurm_job import put_back

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
PATIENCE_SECONDS = 30  # for processes that are being killed
REASON = "ended by a signal to the whole job, and goes on from its last checkpoint"


def traps(out: Path, python: str) -> list[str]:
    """Return the lines that a batch script begins with; a `trap … EXIT` in a cluster file's `setup` replaces them."""
    names = " ".join(number.name[3:] for number in SIGNALS)
    command = f"{shlex.quote(python)} -m {__name__} {shlex.quote(str(out))}"
    return [f"trap 'signalled=1' {names}", f'put_back() {{ [ -z "$signalled" ] || {command}; }}', "trap put_back EXIT"]


def main(out: Path) -> None:
    """Put this job back, unless its node has finished or failed."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ["SLURM_JOB_ID"]
    if array:
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    found = attempt_of_job(out, job)
    if found and found[1].outcome in (FINISHED, FAILED):
        return
    if found and found[1].ended is None:
        _until_gone(found[1])
        end_for(*found, STOPPED, REASON)
    put_back(job)


def _until_gone(attempt: AttemptRecord) -> None:
    patience = time.monotonic() + PATIENCE_SECONDS
    while attempt.watched and time.monotonic() < patience:
        time.sleep(0.1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
