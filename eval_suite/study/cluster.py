"""Cluster files: where a study's nodes run, and what each of them is given."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval_suite.study.config import typed
from spark.config.recipe import load_recipe
from spark.config.values import Count, CountOrNone, NotNegative, Share, shown
from spark.errors import UserError, nearest

SCHEDULERS = ("local", "slurm")
SHELL = re.compile(r"""[$`;<>\\"'!]""")  # what shells do more with than keep it
IN_SCRIPTS = "must be printable and without $ ` ; < > \\ ! and quotes, which batch scripts would run"


@dataclass
class Resources:
    """What one node of a study is given."""

    minutes: Count = 1440  # time limit of one go; a run that needs more is stopped, saved and goes on in the next
    nodes: Count = 1  # machines
    processes_per_node: Count = 1  # one rank of a distributed training each
    gpus_per_process: CountOrNone = 1
    cpus_per_process: Count = 8
    memory_gb: CountOrNone = 0  # of each machine; 0 leaves it to the scheduler
    slurm: dict[str, Any] = field(default_factory=dict)  # more of sbatch's options, by their names

    @property
    def processes(self) -> int:
        """The number of ranks."""
        return self.nodes * self.processes_per_node

    @property
    def gpus(self) -> int:
        """The number of GPUs, over all machines."""
        return self.processes * self.gpus_per_process


@dataclass
class Device:
    """What estimates assume of a GPU."""

    name: str = ""
    peak_tflops: NotNegative = 0.0  # dense bfloat16, of the data sheet; 0: hours are not estimated
    utilisation: Share = 0.33  # share of the peak that a training reaches; an assumption


@dataclass
class ClusterConfig:
    """A cluster file."""

    scheduler: str = "slurm"
    max_parallel: Count = 8  # nodes of the graph that run at a time (on Slurm: of one job array)
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    setup: list[str] = field(default_factory=list)  # shell lines before each job, such as `module load cuda`
    # Seconds between the signal to stop and the end of the time limit: enough to finish a step and to save.
    signal_seconds: Count = 120
    device: Device = field(default_factory=Device)
    resources: Resources = field(default_factory=Resources)  # of every node, unless
    tasks: dict[str, Any] = field(default_factory=dict)  # task: what differs from `resources`

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        found = []
        if self.scheduler not in SCHEDULERS:
            found.append(f"scheduler='{shown(self.scheduler)}' is not one of {', '.join(SCHEDULERS)}."
                         f"{nearest(self.scheduler, SCHEDULERS)}")
        for name, content in self.tasks.items():
            try:
                given = changed(self.resources, content or {}, f"tasks.{name}")
            except UserError as error:
                found.append(str(error))
                continue
            found += [f"tasks.{name}.{problem}" for problem in self._unsound(given)]
        for name in ("partition", "account", "qos", "constraint"):
            if not may_stand_in_script(getattr(self, name) or ""):
                found.append(f"{name}={shown(getattr(self, name))} {IN_SCRIPTS}")
        return found + [f"resources.{problem}" for problem in self._unsound(self.resources)]

    def given(self, task: str, overrides: Sequence[Mapping[str, Any]], where: str) -> Resources:
        """Return what a node of a task is given, with a study's overrides applied in their order.

        Raises:
            UserError: an override is unsound.
        """
        resources = changed(self.resources, self.tasks.get(task) or {}, f"tasks.{task}")
        for override in overrides:
            resources = changed(resources, override, f"{where}: resources")
        if problems := self._unsound(resources):
            raise UserError(f"{where}: resources.{'; resources.'.join(problems)}")
        return resources

    def _unsound(self, resources: Resources) -> list[str]:
        if bad := [(name, value) for name, value in resources.slurm.items()
                   if not (may_stand_in_script(str(name)) and may_stand_in_script(str(value)))]:
            return [f"slurm.{shown(str(name))}={shown(str(value))} {IN_SCRIPTS}" for name, value in bad]
        if self.scheduler == "slurm" and 60 * resources.minutes <= self.signal_seconds:
            return [f"minutes={resources.minutes} must be longer than signal_seconds={self.signal_seconds}"]
        return []


def may_stand_in_script(text: str) -> bool:
    """Whether a shell that reads this in a batch script, of which it is a setting, would run nothing."""
    return not SHELL.search(text) and text.isprintable()


def load_cluster(path: str | None) -> ClusterConfig:
    """Read a cluster file; None is this machine, with one process for each node.

    Raises:
        UserError: one message that lists all mistakes.
    """
    if path is None:
        return ClusterConfig(scheduler="local")
    known = sorted(file.stem for file in Path("configs/clusters").glob("*.yaml"))
    if path in known:
        path = f"configs/clusters/{path}.yaml"
    elif not Path(path).is_file():
        raise UserError(f"there is no cluster file '{path}', nor one of that name in configs/clusters."
                        f"{nearest(Path(path).stem, known)}")
    return load_recipe(ClusterConfig, path)


def changed(resources: Resources, content: Mapping[str, Any], where: str) -> Resources:
    """Return resources of which some differ.

    Raises:
        UserError: what differs has no such name or type.
    """
    if content == {}:
        return resources
    both = {**dataclasses.asdict(resources), **content} if isinstance(content, Mapping) else content
    return typed(Resources, both, where)
