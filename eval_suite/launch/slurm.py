"""Slurm as a place for a study: jobs that depend on each other, survive time limits, preemption and broken machines.

submitit writes the batch scripts and starts `NodeJob` in each process of a job. When Slurm warns of the end (SIGUSR2,
some time before the time limit, or at a preemption), the node's command is asked to save, and the job puts itself back
into the queue; when a machine breaks, Slurm does that. Either way the job begins again, and the command goes on from
what was saved.
"""

from __future__ import annotations

import dataclasses
import getpass
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from eval_suite.launch.snapshot import snapshot_path, source_root, take_snapshot
from eval_suite.study.attempt import (
    FAILED,
    FINISHED,
    STOPPED,
    Attempt,
    AttemptRecord,
    last_attempt,
    this_machine,
)
from eval_suite.study.cluster import ClusterConfig, Resources
from eval_suite.study.graph import Graph, Node, load_graph
from eval_suite.study.progress import finished, read_finished
from eval_suite.study.runner import Stopping, run_node, run_rank
from eval_suite.study.status import ENDED, Job
from spark.errors import UserError
from spark.signals import EXIT_CODE

SUBMISSIONS = "submissions.jsonl"
FOLDER = "slurm"  # inside the study's: submitit's files, and copies of the code
SUBMITTED = "submitted.json"  # the graph as it was then: jobs outlive what is changed in the study afterwards
WARNING = signal.SIGUSR2  # submitit's choice; NCCL uses SIGUSR1
TIMEOUTS = 100_000  # how often a job may begin again: weeks of training are cut into goes of hours
PATIENCE_SECONDS = 300  # that a job which was asked to stop, but not warned, waits for Slurm to end it
REQUEUE_SECONDS = 20  # kept of a warning's time to put the job back, for what has not saved by then
LOG = "{job}_0_log.out"  # submitit's name for the log of a job's first process
LAST_WORDS_SECONDS = 30  # that one process of several which failed leaves to the first, to note why
LOOK_SECONDS = 3  # between two questions to Slurm
STAND_IN = """#!/bin/sh
number=$(ls {folder}/*.sh 2>/dev/null | wc -l)
cp "$1" "{folder}/$(printf %04d "$number").sh"
echo "Submitted batch job $((number + 1))"
"""


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
        stopping, warned = Stopping(), _Warned(self.patience, time.monotonic() + self.limit - REQUEUE_SECONDS)
        signal.signal(signal.SIGTERM, lambda number, frame: stopping.asked.set())
        signal.signal(WARNING, lambda number, frame: warned(stopping))
        graph = load_graph(Path(self.out), Path(self.graph))
        node, job = graph.nodes[self.name], submitit.JobEnvironment()
        if node.resources.processes > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        if job.global_rank:
            outcome, reason = _follow(graph, node, stopping)
        else:
            result = run_node(graph, node, [{}], stopping, job.job_id, _is_over)
            outcome, reason = result.outcome, result.reason
        if outcome == FAILED and job.global_rank:
            time.sleep(LAST_WORDS_SECONDS)
        if outcome == STOPPED:
            _leave(job.job_id, warned, first=not job.global_rank)
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
            timer = threading.Timer(max(left, 0.0), stopping.at_once.set)
            timer.daemon = True
            timer.start()
        self.received = True
        stopping.asked.set()


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
    asked = False
    while asked or _runs(job):
        if first and not asked and (warned.received or time.monotonic() > patience):
            asked = _requeue(job)
        time.sleep(LOOK_SECONDS)


def _runs(job: str) -> bool:
    try:
        return _squeue(["--jobs", job]).get(job, ("",))[0] == "RUNNING"
    except UserError:  # the controller may be restarting: who does not know must not leave
        return True


def _requeue(job: str) -> bool:
    try:
        _slurm(["scontrol", "requeue", job])
    except UserError as error:
        print(f"not put back yet: {error}", file=sys.stderr, flush=True)
        return False
    return True


class Slurm:
    """Submits nodes to Slurm.

    Args:
        cluster: what to ask for.
        dry_run: print the batch scripts instead of submitting them.
    """

    def __init__(self, cluster: ClusterConfig, dry_run: bool = False) -> None:
        self._cluster, self._dry_run = cluster, dry_run

    def start(self, graph: Graph, names: Collection[str]) -> int:
        """Submit nodes that no job of ours works on yet, each after the jobs of those that it builds upon.

        Raises:
            UserError: Slurm refuses a job, or somebody else submits this study just now.
        """
        if self._dry_run:
            with tempfile.TemporaryDirectory() as temporary, _stand_ins(Path(temporary)) as scripts:
                jobs = self._submit(graph, names, {}, Path(temporary))
                for script in sorted(scripts.glob("*.sh")):
                    number = int(script.stem) + 1
                    inside = [name for name, job in jobs.items() if job.partition("_")[0] == str(number)]
                    print(f"### job {number}: {', '.join(inside)}\n{self._as_submitted(graph, script, temporary)}")
            return 0
        with Attempt(graph.out / FOLDER) as attempt:
            graph.save()
            folder = graph.out.absolute() / FOLDER / f"{datetime.now():%Y%m%d-%H%M%S}-{attempt.number}"
            graph.save(folder / SUBMITTED)
            jobs = self._submit(graph, names, self._queue(graph), folder)
        for name, job in jobs.items():
            print(f"job {job:10} {name}")
        print(f"{len(jobs)} jobs submitted; follow them with spark-eval study status")
        return 0

    def jobs(self, graph: Graph) -> dict[str, Job]:
        """Return the latest job of each node that was ever submitted, and what Slurm says of it.

        Raises:
            UserError: Slurm does not answer.
        """
        submitted = _submitted(graph.out)
        if not submitted:
            return {}
        known = _squeue(["--user", getpass.getuser(), "--states", "all"])
        done = {node.name for node in graph if read_finished(node)}
        known |= _ended([job.id for name, job in submitted.items() if job.id not in known and name not in done])
        unknown = "", ""
        return {
            name: dataclasses.replace(job, state=state, reason=reason)
            for name, job in submitted.items() for state, reason in [known.get(job.id, unknown)]
        }

    def cancel(self, graph: Graph) -> list[str]:
        """Take back what waits, and end what runs: also of nodes that the study had, and no longer has."""
        queue = self._queue(graph)
        if queue:
            _slurm(["scancel", *(job.id for job in queue.values())])
            _note(graph.out, {name: dataclasses.replace(job, called_off=True) for name, job in queue.items()})
        return list(queue)

    def _queue(self, graph: Graph) -> dict[str, Job]:
        """Return the jobs that wait or run."""
        return {name: job for name, job in self.jobs(graph).items() if not job.ended}

    def _submit(
        self, graph: Graph, names: Collection[str], queue: Mapping[str, Job], folder: Path
    ) -> dict[str, str]:
        """Submit, level by level, as arrays of nodes that ask for the same and wait for the same; return the jobs."""
        copy = snapshot_path if self._dry_run else take_snapshot
        code = copy(graph.out.absolute() / FOLDER, graph.data())
        jobs = {name: job.id for name, job in queue.items()}
        new: dict[str, str] = {}
        for level in _levels(graph):
            groups: dict[tuple[Any, ...], list[Node]] = defaultdict(list)
            for node in level:
                waits_for_too_little = self._waits_for_too_little(node, queue, new)
                if waits_for_too_little and not queue[node.name].runs:
                    _slurm(["scancel", jobs.pop(node.name)])
                is_new = node.name in names and node.name not in jobs and not finished(graph, node)
                if is_new or waits_for_too_little:
                    waits_for = self._dependency(graph, node, jobs)
                    if waits_for is not None:
                        groups[waits_for, _sbatch(node.resources)].append(node)
            for (waits_for, _), nodes in groups.items():
                for node, job in zip(nodes, self._submit_array(graph, nodes, waits_for, folder, code), strict=True):
                    jobs[node.name] = new[node.name] = job
        return new

    def _waits_for_too_little(self, node: Node, queue: Mapping[str, Job], new: Mapping[str, str]) -> bool:
        """Whether a report has a job, which will not see what is being submitted now."""
        return not node.wants_all and node.name in queue and any(name in new for name in node.upstream)

    def _dependency(self, graph: Graph, node: Node, jobs: Mapping[str, str]) -> str | None:
        """Return sbatch's --dependency; None if something will not be there, and the node is left out."""
        unfinished = [name for name in node.upstream if not finished(graph, graph.nodes[name])]
        absent = [name for name in unfinished if name not in jobs]
        attempt = last_attempt(node.folder)
        if attempt and node.name not in jobs and not _is_over(attempt):
            print(f"left out: {node.name} is being worked on by {attempt.place}", file=sys.stderr)
            return None
        if absent and node.wants_all:
            print(f"left out: {node.name} needs {', '.join(absent)}", file=sys.stderr)
            return None
        ids = list(dict.fromkeys(jobs[name] for name in [*unfinished, node.name] if name in jobs))
        return f"{'afterok' if node.wants_all else 'afterany'}:{':'.join(ids)}" if ids else ""

    def _submit_array(
        self, graph: Graph, nodes: Sequence[Node], waits_for: str, folder: Path, code: Path
    ) -> list[str]:
        """Submit nodes as one array (a single one as a plain job); return the jobs' ids."""
        import submitit

        out = graph.out.absolute()
        place = code if Path.cwd() == source_root() and not self._dry_run else Path.cwd()
        executor = submitit.SlurmExecutor(folder, max_num_timeout=TIMEOUTS)
        executor.update_parameters(
            job_name=f"{out.name}-{nodes[0].find_task().name}", dependency=waits_for or None,
            **self._parameters(nodes[0].resources, code),
        )
        warning = self._cluster.signal_seconds
        patience = max(warning - REQUEUE_SECONDS, warning / 2)
        work = [NodeJob(str(out), str(folder / SUBMITTED), node.name, str(place), patience, 60 * node.resources.minutes)
                for node in nodes]
        try:
            jobs = executor.submit_array(work)
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"sbatch refused {nodes[0].name}: {str(error).strip().splitlines()[-1]}") from None
        ids = [job.job_id for job in jobs]
        if not self._dry_run:
            now = time.time()
            _note(graph.out, {node.name: Job(id, now, folder / LOG.format(job=id))
                              for node, id in zip(nodes, ids, strict=True)})
        return ids

    def _parameters(self, resources: Resources, code: Path) -> dict[str, Any]:
        """Return submitit's parameters."""
        cluster = self._cluster
        given = {
            "partition": cluster.partition, "account": cluster.account, "qos": cluster.qos,
            "constraint": cluster.constraint, "gpus_per_node": resources.gpus // resources.nodes or None,
            "mem": f"{resources.memory_gb}GB" if resources.memory_gb else None,
        }
        # `python -m` looks into the folder that it is started in first: there the code must be the copy, too.
        copy = shlex.quote(str(code))
        setup = [*cluster.setup, f"export PYTHONPATH={copy}${{PYTHONPATH:+:$PYTHONPATH}}", f"cd {copy}"]
        return {
            **{name: value for name, value in given.items() if value is not None},
            "time": resources.minutes, "nodes": resources.nodes, "ntasks_per_node": resources.processes_per_node,
            "cpus_per_task": resources.cpus_per_process, "signal_delay_s": cluster.signal_seconds, "setup": setup,
            "array_parallelism": cluster.max_parallel, "stderr_to_stdout": True,
            # Since 22.05, srun does not take the number of CPUs over from sbatch.
            "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={resources.cpus_per_process}"], "wckey": None,
            "additional_parameters": {"requeue": True, "kill-on-invalid-dep": "yes", **resources.slurm},
        }

    def _as_submitted(self, graph: Graph, script: Path, folder: str) -> str:
        real = str(graph.out.absolute() / FOLDER / "DATE-TIME")
        return script.read_text(encoding="utf-8").replace(folder, real)


def _levels(graph: Graph) -> list[list[Node]]:
    """Return the nodes by how many others must come before, one after the other."""
    level: dict[str, int] = {}
    for node in graph:
        level[node.name] = 1 + max((level[name] for name in node.upstream), default=-1)
    return [[node for node in graph if level[node.name] == number] for number in range(max(level.values()) + 1)]


def _sbatch(resources: Resources) -> str:
    """Return resources as something to compare by."""
    return repr(resources)


@contextmanager
def _stand_ins(folder: Path) -> Iterator[Path]:
    """Let `sbatch` keep the script that it is given and submit nothing: what is shown is what would be sent."""
    programs, scripts = folder / "bin", folder / "scripts"
    for made in (programs, scripts):
        made.mkdir()
    for name in ("sbatch", "srun"):
        (programs / name).write_text(STAND_IN.format(folder=scripts), encoding="utf-8")
        (programs / name).chmod(stat.S_IRWXU)
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{programs}{os.pathsep}{before}"
    try:
        yield scripts
    finally:
        os.environ["PATH"] = before


def was_submitted(out: Path) -> bool:
    """Whether Slurm has ever been given anything of a study."""
    return (out / SUBMISSIONS).is_file()


def _submitted(out: Path) -> dict[str, Job]:
    """Return the latest job of each node that was ever submitted."""
    path = out / SUBMISSIONS
    if not path.is_file():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {line["node"]: Job(line["job"], line["at"], Path(line.get("log", "")), line.get("called_off", False))
            for line in lines}


def _note(out: Path, jobs: Mapping[str, Job]) -> None:
    with open(out / SUBMISSIONS, "a", encoding="utf-8") as file:
        for node, job in jobs.items():
            line = {"node": node, "job": job.id, "at": job.submitted, "log": str(job.log), "called_off": job.called_off}
            file.write(json.dumps(line) + "\n")


def _is_over(attempt: AttemptRecord) -> bool:
    """Whether nobody works any more; that a job was killed elsewhere Slurm knows at once, its file after minutes."""
    if not attempt.alive or not attempt.job or attempt.machine == this_machine():
        return not attempt.alive
    try:
        known = _squeue(["--jobs", attempt.job])
    except UserError:
        return False
    return attempt.job not in known or known[attempt.job][0] == "PENDING"


def _squeue(arguments: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return state and reason of jobs that have not ended, by id (of an element of an array: 12_3)."""
    printed = _slurm(["squeue", "--noheader", "--array", "--format", "%i|%T|%r", *arguments])
    jobs = {}
    for line in printed.splitlines():
        job, state, reason = line.split("|", 2)
        jobs[job] = state, reason if reason != "None" else ""
    return jobs


def _ended(jobs: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return the last state of jobs that ended a while ago, of those that Slurm keeps accounts of."""
    if not jobs:
        return {}
    command = ["sacct", "--allocations", "--noheader", "--parsable2", "--format", "JobID,State"]
    try:
        lines = _slurm([*command, "--jobs", ",".join(jobs)]).splitlines()
    except UserError:  # there are no accounts
        return {}
    states = {job: state.partition(" ")[0] for job, _, state in (line.partition("|") for line in lines)}
    return {job: (state, "") for job, state in states.items() if state in ENDED}


def _slurm(command: Sequence[str]) -> str:
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
