"""What a report wants to know of the studies whose folders it looks at."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from eval_suite.study.attempt import ATTEMPTS
from eval_suite.study.graph import GRAPH, REPORT, Node, load_graph
from eval_suite.study.progress import Finished, read_finished

NOT_RUNS = ("data", REPORT)
AXES = ("task", "model", "init", "budget", "seed")


def study_nodes(folders: Sequence[Path]) -> Iterator[Node]:
    """Yield the nodes of all studies under some folders, with the folders where they lie now."""
    for study in _studies(folders):
        for node in load_graph(study):
            yield dataclasses.replace(node, work=dataclasses.replace(node.work, out=study / node.name))


def finished_nodes(folders: Sequence[Path]) -> dict[Path, tuple[Node, Finished]]:
    """Return the nodes that are finished by their folders, and when and how they ended."""
    marks = ((node, read_finished(node)) for node in study_nodes(folders))
    return {node.folder: (node, mark) for node, mark in marks if mark is not None}


def superseded(folders: Sequence[Path]) -> list[Path]:
    """Return the folders of nodes that their studies, since a setting was changed, have no more."""
    nodes = {study: load_graph(study).nodes for study in _studies(folders)}
    return [folder for study in nodes for folder in sorted(study.iterdir())
            if (folder / ATTEMPTS).is_dir() and folder.name not in nodes[study]]


def _studies(folders: Sequence[Path]) -> list[Path]:
    return sorted({file.parent for folder in folders for file in folder.rglob(GRAPH)})


def unfinished(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return what studies have planned and not finished: AXES and the node's name."""
    done = finished_nodes(folders)
    return [
        {**{axis: node.labels.get(axis, "") for axis in AXES}, "node": node.name}
        for node in study_nodes(folders)
        if node.folder not in done and node.labels.get("task") not in NOT_RUNS
    ]
