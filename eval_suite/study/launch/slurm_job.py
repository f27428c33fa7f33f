"""What runs in each process of a job of Slurm: a node, around time limits, preemption and a Slurm that is away."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval_suite.study.attempt import FAILED, FINISHED, STOPPED
from eval_suite.study.graph import Graph, Node, load_graph
from eval_suite.study.launch.slurm_queries import ask_slurm, is_over, squeue
from eval_suite.study.progress import finished
from eval_suite.study.runner import Stopping, run_node, run_rank
from spark.errors import UserError
from spark.utils.signals import EXIT_CODE

WARNING = signal.SIGUSR2  # submitit's choice; NCCL uses SIGUSR1
PATIENCE_SECONDS = 300  # that a job which was asked to stop, but not warned, waits for Slurm to end it
REQUEUE_SECONDS = 20  # kept of a warning's time to put the job back, for what has not saved by then
LAST_WORDS_SECONDS = 30  # that one process of several which failed leaves to the first, to note why
LOOK_SECONDS = 3  # between two questions to Slurm


@dataclass
class NodeJob:
    """What a job runs in each of its processes: one node of a study whose graph was saved.

    Attributes:
        out: the study's folder, absolute.
        graph: the file of the graph that was submitted, absolute.
        name: of the node.
        place: the folder that relative paths begin in.
        patience: seconds that the command has to save, after Slurm has warned.
        limit: of the job's time, in seconds.
    """

    out: str
    graph: str
    name: str
    place: str
    patience: float
    limit: float

    def __call__(self) -> None:
        """Run the node: the first process watches over it, the others follow.

        Raises:
            RuntimeError: it failed, so that jobs that build upon it do not start.
        """
        import submitit
        from submitit.helpers import TorchDistributedEnvironment

        os.chdir(self.place)  # not before: it would decide where code is imported from
        stopping, limit = Stopping(), self.limit - REQUEUE_SECONDS
        warned = _Warned(self.patience, time.monotonic() + limit)
        signal.signal(signal.SIGTERM, lambda number, frame: stopping.asked.set())
        signal.signal(WARNING, lambda number, frame: warned(stopping))
        _in_background(limit - self.patience, lambda: warned(stopping))  # Slurm's may have come before this line
        graph = load_graph(Path(self.out), Path(self.graph))
        node, job = graph.nodes[self.name], submitit.JobEnvironment()
        if node.resources.processes > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        if job.global_rank:
            outcome, reason = _follow(graph, node, stopping)
        else:
            result = run_node(graph, node, [{}], stopping, job.job_id, is_over)
            outcome, reason = result.outcome, result.reason
        if outcome == FAILED and job.global_rank:
            time.sleep(LAST_WORDS_SECONDS)
        if outcome == STOPPED:
            _leave(job.job_id, warned, first=not job.global_rank)
        signal.signal(WARNING, signal.SIG_IGN)  # Python's end gives up handlers: a warning would kill what is finished
        if outcome != FINISHED:
            raise RuntimeError(f"{node.name} {outcome}: {reason}")

    def checkpoint(self) -> Any:
        """Return what to run when the job begins again, should Slurm warn before `__call__` listens to it."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class _Warned:
    """Remembers that Slurm has warned of the end, as opposed to a mere request to stop, such as scancel's.

    A command that does not save in time, such as in a long evaluation, is ended, and goes on from its last checkpoint:
    at the time limit, Slurm would end the job for good, and with it all that waits for it.
    """

    def __init__(self, patience: float, latest: float) -> None:
        self.received, self._patience, self._latest = False, patience, latest

    def __call__(self, stopping: Stopping) -> None:
        if not self.received:
            # Slurm looks at the time twice a minute, so that warnings may be late.
            left = min(self._patience, self._latest - time.monotonic())
            _in_background(left, stopping.at_once.set)
        self.received = True
        stopping.asked.set()


def _in_background(seconds: float, function: Callable[[], None]) -> None:
    """Call a function later; whoever ends sooner does not wait for it."""
    timer = threading.Timer(max(seconds, 0.0), function)
    timer.daemon = True
    timer.start()


def _follow(graph: Graph, node: Node, stopping: Stopping) -> tuple[str, str]:
    """Be one of the other processes of a node."""
    if finished(graph, node):  # as the first one asks, or it would wait for us
        return FINISHED, ""
    code = run_rank(node, {}, stopping)
    stopped = code == EXIT_CODE or (code and stopping.asked.is_set())
    return (STOPPED if stopped else FINISHED if code == 0 else FAILED), f"exit code {code}"


def _leave(job: str, warned: _Warned, first: bool) -> None:
    """Wait for Slurm to end this process; the first of a job puts it back into the queue, if Slurm has warned.

    To end by oneself would be to have failed: all processes of a job would be killed, and its record say so, while the
    first may still be at work, or a preemption under way, which some clusters announce by SIGTERM alone. What still
    runs long after that was not preempted: it is put back, too. After scancel there is nothing to wait for.
    """
    patience = time.monotonic() + PATIENCE_SECONDS
    while _runs(job) and not (first and (warned.received or time.monotonic() > patience)):
        time.sleep(LOOK_SECONDS)
    if first:
        put_back(job)


def put_back(job: str) -> None:
    """Put the job that runs this back into the queue, whereupon Slurm ends it, unless it is being ended anyway."""
    asked = False
    while asked or _runs(job):
        asked = asked or _requeue(job)
        time.sleep(LOOK_SECONDS)


def _runs(job: str) -> bool:
    try:
        return squeue(["--jobs", job]).get(job, ("",))[0] == "RUNNING"
    except UserError:  # the controller may be restarting: who does not know must not leave
        return True


def _requeue(job: str) -> bool:
    try:
        ask_slurm(["scontrol", "requeue", job])
    except UserError as error:
        print(f"not put back yet: {error}", file=sys.stderr, flush=True)
        return False
    return True
