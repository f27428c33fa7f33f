"""This machine as a place for a study: several nodes at a time, each with GPUs of its own."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.live import Live

from eval_suite.study.attempt import FAILED, FINISHED, STOPPED, HeldError, last_attempt
from eval_suite.study.graph import Graph, Node
from eval_suite.study.progress import finished
from eval_suite.study.runner import Result, Stopping, run_node
from eval_suite.study.status import BLOCKED, ELSEWHERE, RUNNING, WAITING, State, console, status_table, summary
from spark.errors import UserError
from spark.utils.process_identity import this_machine
from spark.utils.signals import EXIT_CODE

POLL_SECONDS = 0.2
REFRESHES_PER_SECOND = 2
INTERRUPTED = 130  # what shells say of Ctrl-C
SETTLED = (FINISHED, FAILED, STOPPED, BLOCKED)


class Local:
    """Runs nodes here.

    Args:
        jobs: nodes at a time.
        gpus: ids of the GPUs to share among them; [] computes on the CPU.
    """

    def __init__(self, jobs: int, gpus: Sequence[str]) -> None:
        self._jobs, self._gpus = jobs, list(gpus)
        self._console = console(stderr=True)

    def start(self, graph: Graph, names: Collection[str]) -> int:
        """Run nodes until all are finished, failed or blocked; return 0 if all that were wanted are finished."""
        for name in names:
            self._check_fits(graph.nodes[name])
        graph.save()
        run = _Run(graph, names, self._jobs, self._gpus)
        with _asked_by_signals(run.stopping) as received, ThreadPoolExecutor(self._jobs) as pool:
            self._show(run, pool)
        states = run.states
        self._console.print(summary(graph, states), soft_wrap=True)
        if received:
            return INTERRUPTED if received[0] == signal.SIGINT else EXIT_CODE
        return 0 if all(states[name].name == FINISHED for name in names) else 1

    def cancel(self, graph: Graph) -> list[str]:
        """Ask the processes on this machine that watch over nodes to stop them in an orderly way.

        Where such a process was killed, those that it watched over are asked themselves.

        Raises:
            UserError: a process is somebody else's.
        """
        told, watchers, orphans = [], set(), []
        for name, node in graph.nodes.items():
            attempt = last_attempt(node.folder)
            if attempt and attempt.alive and attempt.machine == this_machine() and not attempt.job:
                told.append(name)
                if attempt.watched:
                    watchers.add(attempt.process[0])
                else:
                    orphans += attempt.workers
        for pid in watchers:
            _ask(os.kill, pid)
        for pid in orphans:
            _ask(os.killpg, pid)
        return told

    def _check_fits(self, node: Node) -> None:
        if node.resources.nodes > 1:
            raise UserError(f"{node.name} wants {node.resources.nodes} machines; submit it to a cluster, or give it "
                            "nodes: 1 in the study's overrides or in --cluster FILE")
        if self._gpus and node.resources.gpus > len(self._gpus):
            raise UserError(f"{node.name} wants {node.resources.gpus} GPUs, but there are {len(self._gpus)} here; "
                            "lower processes_per_node in the study's overrides or in --cluster FILE")

    def _show(self, run: _Run, pool: ThreadPoolExecutor) -> None:
        """Work, with a table that follows on a terminal, or a line for each change in a log."""
        if self._console.is_terminal:
            with Live(console=self._console, refresh_per_second=REFRESHES_PER_SECOND, transient=True) as live:
                while run.step(pool):
                    live.update(status_table(run.graph, run.states))
                    time.sleep(POLL_SECONDS)
            return
        said: dict[str, str] = {}
        going = True
        while going:
            going = run.step(pool)
            for name, state in run.states.items():
                if said.get(name) != state.name and state.name != WAITING:
                    said[name] = state.name
                    self._console.print(f"{state.name:9} {name}  {state.detail}", highlight=False, soft_wrap=True)
            time.sleep(POLL_SECONDS)


class _Run:
    """The state of one `start`: what is finished, what runs, what may run next."""

    def __init__(self, graph: Graph, names: Collection[str], jobs: int, gpus: Sequence[str]) -> None:
        self.graph, self.stopping = graph, Stopping()
        self._jobs, self._free, self._has_gpus = jobs, list(gpus), bool(gpus)
        self._futures: dict[str, Future[Result]] = {}
        self._given: dict[str, list[str]] = {}
        done = {node.name for node in graph if finished(graph, node)}
        # Nodes that many others wait for come first.
        order = sorted(done.union(names), key=lambda name: -len(graph.below([name])))
        self.states = {name: State(FINISHED) if name in done else State(WAITING) for name in order}

    def step(self, pool: ThreadPoolExecutor) -> bool:
        """Note what has ended, start what may start; return whether anything is left to wait for."""
        for name in [name for name, future in self._futures.items() if future.done()]:
            self._free += self._given.pop(name)
            future = self._futures.pop(name)
            try:
                result = future.result()
                self.states[name] = State(result.outcome, result.reason)
            except HeldError as error:
                self.states[name] = State(ELSEWHERE, str(error))
            except UserError as error:  # such as a full disk: the others may have better luck
                self.states[name] = State(FAILED, str(error))
        for name, state in self.states.items():
            if state.name == ELSEWHERE:
                self._look_elsewhere(self.graph.nodes[name])
        for name, state in list(self.states.items()):
            if state.name == WAITING:
                self._consider(self.graph.nodes[name], pool)
        return any(state.name not in SETTLED for state in self.states.values())

    def _consider(self, node: Node, pool: ThreadPoolExecutor) -> None:
        """Start a node, block it, or leave it for later."""
        if self.stopping.asked.is_set():
            self.states[node.name] = State(STOPPED, "not begun")
            return
        above = [self.states[name].name if name in self.states else BLOCKED for name in node.upstream]
        hopeless = (FAILED, STOPPED, BLOCKED)
        lacking = [name for name, state in zip(node.upstream, above, strict=True) if state in hopeless]
        if lacking and (node.wants_all or len(lacking) == len(above)):
            self.states[node.name] = State(BLOCKED, f"needs {', '.join(lacking)}")
            return
        needed = node.resources.gpus if self._has_gpus else 0
        if any(state not in SETTLED for state in above) or len(self._futures) >= self._jobs or needed > len(self._free):
            return
        given, self._free = self._free[:needed], self._free[needed:]
        self._given[node.name] = given
        environments = _environments(node, given, self._jobs)
        self.states[node.name] = State(RUNNING)
        self._futures[node.name] = pool.submit(run_node, self.graph, node, environments, self.stopping)

    def _look_elsewhere(self, node: Node) -> None:
        """Somebody else works on it: wait for that to end, and go on from there."""
        attempt = last_attempt(node.folder)
        if finished(self.graph, node):
            self.states[node.name] = State(FINISHED)
        elif not (attempt and attempt.alive):
            failed = attempt is not None and attempt.outcome == FAILED
            self.states[node.name] = State(FAILED, attempt.reason) if failed and attempt else State(WAITING)
        elif self.stopping.asked.is_set():
            self.states[node.name] = State(STOPPED, "left to the process that works on it")


def _ask(kill: Callable[[int, int], None], pid: int) -> None:
    """Ask a process, or a group of them, to stop; it may have ended just now."""
    try:
        kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass
    except PermissionError:
        raise UserError(f"process {pid} is another user's, who must cancel it") from None


def _environments(node: Node, gpus: Sequence[str], jobs: int) -> list[dict[str, str]]:
    """Return the variables of each process of a node; several find each other as under torchrun."""
    common = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
    if "OMP_NUM_THREADS" not in os.environ:
        common["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // (jobs * node.resources.processes)))
    size = node.resources.processes
    if size == 1:
        return [common]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(size),
             "LOCAL_WORLD_SIZE": str(size)}
    return [{**common, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@contextmanager
def _asked_by_signals(stopping: Stopping) -> Iterator[list[int]]:
    """Turn Ctrl-C and the schedulers' signals into a request to stop; yield the list of those that came."""
    received: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        received.append(number)
        stopping.ask()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before: dict[int, Any] = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
