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
import stat
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from eval_suite.study.attempt import Attempt, last_attempt
from eval_suite.study.cluster import IN_SCRIPTS, ClusterConfig, Resources, may_stand_in_script
from eval_suite.study.graph import Graph, Node
from eval_suite.study.launch.slurm_batch import traps
from eval_suite.study.launch.slurm_job import REQUEUE_SECONDS, WARNING, NodeJob
from eval_suite.study.launch.slurm_queries import ask_slurm, commented, ended_lately, is_over, squeue
from eval_suite.study.launch.snapshot import snapshot_path, source_root, take_snapshot
from eval_suite.study.progress import finished, read_finished
from eval_suite.study.status import Job
from spark.config.values import shown
from spark.errors import UserError
from spark.utils.files import cannot_write, read_regular
from spark.utils.json_text import as_instance, parse_json

SUBMISSIONS = "submissions.jsonl"
MOST_BYTES = 2**28  # of that list
FOLDER = "slurm"  # inside the study's: submitit's files, and copies of the code
SUBMITTED = "submitted.json"  # the graph as it was then: jobs outlive what is changed in the study afterwards
TIMEOUTS = 100_000  # how often a job may begin again: weeks of training are cut into goes of hours
# A warning that comes before Python listens would end the job, and it would count as failed.
PYTHON = f"sh -c 'trap \"\" {WARNING.name[3:]}; exec \"$0\" \"$@\"' {shlex.quote(sys.executable)}"
LOG = "{job}_0_log.out"  # submitit's name for the log of a job's first process
STAND_IN = """#!/bin/sh
number=$(ls {folder}/*.sh 2>/dev/null | wc -l)
cp "$1" "{folder}/$(printf %04d "$number").sh"
echo "Submitted batch job $((number + 1))"
"""


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
        if not may_stand_in_script(str(graph.out.absolute())):
            raise UserError(f"out={shown(str(graph.out))} {IN_SCRIPTS}")
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
            _call_off_strays(graph.out)
            jobs = self._submit(graph, names, self._queue(graph), folder)
        for name, job in jobs.items():
            print(f"job {job:10} {name}")
        print(f"{len(jobs)} jobs submitted; follow them with spark-eval study status")
        return 0

    def jobs(self, graph: Graph) -> dict[str, Job]:
        """Return the latest job of each node that was ever submitted, and what Slurm says of it, or why it does not."""
        try:
            return self._answers(graph)
        except UserError as error:
            return {name: dataclasses.replace(job, silence=str(error)) for name, job in _submitted(graph.out).items()}

    def _answers(self, graph: Graph) -> dict[str, Job]:
        """Return the latest job of each node that was ever submitted, and what Slurm says of it.

        Raises:
            UserError: Slurm does not answer.
        """
        submitted = _submitted(graph.out)
        if not submitted:
            return {}
        known = squeue(["--user", getpass.getuser(), "--states", "all"])
        done = {node.name for node in graph if read_finished(node)}
        known |= ended_lately([job.id for name, job in submitted.items() if job.id not in known and name not in done])
        unknown = "", ""
        return {
            name: dataclasses.replace(job, state=state, reason=reason)
            for name, job in submitted.items() for state, reason in [known.get(job.id, unknown)]
        }

    def cancel(self, graph: Graph) -> list[str]:
        """Take back what waits, and end what runs: also of nodes that the study had, and no longer has."""
        queue = self._queue(graph)
        if queue:
            ask_slurm(["scancel", *(job.id for job in queue.values())])
            _note(graph.out, {name: dataclasses.replace(job, called_off=True) for name, job in queue.items()})
        return list(queue)

    def _queue(self, graph: Graph) -> dict[str, Job]:
        """Return the jobs that wait or run; errors as for `_answers`."""
        return {name: job for name, job in self._answers(graph).items() if not job.ended}

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
                    ask_slurm(["scancel", jobs.pop(node.name)])
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
        if attempt and node.name not in jobs and not is_over(attempt):
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
        executor = submitit.SlurmExecutor(folder, max_num_timeout=TIMEOUTS, python=PYTHON)
        executor.update_parameters(
            job_name=f"{out.name}-{nodes[0].find_task().name}", dependency=waits_for or None,
            **self._parameters(nodes[0].resources, code, out),
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
            try:
                _note(graph.out, {node.name: Job(id, now, folder / LOG.format(job=id))
                                  for node, id in zip(nodes, ids, strict=True)})
            except OSError as error:  # nobody would know of them, and they would be submitted again
                ask_slurm(["scancel", *ids])
                raise cannot_write(graph.out / SUBMISSIONS, error) from None
        return ids

    def _parameters(self, resources: Resources, code: Path, out: Path) -> dict[str, Any]:
        """Return submitit's parameters."""
        cluster = self._cluster
        given = {
            "partition": cluster.partition, "account": cluster.account, "qos": cluster.qos,
            "constraint": cluster.constraint, "gpus_per_node": resources.gpus // resources.nodes or None,
            "mem": f"{resources.memory_gb}GB" if resources.memory_gb else None,
        }
        # `python -m` looks into the folder that it is started in first: there the code must be the copy, too.
        copy = shlex.quote(str(code))
        setup = [
            *traps(out, sys.executable), *cluster.setup,
            f"export PYTHONPATH={copy}${{PYTHONPATH:+:$PYTHONPATH}}", f"cd {copy}",
        ]
        return {
            **{name: value for name, value in given.items() if value is not None},
            "time": resources.minutes, "nodes": resources.nodes, "ntasks_per_node": resources.processes_per_node,
            "cpus_per_task": resources.cpus_per_process, "signal_delay_s": cluster.signal_seconds, "setup": setup,
            "array_parallelism": cluster.max_parallel, "stderr_to_stdout": True,
            # Since 22.05, srun does not take the number of CPUs over from sbatch.
            "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={resources.cpus_per_process}"], "wckey": None,
            "additional_parameters": {
                "requeue": True, "kill-on-invalid-dep": "yes", "comment": _comment(out), **resources.slurm,
            },
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


@dataclass(frozen=True)
class Submission:
    """A line of the list of jobs: the node, the scheduler's id, when (seconds since 1970), and as in Job."""

    node: str
    job: str
    at: float
    log: str = ""
    called_off: bool = False


def was_submitted(out: Path) -> bool:
    """Whether Slurm has ever been given anything of a study."""
    return (out / SUBMISSIONS).is_file()


def _comment(out: Path) -> str:
    """Return what tells a study's jobs from others."""
    return f"spark-eval study {out.absolute()}"


def _call_off_strays(out: Path) -> None:
    """Take back jobs of which Slurm could not tell when they were submitted: their nodes are submitted again.

    Raises:
        UserError: Slurm does not answer.
    """
    noted = {note.job for note in _notes(out)}
    if strays := [job for job in commented(_comment(out)) if job not in noted]:
        ask_slurm(["scancel", *strays])
        print(f"taken back: {', '.join(strays)}, of which Slurm did not tell when submitted", file=sys.stderr)


def _notes(out: Path) -> list[Submission]:
    """Return what was ever submitted, in its order; lines that are damaged are named and left out."""
    path = out / SUBMISSIONS
    if not path.is_file():
        return []
    notes = []
    for number, line in enumerate(read_regular(path, "list of jobs", MOST_BYTES).splitlines(), 1):
        try:
            notes.append(as_instance(Submission, parse_json(line)))
        except ValueError as error:
            print(f"left out: line {number} of '{path}' is damaged: {error}", file=sys.stderr)
    return notes


def _submitted(out: Path) -> dict[str, Job]:
    """Return the latest job of each node that was ever submitted."""
    return {note.node: Job(note.job, note.at, Path(note.log), note.called_off) for note in _notes(out)}


def _note(out: Path, jobs: Mapping[str, Job]) -> None:
    with open(out / SUBMISSIONS, "a", encoding="utf-8") as file:
        for node, job in jobs.items():
            line = Submission(node, job.id, job.submitted, str(job.log), job.called_off)
            file.write(json.dumps(dataclasses.asdict(line)) + "\n")
