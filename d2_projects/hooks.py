"""Detectron2 hooks that write our metrics log, show our progress bar, seed each iteration and stop when asked to."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase

from d2_projects.checkpoints import Checkpoints
from d2_projects.loader import seed_step
from spark.distributed import Ranks
from spark.metrics import MetricsLog
from spark.progress import TrainingProgress
from spark.signals import StopRequest

TASKS = ("bbox/", "segm/")  # how the names of evaluation results begin


class Stopped(BaseException):
    """Training was asked to stop, and is saved. (An Exception would be logged by Detectron2 as a failure.)"""


class SeedHook(HookBase):
    """Make what the model draws depend on the seed and the iteration alone."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def before_step(self) -> None:
        """Seed this iteration."""
        seed_step(self._seed, self.trainer.iter)


class StopHook(HookBase):
    """When a signal has reached any of the processes, save and end the training; comes last.

    After the last iteration there is nothing to stop: it is saved, and only evaluation is left.

    Raises:
        Stopped: by `after_step`.
    """

    def __init__(self, request: StopRequest, ranks: Ranks, checkpoints: Checkpoints) -> None:
        self._request, self._ranks, self._checkpoints = request, ranks, checkpoints

    def after_step(self) -> None:
        """Stop if some process was asked to."""
        done = self.trainer.iter + 1
        if self._ranks.any(self._request.received) and done < self.trainer.max_iter:
            self._checkpoints.save(done)
            raise Stopped


class MetricsHook(HookBase):
    """Every `period` iterations, and after an evaluation, append what is new to `<run>/metrics.jsonl`."""

    def __init__(self, run: Path, period: int) -> None:
        self._run, self._period = run, period

    def before_train(self) -> None:
        """Open the log; records of iterations that are about to be repeated are dropped."""
        self._log = MetricsLog(self._run, resume_step=self.trainer.start_iter)

    def after_step(self) -> None:
        """Write now and then; Detectron2 counts iterations from 0, the log counts steps from 1."""
        step = self.trainer.iter + 1
        values = self._latest()
        evaluated = any(name.startswith(TASKS) for name in values)
        if step % self._period == 0 or step == self.trainer.max_iter or evaluated:
            self._log.write(step, **values)

    def after_train(self) -> None:
        """Write the final evaluation, also the one of a run that had been trained to the end before."""
        evaluation = {name: value for name, value in self._latest().items() if name.startswith(TASKS)}
        if evaluation:
            self._log.write(self.trainer.max_iter, **evaluation)
        self._log.__exit__(None, None, None)

    def _latest(self) -> dict[str, Any]:
        """Return the finite numbers that were recorded since the last step."""
        return {
            "loss" if name == "total_loss" else name: float(value)
            for name, (value, iteration) in self.trainer.storage.latest().items()
            if iteration >= self.trainer.iter and math.isfinite(value)
            and name.startswith(("total_loss", "loss", "lr", *TASKS))
        }


class ProgressHook(HookBase):
    """Show iteration, loss, rate and remaining time; comes first, so as to time training alone."""

    def __init__(self, title: str, batch: int) -> None:
        self._title, self._batch = title, batch  # pictures in an iteration of all processes
        self._seconds, self._iterations = 0.0, 0

    @property
    def images_per_second(self) -> float | None:
        """Of all processes together, without evaluation; None before the first step."""
        return self._batch * self._iterations / self._seconds if self._iterations else None

    def before_train(self) -> None:
        """Start the bar where training starts."""
        self._progress = TrainingProgress(
            self._title, self.trainer.max_iter, self._batch, done=self.trainer.start_iter
        ).__enter__()

    def before_step(self) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def after_step(self) -> None:
        """Advance by one iteration; it has waited for the device to know the loss."""
        self._seconds += time.monotonic() - self._started
        self._iterations += 1
        loss, _ = self.trainer.storage.latest()["total_loss"]
        self._progress.advance(f"loss {loss:.3f}")

    def after_train(self) -> None:
        """Take the bar down."""
        self._progress.__exit__(None, None, None)
