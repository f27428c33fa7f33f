"""What the verbs of `spark-eval study` do; `eval_suite.study.cli` describes their arguments."""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from rich.live import Live

from eval_suite.study.attempt import FAILED, STOPPED
from eval_suite.study.cli import FAILED_ONES
from eval_suite.study.cluster import ClusterConfig, load_cluster
from eval_suite.study.config import load_study
from eval_suite.study.graph import Graph, build_graph, load_graph, missing_data
from eval_suite.study.launch import Launcher
from eval_suite.study.launch.local import Local
from eval_suite.study.launch.slurm import Slurm, was_submitted
from eval_suite.study.progress import finished
from eval_suite.study.status import LOST, QUEUED, RUNNING, UNKNOWN, Job, State, console, states_of, status_table
from spark.errors import UserError, nearest

REFRESH_SECONDS = 5.0


def run(options: argparse.Namespace) -> int:
    """Run one verb; return the exit code.

    Raises:
        UserError: the study, the cluster or the state of the study does not allow it.
    """
    verbs = {"plan": _plan, "run": _run, "submit": _submit, "status": _status, "cancel": _cancel, "retry": _retry}
    return verbs[options.study_verb](options)


def _plan(options: argparse.Namespace) -> int:
    from eval_suite.study.plan import commands, plan

    cluster = _cluster(options)
    graph = build_graph(load_study(options.study, options.overrides), cluster)
    console().print(plan(graph, cluster))
    print(commands(graph))
    return 0


def _run(options: argparse.Namespace) -> int:
    cluster = _cluster(options)
    graph = build_graph(load_study(options.study, options.overrides), cluster)
    return _start(graph, graph.nodes, _local(options, cluster))


def _submit(options: argparse.Namespace) -> int:
    if options.cluster is None:
        raise UserError("submit needs --cluster FILE; to run here, use spark-eval study run")
    cluster = _cluster(options)
    graph = _graph(options, options.overrides, cluster)
    return _start(graph, graph.nodes, _launcher(options, cluster), options.dry_run)


def _retry(options: argparse.Namespace) -> int:
    cluster = _cluster(options)
    overrides = [word for word in options.words if "=" in word]
    graph = _graph(options, overrides, cluster)
    if options.cluster is None and was_submitted(graph.out):
        raise UserError(f"{graph.out} was submitted to Slurm: pass its --cluster FILE again, or "
                        "--cluster one_machine to run here")
    states = states_of(graph, _jobs(graph))
    chosen = set()
    for name in [word for word in options.words if "=" not in word] or [FAILED_ONES]:
        if name == FAILED_ONES:
            chosen |= {node for node, state in states.items() if state.name in (FAILED, LOST, STOPPED)}
        elif name in graph.nodes:
            chosen.add(name)
        else:
            raise UserError(f"'{name}' is no node of this study.{nearest(name, [*graph.nodes, FAILED_ONES])}")
    unknown = [name for name, state in states.items() if state.name == UNKNOWN]
    if asked_for := [name for name in unknown if not chosen or name in chosen]:
        raise UserError(f"what {asked_for[0]} is doing is not known ({states[asked_for[0]].detail}): try again later")
    if not chosen:
        console().print("nothing has failed or stopped")
        return 0
    # What builds upon them comes along; a report that is there already must be made again.
    theirs = {name for name, state in states.items() if state.name in (RUNNING, QUEUED, UNKNOWN)}
    names = {name for name in graph.below(chosen) if name in chosen or name not in theirs}
    return _start(graph, names, _launcher(options, cluster), options.dry_run)


def _status(options: argparse.Namespace) -> int:
    graph = load_graph(Path(load_study(options.study, options.overrides).out))
    screen = console()
    states = states_of(graph, _jobs(graph))
    if not options.watch:
        screen.print(status_table(graph, states))
        return _exit_code(states)
    with Live(status_table(graph, states), console=screen) as live:
        while any(state.name in (RUNNING, QUEUED, UNKNOWN) for state in states.values()):
            time.sleep(REFRESH_SECONDS)
            states = states_of(graph, _jobs(graph))
            live.update(status_table(graph, states))
    return _exit_code(states)


def _cancel(options: argparse.Namespace) -> int:
    graph = load_graph(Path(load_study(options.study, options.overrides).out))
    told: list[str] = []
    failed = False
    for launcher in (Slurm(ClusterConfig()), Local(1, [])):
        try:
            told += launcher.cancel(graph)
        except UserError as error:  # the other one is still to be told
            print(f"error: {error}", file=sys.stderr)
            failed = True
    console().print(f"cancelled: {', '.join(told)}" if told else "nothing to cancel")
    return int(failed)


def _graph(options: argparse.Namespace, overrides: Sequence[str], cluster: ClusterConfig) -> Graph:
    """Return the graph; jobs of Slurm run in a copy of the code, into which data that is yet to be made must not go."""
    study = load_study(options.study, overrides)
    if cluster.scheduler == "slurm" and study.prepare and study.data:
        study = dataclasses.replace(study, data=os.path.abspath(study.data))
    return build_graph(study, cluster)


def _start(graph: Graph, names: Collection[str], launcher: Launcher, dry_run: bool = False) -> int:
    """Start what is not finished, or show how that would be done.

    Raises:
        UserError: data is missing.
    """
    todo = [node.name for node in graph if node.name in names and not finished(graph, node)]
    missing = missing_data(graph)
    if dry_run:
        for path in missing:
            print(f"missing: '{path}' is not there yet; nodes get other names when it is", file=sys.stderr)
    elif todo and missing:
        raise UserError(f"not there: {', '.join(missing)}; pass data=FOLDER, or put it there")
    if not todo:
        every = "its node is" if len(graph) == 1 else f"all {len(graph)} nodes are"
        which = every if len(names) == len(graph) else f"{', '.join(sorted(names))}:"
        console().print(f"{graph.out}: {which} finished", soft_wrap=True)
        return 0
    return launcher.start(graph, todo)


def _cluster(options: argparse.Namespace) -> ClusterConfig:
    """Return the cluster file's content; without one, nodes get a GPU each if there are any."""
    cluster = load_cluster(options.cluster)
    if options.cluster is None and not _gpus(getattr(options, "gpus", None)):
        cluster.resources.gpus_per_process = 0
    return cluster


def _launcher(options: argparse.Namespace, cluster: ClusterConfig) -> Launcher:
    if cluster.scheduler == "local":
        if options.dry_run:
            raise UserError("--dry-run prints the scripts for Slurm; pass a --cluster FILE that is for Slurm")
        return _local(options, cluster)
    return Slurm(cluster, dry_run=options.dry_run)


def _local(options: argparse.Namespace, cluster: ClusterConfig) -> Local:
    if cluster.scheduler != "local":
        raise UserError(f"--cluster {options.cluster} is for {cluster.scheduler}; use spark-eval study submit")
    gpus = _gpus(getattr(options, "gpus", None))
    jobs = getattr(options, "jobs", None)
    if jobs is None:
        jobs = min(max(len(gpus), 1), cluster.max_parallel) if gpus or options.cluster is None else cluster.max_parallel
    if jobs < 1:
        raise UserError("--jobs must be at least 1")
    return Local(jobs, gpus)


def _gpus(given: str | None) -> list[str]:
    """Return the ids of the GPUs to use: those given, else those that are visible."""
    if given is None:
        given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return [str(index) for index in range(_installed_gpus())]
    return [part for part in given.split(",") if part]


def _installed_gpus() -> int:
    """Count this machine's GPUs without waiting for torch; others than NVIDIA's must be given as --gpus."""
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return 0
    return len(listed.stdout.splitlines())


def _jobs(graph: Graph) -> Mapping[str, Job]:
    """Return what Slurm says of the study's jobs; that it says nothing is part of it."""
    return Slurm(ClusterConfig()).jobs(graph)


def _exit_code(states: dict[str, State]) -> int:
    return int(any(state.name in (FAILED, LOST) for state in states.values()))

