"""The state of every node of a study, as files and the scheduler tell, and as a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from eval_suite.study.attempt import FAILED, FINISHED, STOPPED, last_attempt
from eval_suite.study.graph import Graph, Node
from eval_suite.study.progress import progress, read_finished
from eval_suite.study.runner import LOG, tail

WAITING, RUNNING, ELSEWHERE, BLOCKED, LOST, QUEUED = "waiting", "running", "elsewhere", "blocked", "lost", "queued"
STYLES = {FINISHED: "green", RUNNING: "cyan", ELSEWHERE: "cyan", QUEUED: "blue", FAILED: "red", LOST: "red",
          STOPPED: "yellow", BLOCKED: "magenta"}
ORDER = (FINISHED, RUNNING, ELSEWHERE, QUEUED, WAITING, STOPPED, FAILED, LOST, BLOCKED)
LOG_LINES = 5
WIDTH = 160  # of tables that are not shown on a terminal


def console(stderr: bool = False) -> Console:
    """Return a console that is wide enough for tables, wherever it writes to."""
    found = Console(stderr=stderr)
    return found if found.is_terminal else Console(stderr=stderr, width=WIDTH)


@dataclass(frozen=True)
class State:
    """What a node is doing, and more about it in words."""

    name: str
    detail: str = ""


@dataclass(frozen=True)
class Queued:
    """What a scheduler says of a job that has not ended."""

    job: str
    state: str
    reason: str = ""

    @property
    def runs(self) -> bool:
        """Whether it has machines now."""
        return self.state in ("RUNNING", "COMPLETING")

    def __str__(self) -> str:
        return f"job {self.job} {self.state.lower()}" + (f" ({self.reason})" if self.reason else "")


def states_of(graph: Graph, queue: Mapping[str, Queued]) -> dict[str, State]:
    """Return the state of each node, as its folder and the scheduler's queue tell."""
    states: dict[str, State] = {}
    for node in graph:
        states[node.name] = _state(node, queue.get(node.name), states)
    return states


def _state(node: Node, queued: Queued | None, above: Mapping[str, State]) -> State:
    if mark := read_finished(node):
        return State(FINISHED, ", ".join(f"{key} {value}" for key, value in mark.shown.items()))
    attempt = last_attempt(node.folder)
    # A job that the scheduler no longer knows, or has put back into the queue, does not run, whatever its file says.
    if attempt and attempt.alive and (not attempt.job or (queued and queued.runs)):
        return State(RUNNING, attempt.place)
    if queued:
        return State(QUEUED, str(queued))
    if attempt and attempt.ended is None:
        return State(LOST, f"attempt {attempt.number} ({attempt.place}) ended without a word")
    if attempt and attempt.outcome in (FAILED, STOPPED):
        return State(attempt.outcome, attempt.reason)
    return _not_begun(node, above)


def _not_begun(node: Node, above: Mapping[str, State]) -> State:
    lacking = [name for name in node.upstream if above[name].name in (FAILED, LOST, BLOCKED)]
    if lacking and (node.wants_all or len(lacking) == len(node.upstream)):
        return State(BLOCKED, f"needs {', '.join(lacking)}")
    return State(WAITING)


def status_table(graph: Graph, states: Mapping[str, State]) -> Group:
    """Return the table of all nodes, and below it the last lines that failed ones said."""
    table = Table(title=f"{graph.out}: {counts(states)}", title_justify="left", expand=False)
    for column in ("node", "state", "progress", "loss", "rate", "left"):
        table.add_column(column, overflow="fold", justify="left" if column in ("node", "state") else "right")
    table.add_column("", overflow="fold")
    for node in graph:
        state = states.get(node.name, State(WAITING))
        table.add_row(node.name, Text(state.name, STYLES.get(state.name, "")), *_numbers(node, state), state.detail)
    return Group(table, *_last_words(graph, states))


def counts(states: Mapping[str, State]) -> str:
    """Return such as '3 finished, 1 failed'."""
    names = [state.name for state in states.values()]
    return ", ".join(f"{names.count(name)} {name}" for name in ORDER if name in names)


def summary(graph: Graph, states: Mapping[str, State]) -> Group:
    """Return what is worth saying when all has ended."""
    line = Text(f"{graph.out}: {counts(states)}")
    return Group(line, *_last_words(graph, states))


def _numbers(node: Node, state: State) -> tuple[str, str, str, str]:
    """Return progress, loss, rate and time left of a node that runs."""
    attempt = last_attempt(node.folder)
    if state.name not in (RUNNING, ELSEWHERE) or attempt is None:
        return "", "", "", ""
    now = progress(node, attempt)
    done = f"{now.done:.4g}/{now.length:.4g} {now.unit}s" if now.length else ""
    loss = f"{now.loss:.4f}" if now.loss is not None else ""
    left = str(timedelta(seconds=round(now.seconds_left))) if now.seconds_left is not None else ""
    return done, loss, _rate(node, now.per_hour, now.unit), left


def _rate(node: Node, per_hour: float | None, unit: str) -> str:
    """Return images a second where it is known how many an epoch has."""
    if per_hour is None:
        return ""
    if unit == "epoch" and node.images:
        return f"{per_hour * node.images / 3600:.0f} img/s"
    return f"{per_hour:.4g} {unit}s/h"


def _last_words(graph: Graph, states: Mapping[str, State]) -> list[Text]:
    words = []
    for name, state in states.items():
        if state.name in (FAILED, LOST):
            node = graph.nodes[name]
            lines = "".join(f"\n    {line}" for line in tail(node.folder / LOG, LOG_LINES))
            words.append(Text(f"{name} {state.name}: {state.detail}\n  {node.folder / LOG}:{lines}", "red"))
    return words
