"""Runs that are killed at random moments and started again, and what their folders hold in the end."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spark.runs.checkpoint import load_file

# Times are measured, and no two runs' are the same; everything else must be.
MEASURED = frozenset({"seconds", "wall_seconds", "training_seconds", "images_per_second", "checksum"})
LEFT_OUT = frozenset({"log", ".lock"})


def command(folder: Path, argv: Sequence[str]) -> None:
    """Be the command `argv` in `folder`; its output goes into the file `log` there."""
    os.setsid()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    log = os.open("log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    verb, *_ = argv
    if verb == "pretrain":
        from spark.cli import main
    else:
        from eval_suite.cli import main
    sys.exit(main(argv))


@dataclass(frozen=True)
class Commands:
    """Starts commands in processes that have everything imported, so that a start costs milliseconds."""

    context: multiprocessing.context.ForkServerContext

    @classmethod
    def ready(cls) -> Commands:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["campaign", "spark.training.run", "eval_suite.cli", "d2_projects.engine.train"])
        return cls(context)

    def whole(self, folder: Path, argv: Sequence[str]) -> float:
        """Run to the end; return the seconds that it took."""
        began = time.monotonic()
        process = self.context.Process(target=command, args=(folder, argv))
        process.start()
        process.join(120)
        assert process.exitcode == 0, (folder / "log").read_text()[-2000:]
        return time.monotonic() - began

    def killed(self, folder: Path, argv: Sequence[str], after: float) -> bool:
        """Kill the command and its workers after so many seconds; return whether it was still running."""
        process = self.context.Process(target=command, args=(folder, argv))
        process.start()
        process.join(after)
        running = process.exitcode is None
        if running:
            kill_all(process.pid or 0)
            process.join(30)
        return running


def kill_all(leader: int) -> None:
    """Kill a command and its data workers, as when a machine is switched off."""
    # Before it leads a group of its own, its group is that of the tests.
    leads = os.getpgid(leader) == leader
    (os.killpg if leads else os.kill)(leader, signal.SIGKILL)


def campaign(commands: Commands, argv: Sequence[str], runs: int, folder: Path, seed: int) -> list[str]:
    """Kill each of `runs` runs at one to three random moments, let it end, and return what differs from a whole run."""
    moments = random.Random(seed)
    expected, again = folder / "whole", folder / "again"
    commands.whole(expected, argv)
    seconds = commands.whole(again, argv)  # the first one is slower than all that follow
    wrong, kills = [f"a second whole run: {name}" for name in differences(expected, again)], 0
    for number in range(runs):
        place = folder / f"run{number}"
        planned = [moments.uniform(0, 0.9 * seconds) for _ in range(moments.randint(1, 3))]
        kills += sum(commands.killed(place, argv, after) for after in planned)
        commands.whole(place, argv)
        wrong += [f"run {number}, killed after {planned}: {name}" for name in differences(expected, place)]
    print(f"{argv[0]}: {runs} runs, {kills} kills, {len(wrong)} differences")
    assert kills >= runs // 2, "the kills came too late to mean anything"
    return wrong


def differences(expected: Path, found: Path) -> list[str]:
    """Return the names of the files that one folder lacks or that hold something else."""
    names = {file.relative_to(folder) for folder in (expected, found) for file in kept(folder)}
    return [str(name) for name in sorted(names) if not same(expected / name, found / name)]


def kept(folder: Path) -> list[Path]:
    """All files of the run but TensorBoard's, whose names hold the time."""
    return [
        file for file in folder.rglob("*")
        if file.is_file() and file.name not in LEFT_OUT and "tensorboard" not in file.parts
    ]  # fmt: skip


def same(expected: Path, found: Path) -> bool:
    if not (expected.exists() and found.exists()):
        return False
    if expected.suffix == ".pt":
        return alike(load_file(expected), load_file(found))
    if expected.suffix in (".json", ".jsonl"):
        lines = [[json.loads(line) for line in documents(file)] for file in (expected, found)]
        return alike(*lines)
    return expected.read_bytes() == found.read_bytes()


def documents(file: Path) -> list[str]:
    text = file.read_text()
    return text.splitlines() if file.suffix == ".jsonl" else [text]


def alike(left: Any, right: Any) -> bool:
    """Return whether two trees are equal, bit for bit, but for times."""
    if isinstance(left, dict) and isinstance(right, dict):
        names = (left.keys() | right.keys()) - MEASURED
        return all(name in left and name in right and alike(left[name], right[name]) for name in names)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(alike, left, right))
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    return bool(left == right)
