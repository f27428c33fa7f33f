"""Real processes: whatever ends a run, it says why, leaves no process behind, and keeps its folder to itself."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

from spark.runs.metrics import read_metrics
from spark.utils.process_identity import process_start
from spark.utils.signals import EXIT_CODE

PHOTOS = 8
LIMIT = 60  # seconds in which every process must have ended
NETWORK = '''
import torch
from torch import nn

class Net(nn.Module):
    """A tiny network of stride 4 that fails in its twentieth training step."""
    channels, strides, calls = [8, 16], [2, 4], 0
    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
    def forward(self, x):
        Net.calls += self.training
        if Net.calls > FAILS:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        a = self.a(x)
        return [a, self.b(a)]
    def example(self):
        return torch.zeros(1, 3, 16, 16)
'''


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """What a test starts, each in a session of its own, ends with it."""
    processes: list[subprocess.Popen[str]] = []
    # In the background of a shell, the tests are deaf to Ctrl-C, and so would be what they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield processes
    signal.signal(signal.SIGINT, before)
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Runs:
    """Starts pre-trainings that last until something ends them."""

    def __init__(self, photos: Path, folder: Path, started: list[subprocess.Popen[str]]) -> None:
        self.folder, self.out, self._photos, self._started = folder, folder / "out", photos, started
        (folder / "net.py").write_text(NETWORK.replace("FAILS", "10**9"))
        (folder / "fails.py").write_text(NETWORK.replace("FAILS", "20"))
        (folder / "main.py").write_text("import sys; from spark.cli import main; sys.exit(main())")
        (folder / "recipe.yaml").write_text("{}\n")

    def start(self, *more: str, ranks: int = 1) -> subprocess.Popen[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
        settings = (
            f"data.root={self._photos}", f"out={self.out}", "model.name=net.py:Net", "device=cpu", "data.workers=2",
            "data.input_size=[16,16]", "model.drop_path=0", "decoder.width=16", "train.batch=4", "train.epochs=100000",
            "train.warmup_epochs=0", "train.picture_epochs=100000", "train.checkpoint_epochs=1", *more,
        )  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, *launcher, "main.py", "pretrain", "recipe.yaml", *settings], cwd=self.folder, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        self._started.append(process)
        return process

    def trains(self) -> None:
        """Wait until there is a checkpoint."""
        until((self.out / "checkpoints" / "last.pt").is_file)


@pytest.fixture
def runs(photos: Path, tmp_path: Path, started: list[subprocess.Popen[str]]) -> Runs:
    return Runs(photos, tmp_path, started)


def until(condition) -> None:
    """Wait for a condition."""
    latest = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < latest, "waited in vain"
        time.sleep(0.05)


def ended(process: subprocess.Popen[str]) -> str:
    """Return what a process said, once it and all of its session have ended."""
    _, said = process.communicate(timeout=LIMIT)
    until(lambda: not members(process.pid))
    return said


def members(session: int) -> list[int]:
    """Return the living processes of a session."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.append(int(entry.name))
    return found


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_an_error_of_the_model_is_told_and_ends_all(runs: Runs) -> None:
    process = runs.start("model.name=fails.py:Net")
    assert "CUDA error: an illegal memory access" in ended(process).splitlines()[-1]
    assert process.returncode == 1


def test_an_error_in_one_of_two_ranks_ends_the_job(runs: Runs) -> None:
    process = runs.start("model.name=fails.py:Net", ranks=2)
    assert "CUDA error: an illegal memory access" in ended(process)
    assert process.returncode == 1


def test_a_worker_that_is_killed_is_told_in_a_line(runs: Runs) -> None:
    process = runs.start()
    runs.trains()
    os.kill(children(process.pid)[0], signal.SIGKILL)
    assert "error: a process that loads images ended (it is killed by signal: Killed)" in ended(process)
    assert process.returncode == 2


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_interrupts(times: int, runs: Runs) -> None:
    process = runs.start()
    runs.trains()
    for _ in range(times):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.2)
    said = ended(process)
    assert process.returncode in ((130,) if times == 1 else (130, -signal.SIGINT))
    assert "Traceback" not in said


def test_a_signal_to_the_whole_job_saves(runs: Runs) -> None:
    process = runs.start()
    runs.trains()
    os.killpg(process.pid, signal.SIGTERM)
    assert "asked to stop and is saved" in ended(process)
    assert process.returncode == EXIT_CODE


@pytest.mark.parametrize("how", ["renamed", "removed"])
def test_a_folder_that_vanishes_is_told_in_a_line(how: str, runs: Runs) -> None:
    process = runs.start()
    runs.trains()
    runs.out.rename(runs.folder / "elsewhere")
    if how == "removed":
        shutil.rmtree(runs.folder / "elsewhere")
    said = ended(process)
    assert f"error: '{runs.out}/config.yaml' is gone" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert process.returncode == 2
    assert not runs.out.exists()


def test_the_same_command_twice_is_refused(runs: Runs) -> None:
    first = runs.start()
    runs.trains()
    for more in ([], ["resume=never", "seed=5"]):
        second = runs.start(*more)
        told = f"error: '{runs.out}' is being written by process {first.pid} on "
        assert ended(second).splitlines()[-1].startswith(told)
        assert second.returncode == 2
    os.killpg(first.pid, signal.SIGTERM)
    ended(first)
    steps = [record["step"] for record in read_metrics(runs.out)]
    assert steps == sorted(set(steps))
    assert "seed: 0" in (runs.out / "config.yaml").read_text()


def test_a_killed_run_keeps_nothing(runs: Runs) -> None:
    first = runs.start()
    runs.trains()
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    second = runs.start("train.epochs=100000")
    until(lambda: (runs.out / ".lock").is_file() and f'"process": {second.pid},' in (runs.out / ".lock").read_text())
    os.killpg(second.pid, signal.SIGTERM)
    assert "resuming" in ended(second)
    assert second.returncode == EXIT_CODE
    assert not (runs.out / ".lock").exists()


def test_ranks_end_with_a_killed_agent(runs: Runs) -> None:
    agent = runs.start(ranks=2)
    runs.trains()
    ranks = children(agent.pid)
    os.kill(agent.pid, signal.SIGKILL)
    until(lambda: not any(process_start(rank) for rank in ranks))
