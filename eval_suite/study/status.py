"""The state of every node of a study, as files and the scheduler tell, and as a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from eval_suite.study.attempt import FAILED, FINISHED, STOPPED, UNKNOWN, AttemptRecord, last_attempt
from eval_suite.study.graph import Graph, Node
from eval_suite.study.progress import damage_of_mark, progress, read_finished
from eval_suite.study.runner import LOG, tail

WAITING, RUNNING, ELSEWHERE, BLOCKED, LOST, QUEUED = "waiting", "running", "elsewhere", "blocked", "lost", "queued"
STYLES = {FINISHED: "green", RUNNING: "cyan", ELSEWHERE: "cyan", QUEUED: "blue", FAILED: "red", LOST: "red",
          STOPPED: "yellow", UNKNOWN: "yellow", BLOCKED: "magenta"}
ORDER = (FINISHED, RUNNING, ELSEWHERE, QUEUED, UNKNOWN, WAITING, STOPPED, FAILED, LOST, BLOCKED)
LOG_LINES = 5
LONGEST = 1e10  # seconds that are worth telling: 300 years
WIDTH = 160  # of tables that are not shown on a terminal
ENDED = frozenset({
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT",
})  # of Slurm's states, those from which a job does not come back


def console(stderr: bool = False) -> Console:
    """Return a console that is wide enough for tables, wherever it writes to."""
    found = Console(stderr=stderr)
    return found if found.is_terminal else Console(stderr=stderr, width=WIDTH)


@dataclass(frozen=True)
class State:
    """What a node is doing, and more about it in words.

    Attributes:
        name: of the state.
        detail: more about it.
        log: which tells more than the node's own.
    """

    name: str
    detail: str = ""
    log: Path | None = None


@dataclass(frozen=True)
class Job:
    """The latest job of a node, and what the scheduler says of it.

    Attributes:
        id: the scheduler's.
        submitted: when, in seconds since 1970.
        log: of the job itself: what happens before the node's own log begins.
        called_off: whether it was cancelled by `study cancel`.
        state, reason: as the scheduler says; "" if it has forgotten the job, which ended a while ago then.
        silence: why the scheduler says nothing at all.
    """

    id: str
    submitted: float
    log: Path
    called_off: bool = False
    state: str = ""
    reason: str = ""
    silence: str = ""

    @property
    def runs(self) -> bool:
        """Whether it has machines now."""
        return self.state in ("RUNNING", "COMPLETING", "SUSPENDED")

    @property
    def ended(self) -> bool:
        """Whether it will not come back."""
        return not self.state or self.state in ENDED

    def began(self, attempt: AttemptRecord | None) -> bool:
        """Whether an attempt is of this job, or newer."""
        return attempt is not None and (attempt.job == self.id or attempt.started > self.submitted)

    def __str__(self) -> str:
        if self.silence:
            return f"job {self.id}: {self.silence}"
        return f"job {self.id} {self.state.lower() or 'ended'}" + (f" ({self.reason})" if self.reason else "")


def states_of(graph: Graph, jobs: Mapping[str, Job]) -> dict[str, State]:
    """Return the state of each node, as its folder and the scheduler tell."""
    states: dict[str, State] = {}
    for node in graph:
        states[node.name] = _state(node, jobs.get(node.name), states)
    return states


def _state(node: Node, job: Job | None, above: Mapping[str, State]) -> State:
    if mark := read_finished(node):
        return State(FINISHED, ", ".join(f"{key} {value}" for key, value in mark.shown.items()))
    attempt = last_attempt(node.folder)
    if job and job.silence and not _settled(job, attempt):
        return State(UNKNOWN, str(job))
    # A job that the scheduler no longer knows, or has put back into the queue, does not run, whatever its file says.
    if attempt and attempt.alive and (not attempt.job or (job and job.runs)):
        return State(RUNNING, attempt.place)
    if job and not job.ended:
        return State(QUEUED, str(job))
    return _at_rest(node, job, attempt, above)


def _settled(job: Job, attempt: AttemptRecord | None) -> bool:
    """Whether files alone tell what a node is doing: its job failed, or its latest attempt is of no job of Slurm's."""
    if attempt is None or not job.began(attempt):
        return False
    return attempt.outcome == FAILED if attempt.job == job.id else not attempt.job


def _at_rest(node: Node, job: Job | None, attempt: AttemptRecord | None, above: Mapping[str, State]) -> State:
    """Return the state of a node that is not finished, and that nothing works on or is about to."""
    if job and not job.began(attempt):
        state = _not_begun(node, above)
        return state if state.name == BLOCKED or job.called_off else State(LOST, f"{job}, and never began", job.log)
    of_job = f"; {job}" if job and attempt and attempt.job == job.id else ""
    if attempt and attempt.machine == UNKNOWN:
        return State(LOST, attempt.reason)
    if attempt and attempt.ended is None:
        return State(LOST, f"attempt {attempt.number} ({attempt.place}) ended without a word{of_job}")
    if attempt and attempt.outcome in (FAILED, STOPPED):
        return State(attempt.outcome, f"{attempt.reason}{of_job if attempt.outcome == STOPPED else ''}")
    return _not_begun(node, above)


def _not_begun(node: Node, above: Mapping[str, State]) -> State:
    lacking = [name for name in node.upstream if above[name].name in (FAILED, LOST, BLOCKED)]
    if lacking and (node.wants_all or len(lacking) == len(node.upstream)):
        return State(BLOCKED, f"needs {', '.join(lacking)}")
    return State(WAITING, damage_of_mark(node))


def status_table(graph: Graph, states: Mapping[str, State]) -> Group:
    """Return the table of all nodes, and below it the last lines that failed ones said."""
    table = Table(title=Text(f"{graph.out}: {counts(states)}"), title_justify="left", expand=False)
    for column in ("node", "state", "progress", "loss", "rate", "left"):
        table.add_column(column, overflow="fold", justify="left" if column in ("node", "state") else "right")
    table.add_column("", overflow="fold")
    for node in graph:
        state = states.get(node.name, State(WAITING))
        name, detail = Text(node.name), Text(state.detail)  # brackets are no markup
        table.add_row(name, Text(state.name, STYLES.get(state.name, "")), *_numbers(node, state), detail)
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
    if state.name not in (RUNNING, ELSEWHERE, UNKNOWN) or attempt is None:
        return "", "", "", ""
    now = progress(node, attempt)
    done = f"{now.done:.4g}/{now.length:.4g} {now.unit}s" if now.length else ""
    loss = f"{now.loss:.4f}" if now.loss is not None else ""
    left = _clock(now.seconds_left)
    return done, loss, _rate(node, now.per_hour, now.unit), left


def _clock(seconds: float | None) -> str:
    return "" if seconds is None or seconds > LONGEST else str(timedelta(seconds=round(seconds)))


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
            log = state.log or graph.nodes[name].folder / LOG
            lines = "".join(f"\n    {line}" for line in tail(log, LOG_LINES))
            words.append(Text(f"{name} {state.name}: {state.detail}\n  {log}:{lines}", "red"))
    return words
