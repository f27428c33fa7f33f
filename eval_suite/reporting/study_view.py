"""What a report wants to know of the studies whose folders it looks at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval_suite.reporting.run_files import RunFiles
from eval_suite.study.graph import REPORT, Node
from eval_suite.study.progress import Finished, damage_of_mark, read_finished

NOT_RUNS = ("data", REPORT)
AXES = ("task", "model", "init", "budget", "seed")


def study_nodes(files: RunFiles) -> Iterator[Node]:
    """Yield the nodes of all studies, with the folders where they lie now."""
    for graph in files.studies.values():
        yield from graph


def finished_nodes(files: RunFiles) -> dict[Path, tuple[Node, Finished]]:
    """Return the nodes that are finished by their folders, and when and how they ended."""
    found = {}
    for node in study_nodes(files):
        if mark := read_finished(node):
            found[node.folder] = node, mark
        else:
            files.leave_out(damage_of_mark(node))
    return found


def unfinished(files: RunFiles) -> list[dict[str, Any]]:
    """Return what studies have planned and not finished: AXES and the node's name."""
    done = finished_nodes(files)
    return [
        {**{axis: node.labels.get(axis, "") for axis in AXES}, "node": node.name}
        for node in study_nodes(files)
        if node.folder not in done and node.labels.get("task") not in NOT_RUNS
    ]
