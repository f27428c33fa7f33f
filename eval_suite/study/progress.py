"""How far a node is, as its folder tells: finished or not, and what its log of metrics says."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval_suite.study.attempt import AttemptRecord, attempts
from eval_suite.study.graph import REPORT, Graph, Node
from spark.errors import UserError
from spark.runs.metrics import FILE_NAME as METRICS
from spark.runs.metrics import read_metrics
from spark.utils.files import write_json
from spark.utils.json_text import read_as

FINISHED_FILE = "finished.json"


@dataclass(frozen=True)
class Finished:
    """What `finished.json` tells: for which identity, since when (seconds since 1970), after how much work, on what.

    `above` has, by name, since when the nodes were finished that it builds upon, as it found them when it began.
    """

    identity: str
    at: float
    seconds: float
    shown: Mapping[str, str]
    command: str
    gpus: int = 0
    above: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """Of a run that is going on: done and whole length in `unit`s, and the latest numbers, None where not known."""

    done: float
    length: float
    unit: str
    loss: float | None = None
    per_hour: float | None = None

    @property
    def seconds_left(self) -> float | None:
        """How long it will still take at this rate."""
        return 3600 * (self.length - self.done) / self.per_hour if self.per_hour else None


def read_finished(node: Node) -> Finished | None:
    """Return what a finished node's folder tells; None if this very node is not finished, or the file is damaged."""
    try:
        content = _mark(node)
    except UserError:
        return None
    return content if content and content.identity == node.identity else None


def damage_of_mark(node: Node) -> str:
    """Return why nobody can tell whether a node is finished; "" if its folder tells."""
    try:
        _mark(node)
    except UserError as error:
        return str(error)
    return ""


def _mark(node: Node) -> Finished | None:
    path = node.folder / FINISHED_FILE
    return read_as(Finished, path, "mark") if os.path.lexists(path) else None


def finished(graph: Graph, node: Node) -> bool:
    """Whether there is nothing to do for a node: its result is there; a report is not older than what it is about."""
    mark = read_finished(node)
    if mark is None or not _is_whole(node):
        return False
    if node.name != REPORT:
        return True
    above = finished_above(graph, node)
    if mark.above:  # clocks are not asked: one may have been set back
        return above == mark.above and len(above) == len(node.upstream)
    return all(name in above and above[name] <= mark.at for name in node.upstream)


def finished_above(graph: Graph, node: Node) -> dict[str, float]:
    """Return since when the nodes are finished that a node builds upon, of those that are."""
    marks = {name: read_finished(graph.nodes[name]) for name in node.upstream}
    return {name: mark.at for name, mark in marks.items() if mark}


def _is_whole(node: Node) -> bool:
    try:
        return node.find_task().collect(node.work) is not None
    except UserError:  # its record is damaged, or of another version of the schema
        return False


def mark_finished(node: Node, shown: Mapping[str, str], above: Mapping[str, float] | None = None) -> None:
    """Note that a node is finished, and what `finished_above` said when it began."""
    *before, this = attempts(node.folder)
    # One that was cut off lasted until it last touched its file; this one still goes on.
    now = time.time()
    seconds = sum(attempt.seconds for attempt in [*before, dataclasses.replace(this, ended=now)])
    mark = Finished(node.identity, now, round(seconds, 1), dict(shown), " ".join(node.command()), node.resources.gpus,
                    dict(above or {}))
    write_json(node.folder / FINISHED_FILE, dataclasses.asdict(mark))


def done_before(node: Node) -> float:
    """Return how far a node's log of metrics is, in its unit."""
    return _number(_last(node.folder).get(node.unit)) or 0.0


def progress(node: Node, attempt: AttemptRecord) -> Progress:
    """Return how far the attempt that is going on has come, from the log of metrics alone."""
    last = _last(node.folder)
    done = _number(last.get(node.unit)) or 0.0
    since = done - attempt.begin
    rate = None
    if since > 0:
        seconds = (node.folder / METRICS).stat().st_mtime - attempt.started
        rate = 3600 * since / seconds if seconds > 0 else None  # a clock may have been set back
    loss = _number(last.get("loss", last.get("total_loss")))
    return Progress(done, node.length, node.unit, loss, rate)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _last(folder: Path) -> dict[str, Any]:
    """Return the last record of a log that can be read; {} if there is none."""
    try:
        records = read_metrics(folder)
    except UserError:  # whoever goes on with the run will say so
        return {}
    return records[-1] if records else {}
