"""Questions to Slurm's own programs: which jobs there are, and how they ended."""

from __future__ import annotations

import getpass
import subprocess
from collections.abc import Sequence

from eval_suite.study.attempt import AttemptRecord
from eval_suite.study.status import ENDED
from spark.errors import UserError
from spark.utils.process_identity import this_machine


def is_over(attempt: AttemptRecord) -> bool:
    """Whether nobody works any more; that a job was killed elsewhere Slurm knows at once, its file after minutes."""
    if not attempt.alive or not attempt.job or attempt.machine == this_machine():
        return not attempt.alive
    try:
        known = squeue(["--jobs", attempt.job])
    except UserError:
        return False
    return attempt.job not in known or known[attempt.job][0] == "PENDING"


def squeue(arguments: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return state and reason of jobs that have not ended, by id (of an element of an array: 12_3)."""
    printed = ask_slurm(["squeue", "--noheader", "--array", "--format", "%i|%T|%r", *arguments])
    jobs = {}
    for line in printed.splitlines():
        job, state, reason = line.split("|", 2)
        jobs[job] = state, reason if reason != "None" else ""
    return jobs


def commented(comment: str) -> list[str]:
    """Return this user's jobs that have not ended, and carry a comment.

    Raises:
        UserError: Slurm does not answer.
    """
    printed = ask_slurm(["squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format", "%i|%k"])
    return [job for job, _, words in (line.partition("|") for line in printed.splitlines()) if words == comment]


def ended_lately(jobs: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return the last state of jobs that ended a while ago, of those that Slurm keeps accounts of."""
    if not jobs:
        return {}
    command = ["sacct", "--allocations", "--noheader", "--parsable2", "--format", "JobID,State"]
    try:
        lines = ask_slurm([*command, "--jobs", ",".join(jobs)]).splitlines()
    except UserError:  # there are no accounts
        return {}
    states = {job: state.partition(" ")[0] for job, _, state in (line.partition("|") for line in lines)}
    return {job: (state, "") for job, state in states.items() if state in ENDED}


def ask_slurm(command: Sequence[str]) -> str:
    """Return what a program of Slurm prints.

    Raises:
        UserError: it is not there, or does not work.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not there: this machine cannot talk to Slurm") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]} does not answer") from None
    if done.returncode and "Invalid job id" not in done.stderr:
        raise UserError(f"{command[0]} failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    return done.stdout
