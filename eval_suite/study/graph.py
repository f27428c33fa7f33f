"""A study as a graph: data, then pre-training, then evaluation, then the report.

Every node has an identity, the hash of what determines its result: task and version, resolved settings, the data's
content, and the identity of what it builds upon. Points of the grid that come to the same (training from scratch does
not know of pre-training budgets) are one node.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from eval_suite.study.cluster import ClusterConfig, Resources
from eval_suite.study.config import (
    OWN,
    PRETRAIN,
    InitializationChoice,
    Point,
    StudyConfig,
    dotted,
    filled,
    matches,
)
from eval_suite.study.identity import ABSENT, DataIdentities, checkpoint_identity, data_paths
from eval_suite.study.steps import MAKES
from eval_suite.task import Cost, Prepared, Task, Work
from eval_suite.task_registry import find_task
from spark.backbones.names import is_reference, shown_name
from spark.errors import UserError
from spark.utils.files import write_json
from spark.utils.json_text import as_instance, read_json
from spark.utils.provenance import content_hash

GRAPH = "graph.json"
SCRATCH = "scratch"
HASH_LENGTH = 8
STEPS = "eval_suite.study.steps"
REPORT = "report"


@dataclass(frozen=True)
class Node:
    """One run.

    Attributes:
        name: of the node and of its folder: readable, and ending in a part of the identity.
        identity: hash of all that determines the result.
        task: name of its task, or a reference to it.
        work: what the task is asked for.
        labels: value of each axis that the node has.
        upstream: names of the nodes that must be finished before.
        length: of the run, in `unit`s of `metrics.jsonl`.
        data: paths that are read, and which no node of the graph makes.
        resources: what it is given.
        images: training images, if they could be counted or the study says.
        wants_all: whether it needs all of `upstream`; the report does with what is there.
    """

    name: str
    identity: str
    task: str
    work: Work
    labels: Mapping[str, Any]
    upstream: tuple[str, ...] = ()
    length: float = 0
    unit: str = "epoch"
    data: tuple[str, ...] = ()
    resources: Resources = field(default_factory=Resources)
    images: int | None = None
    wants_all: bool = True

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.work.out

    def find_task(self) -> Task:
        """Return the task."""
        return find_task(self.task)

    def command(self) -> list[str]:
        """Return the command that does the work."""
        return self.find_task().command(self.work)

    def cost(self) -> Cost | None:
        """Return what it will take, as far as the task can tell."""
        return self.find_task().cost(self.work, self.images)


@dataclass(frozen=True)
class Graph:
    """The nodes of a study, each after those that it builds upon."""

    out: Path
    nodes: Mapping[str, Node]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    def __len__(self) -> int:
        return len(self.nodes)

    def below(self, names: Iterable[str]) -> set[str]:
        """Return the names of all nodes that build upon some, and of those themselves."""
        found = set(names)
        for node in self:
            if found.intersection(node.upstream):
                found.add(node.name)
        return found

    def data(self) -> list[Path]:
        """Return the paths that hold no code: the study's folder, what its nodes read, and what it makes for them."""
        made = [str(node.work.settings[MAKES]) for node in self if MAKES in node.work.settings]
        inits = [str(node.work.init) for node in self if node.work.init not in (None, SCRATCH)]
        read = {Path(path) for node in self for path in node.data}
        return [self.out, *map(Path, [*made, *inits]), *(path for name in read for path in data_paths(name))]

    def save(self, path: Path | None = None) -> Path:
        """Write the graph for `load_graph`, so that jobs and `status` need neither study file nor data.

        Args:
            path: of the file; the study's own, which the next start replaces, by default.
        """
        nodes = [dataclasses.asdict(node) for node in self]
        for node in nodes:
            del node["work"]["out"]
        path = path or self.out / GRAPH
        own = path.with_name(f".{os.getpid()}-{path.name}")  # several may start the study at once
        write_json(own, {"nodes": nodes})
        os.replace(own, path)
        return path


def load_graph(out: Path, path: Path | None = None) -> Graph:
    """Read what `Graph.save` wrote.

    Args:
        out: the study's folder.
        path: of the file, if it is not the study's own.

    Raises:
        UserError: nothing is there, or what is there is damaged.
    """
    path = path or out / GRAPH
    if not os.path.lexists(path):
        raise UserError(f"'{out}' holds no study yet: start it with spark-eval study run or submit")
    content = read_json(path, "graph")
    try:
        nodes = [_node(out, entry) for entry in content["nodes"]]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"graph '{path}' is damaged ({error}); spark-eval study run or submit writes it anew") from None
    graph = Graph(out, {node.name: node for node in nodes})
    if strangers := {name for node in graph for name in node.upstream} - set(graph.nodes):
        raise UserError(f"graph '{path}' is damaged: it lacks the node '{min(strangers)}'; spark-eval study run or "
                        "submit writes it anew")
    return graph


def _node(out: Path, content: dict[str, Any]) -> Node:
    """Return a node of a study that lies in `out` now: it may have moved.

    Raises:
        ValueError: it is none; TypeError, KeyError or AttributeError likewise.
    """
    name = content["name"]
    if not isinstance(name, str) or Path(name).name != name:
        raise ValueError("a node's name is no name of a folder")
    return as_instance(Node, {**content, "work": {**content["work"], "out": out / name}})


def build_graph(study: StudyConfig, cluster: ClusterConfig) -> Graph:
    """Turn a study into its graph; nothing is written.

    Raises:
        UserError: a recipe, a setting or a resource is unsound; the message names the node.
    """
    return _Builder(study, cluster).build()


class _Builder:
    """Adds nodes from the bottom up, as the folder of one is a setting of the next."""

    def __init__(self, study: StudyConfig, cluster: ClusterConfig) -> None:
        self._study, self._cluster = study, cluster
        self._out = Path(study.out)
        self._inits, self._tasks = study.initialization_choices(), study.task_choices()
        self._overrides = study.override_choices()
        self._identities = DataIdentities()
        self._nodes: dict[str, Node] = {}
        self._by_identity: dict[str, Node] = {}
        self._pretrained: dict[tuple[Any, ...], Node] = {}
        self._find_task = cache(find_task)  # a task may remember the recipes that it has read

    def build(self) -> Graph:
        """Return the graph of all points."""
        made = self._make_data() if self._study.prepare else None
        for point in self._study.points():
            init = self._inits[point.init]
            pretraining = self._pretraining(point, init, made) if init.pretrain else None
            if point.task:
                self._evaluation(point, init, pretraining, made)
        self._report()
        return Graph(self._out, self._nodes)

    def _make_data(self) -> Node:
        study = self._study
        if not study.data:
            raise UserError("a study with 'prepare' needs 'data': the folder that the command makes")
        work = Work(filled(study.prepare, data=study.data), self._out, {MAKES: study.data})
        return self._add(f"{STEPS}:MakeData", "data", work, {"task": "data"}, (), None)

    def _pretraining(self, point: Point, choice: InitializationChoice, made: Node | None) -> Node:
        seed = point.seed if choice.seed is None else choice.seed
        labels = {"task": PRETRAIN, "model": point.model, "init": point.init, "budget": point.budget, "seed": seed}
        point_of_it = tuple(labels.values())
        if point_of_it not in self._pretrained:  # all tasks begin with it
            budget = dotted(self._study.budgets.get(point.budget) or {})
            work = self._work(choice.pretrain, {**dotted(choice.settings), **budget}, labels, seed, None)
            node = self._add(choice.task, f"{PRETRAIN}-{point.init}", work, labels, (), made)
            self._pretrained[point_of_it] = node
        return self._pretrained[point_of_it]

    def _evaluation(
        self, point: Point, choice: InitializationChoice, pretraining: Node | None, made: Node | None
    ) -> Node:
        labels = {"task": point.task, "model": point.model, "init": point.init, "seed": point.seed}
        task = self._tasks[point.task]
        if pretraining:
            labels["budget"] = point.budget
            init = str(pretraining.folder)
        else:
            checkpoint = choice.checkpoints.get(point.model, choice.checkpoint)
            init = filled(checkpoint, model=point.model, data=self._study.data) or SCRATCH
        work = self._work(task.recipe, dotted(task.settings), labels, point.seed, init)
        upstream = (pretraining,) if pretraining else ()
        return self._add(task.task, f"{point.task}-{point.init}", work, labels, upstream, made, task.images)

    def _work(
        self, recipe: str, settings: dict[str, Any], labels: Mapping[str, Any], seed: int, init: str | None
    ) -> Work:
        """Fill in what the axes say; overrides come last, in their order."""
        values = {"model": labels["model"], "budget": labels.get("budget", ""), "seed": seed, "data": self._study.data}
        for override in self._overrides.values():
            if matches(labels, override.when):
                settings = {**settings, **dotted(override.settings)}
        return Work(filled(recipe, **values), self._out / "unnamed", filled(settings, **values), seed, init)

    def _add(
        self, task_name: str, prefix: str, work: Work, labels: Mapping[str, Any], upstream: tuple[Node, ...],
        made: Node | None, images: int | None = None,
    ) -> Node:
        """Add a node, or return the one that comes to the same."""
        task = self._find_task(task_name)
        what = " ".join(str(value) for value in labels.values())
        resources = self._resources(task, labels, what)
        work = dataclasses.replace(work, gpus=resources.gpus)
        try:
            prepared = task.prepare(work)
        except UserError as error:
            raise UserError(f"{what}: {error}") from None
        in_data = [path for path in prepared.data if made and _within(path, Path(self._study.data))]
        data = [path for path in prepared.data if path not in in_data]
        if in_data and made:
            upstream = (made, *upstream)
        identity = content_hash({
            "task": task.name, "version": task.version, "settings": prepared.settings,
            "init": self._init_identity(work, upstream),
            "data": [os.path.relpath(path, self._study.data) for path in in_data]
            + [self._identities.of(path) for path in data],
            "upstream": [node.identity for node in upstream],
        })
        if identity in self._by_identity:
            return self._by_identity[identity]
        name = _name([prefix, _model(labels), _budget(labels), _seed(labels)], identity)
        node = Node(
            name, identity, task_name, dataclasses.replace(work, out=self._out / name), labels,
            tuple(node.name for node in upstream), prepared.length, prepared.unit, tuple(map(str, data)),
            resources, self._images(prepared, images),
        )
        self._nodes[name] = self._by_identity[identity] = node
        return node

    def _report(self) -> None:
        """The report stands at one place, whatever it reports on."""
        upstream = tuple(node.name for node in self if node.labels["task"] not in ("data", PRETRAIN))
        if upstream and self._study.report:
            identity = content_hash([self._nodes[name].identity for name in upstream])
            own = sorted({model for model in self._study.models if is_reference(model)})  # not strangers' records
            work = Work(str(self._out), self._out / REPORT, trust=own)
            self._nodes[REPORT] = Node(
                REPORT, identity, f"{STEPS}:Report", work, {"task": REPORT},
                upstream, resources=self._cluster.given(REPORT, [{"gpus_per_process": 0, "minutes": 60}], REPORT),
                wants_all=False,
            )

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def _init_identity(self, work: Work, upstream: tuple[Node, ...]) -> str | None:
        if work.init in (None, SCRATCH):
            return work.init
        ours = any(str(node.folder) == work.init for node in upstream)
        return None if ours else checkpoint_identity(str(work.init))

    def _resources(self, task: Task, labels: Mapping[str, Any], what: str) -> Resources:
        differ = [choice.resources for choice in self._overrides.values() if matches(labels, choice.when)]
        resources = self._cluster.given(task.name, differ, what)
        if task.name == "data":
            return dataclasses.replace(resources, nodes=1, processes_per_node=1, gpus_per_process=0)
        if not task.distributed and resources.processes > 1:
            raise UserError(f"{what}: the task '{task.name}' runs in one process, but resources give it "
                            f"{resources.processes}; set nodes and processes_per_node to 1 for it")
        return resources

    def _images(self, prepared: Prepared, given: int | None) -> int | None:
        counted = self._identities.images(prepared.data[0]) if prepared.data else None
        return counted or given or self._study.images


def missing_data(graph: Graph) -> list[str]:
    """Return the paths that nodes read and that are not there, each once."""
    paths = [path for node in graph for path in node.data]
    checkpoints = [str(node.work.init) for node in graph
                   if node.work.init not in (None, SCRATCH) and not _is_ours(node, graph)
                   and checkpoint_identity(str(node.work.init)) == ABSENT]
    return list(dict.fromkeys([path for path in paths if not data_paths(Path(path))] + checkpoints))


def _is_ours(node: Node, graph: Graph) -> bool:
    return any(str(graph.nodes[name].folder) == node.work.init for name in node.upstream)


def _within(path: Path, folder: Path) -> bool:
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))


def _model(labels: Mapping[str, Any]) -> str | None:
    return shown_name(labels["model"]) if "model" in labels else None


def _budget(labels: Mapping[str, Any]) -> str | None:
    return None if labels.get("budget") == OWN else labels.get("budget")


def _seed(labels: Mapping[str, Any]) -> str | None:
    return f"s{labels['seed']}" if "seed" in labels else None


def _name(parts: Iterable[Any], identity: str) -> str:
    readable = "-".join(str(part) for part in parts if part)
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', readable)}-{identity[:HASH_LENGTH]}"
