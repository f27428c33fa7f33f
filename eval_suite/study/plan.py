"""What a study would do: its graph, the commands, and what they will cost as far as that can be counted."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Group
from rich.progress import track
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from eval_suite.study.attempt import FINISHED
from eval_suite.study.cluster import ClusterConfig
from eval_suite.study.graph import Graph, Node, missing_data
from eval_suite.study.progress import finished, read_finished
from eval_suite.study.status import console
from eval_suite.task import Cost
from spark.utils.printable import counted

UNKNOWN = "–"


@dataclass(frozen=True)
class Estimate:
    """What a node will take, or, if it is finished, has taken.

    Attributes:
        cost: FLOPs and bytes, if its task can count them.
        hours: of all its GPUs (without any: of the machine) together, None where nothing tells.
        basis: where the hours come from.
    """

    cost: Cost | None
    hours: float | None
    basis: str


def estimate(graph: Graph, cluster: ClusterConfig) -> dict[str, Estimate]:
    """Estimate each node: measured where a like one is finished, counted from FLOPs else.

    Like is a finished node of the same task, model and resources: its time is scaled by the lengths of the runs.
    """
    measured = {_kind(node): node for node in graph if read_finished(node)}
    found = {}
    costs: dict[str, Cost | None] = {}
    for node in track(list(graph), "counting costs", transient=True, console=console(stderr=True)):
        asked = _asked(node)
        if asked not in costs:
            costs[asked] = node.cost()  # builds the network, which may take seconds
        cost = costs[asked]
        like = node if read_finished(node) else measured.get(_kind(node))
        mark = read_finished(like) if like else None
        if like and mark and (like is node or (like.length and node.length)):
            ratio = 1.0 if like is node else node.length / like.length
            basis = "measured" if like is node else f"measured on {like.name}"
            found[node.name] = Estimate(cost, mark.seconds / 3600 * max(node.resources.gpus, 1) * ratio, basis)
        elif cost and cluster.device.peak_tflops:
            rate = cluster.device.peak_tflops * 1e12 * cluster.device.utilisation
            found[node.name] = Estimate(cost, cost.flops / rate / 3600, "FLOPs")
        else:
            found[node.name] = Estimate(cost, None, "")
    return found


def plan(graph: Graph, cluster: ClusterConfig) -> Group:
    """Return the graph as a tree, and a table of the nodes with what they will cost."""
    estimates = estimate(graph, cluster)
    return Group(_tree(graph), _table(graph, estimates), *_notes(graph, cluster, estimates))


def commands(graph: Graph) -> str:
    """Return the command of each node that is not finished, a line each, after a comment that names it."""
    todo = [node for node in graph if not finished(graph, node)]
    return "\n".join(f"# {node.name}\n{shlex.join(node.command())}" for node in todo)


def _tree(graph: Graph) -> Tree:
    """Draw each node below the last of those that it builds upon, where all of these hang."""
    tree = Tree(f"{graph.out}: {counted(len(graph), 'node')}")
    branches: dict[str, Tree] = {}
    for node in graph:
        above = branches[node.upstream[-1]] if node.upstream and node.wants_all else tree
        label = node.name if node.wants_all else f"{node.name}, after all"
        branches[node.name] = above.add(f"{_mark(graph, node)} {label}")
    return tree


def _table(graph: Graph, estimates: Mapping[str, Estimate]) -> Table:
    hours = "GPU-hours" if any(node.resources.gpus for node in graph) else "hours"
    table = Table(show_footer=True)
    todo = [estimates[node.name] for node in graph if not finished(graph, node)]
    known = [entry.hours for entry in todo if entry.hours is not None]
    total = f"{sum(known):,.1f}" + ("" if len(known) == len(todo) else f" + {len(todo) - len(known)} unknown")
    stored = sum(entry.cost.storage for entry in todo if entry.cost)
    table.add_column("node", f"to do: {len(todo)} of {len(graph)}", overflow="fold")
    table.add_column("resources")
    for name, footer in (("EFLOP", ""), (hours, total), ("GB", f"{stored / 1e9:.1f}")):
        table.add_column(name, footer, justify="right")
    table.add_column("hours from")
    for node in graph:
        entry = estimates[node.name]
        table.add_row(
            f"{_mark(graph, node)} {node.name}", _resources(node),
            f"{entry.cost.flops / 1e18:.3g}" if entry.cost else UNKNOWN,
            f"{entry.hours:,.2f}" if entry.hours is not None else UNKNOWN,
            f"{entry.cost.storage / 1e9:.2f}" if entry.cost else UNKNOWN, entry.basis,
        )
    return table


def _notes(graph: Graph, cluster: ClusterConfig, estimates: Mapping[str, Estimate]) -> list[Text]:
    """Say what the estimates assume, and what is missing."""
    notes = [f"✓ is {FINISHED}; the totals are of what is not"]
    notes += sorted({f"FLOPs: {entry.cost.basis}" for entry in estimates.values() if entry.cost})
    device = cluster.device
    if device.peak_tflops:
        notes.append(f"hours from FLOPs: {device.utilisation:.0%} of the {device.peak_tflops:g} TFLOP/s of "
                     f"{device.name}, an assumption; loading, evaluation and waiting not counted")
    else:
        notes.append("hours from FLOPs need the peak_tflops of a device: pass --cluster FILE")
    notes += [f"missing: '{path}' is not there yet; until it is, names of nodes end in other digits"
              for path in missing_data(graph)]
    return [Text(note) for note in notes]


def _resources(node: Node) -> str:
    given = node.resources
    if not given.gpus:
        return "CPU"
    many = f"{given.nodes} × " if given.nodes > 1 else ""
    return f"{many}{given.gpus // given.nodes} GPU"


def _kind(node: Node) -> tuple[object, ...]:
    return node.task, node.labels.get("task"), node.labels.get("model"), node.resources.gpus


def _asked(node: Node) -> str:
    """Return what a node's cost depends on."""
    return repr((node.task, node.work.recipe, dict(node.work.settings), node.work.trust, node.work.gpus, node.images))


def _mark(graph: Graph, node: Node) -> str:
    return "✓" if finished(graph, node) else "·"
