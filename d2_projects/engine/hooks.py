"""Detectron2 hooks that write our metrics log, show our progress bar, seed each iteration and stop when asked to."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase, hooks

from d2_projects.data.loader import seed_step
from d2_projects.engine.checkpoints import Checkpoints
from spark.runs.metrics import MetricsLog, read_metrics
from spark.utils.distributed import Ranks
from spark.utils.progress import TrainingProgress
from spark.utils.signals import StopRequest


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


class EvaluationHook(hooks.EvalHook):
    """Evaluate every `period` iterations and at the end; a resumed run first catches up on what a kill prevented.

    A checkpoint is saved before it is evaluated, so a run may go on from one whose evaluation is missing in the log.

    Args:
        run: the run's folder.
        period: in iterations; 0: only at the end.
        evaluate: returns nested results, in the first process.
        ranks: the processes.
        results: how the names of evaluation results begin.
    """

    def __init__(
        self, run: Path, period: int, evaluate: Callable[[], dict[str, Any]], ranks: Ranks, results: tuple[str, ...]
    ) -> None:
        super().__init__(period, evaluate)
        self._run, self._ranks, self._results = run, ranks, results

    def before_train(self) -> None:
        """Evaluate where the log lacks the evaluation of the checkpoint that the run goes on from."""
        start = self.trainer.start_iter
        if start and self._period and start % self._period == 0 and start < self.trainer.max_iter and (
            not self._ranks.on_main(lambda: evaluated(self._run, start, self._results))
        ):
            self.trainer.storage.iter = start - 1  # when it was due
            self._do_eval()
            self.trainer.storage.iter = start


def evaluated(run: Path, step: int, results: tuple[str, ...]) -> bool:
    """Return whether a run's log has the evaluation after some iteration; the names of its results begin with these."""
    return any(record["step"] == step and any(name.startswith(results) for name in record)
               for record in read_metrics(run))


class MetricsHook(HookBase):
    """Every `period` iterations, and after an evaluation, append what is new to `<run>/metrics.jsonl`.

    Args:
        run: the run's folder.
        period: in iterations.
        results: how the names of evaluation results begin.
    """

    def __init__(self, run: Path, period: int, results: tuple[str, ...]) -> None:
        self._run, self._period, self._results = run, period, results

    def before_train(self) -> None:
        """Open the log; records of iterations that are about to be repeated are dropped."""
        start = self.trainer.start_iter
        self._log = MetricsLog(self._run, resume_step=start)
        if evaluation := self._evaluation(start - 1):  # that an earlier process did not come to
            self._log.write(start, **evaluation)

    def after_step(self) -> None:
        """Write now and then; Detectron2 counts iterations from 0, the log counts steps from 1."""
        step = self.trainer.iter + 1
        values = self._latest(self.trainer.iter)
        has_evaluation = any(name.startswith(self._results) for name in values)
        if step % self._period == 0 or step == self.trainer.max_iter or has_evaluation:
            self._log.write(step, **values)

    def after_train(self) -> None:
        """Write the final evaluation, also the one of a run that had been trained to the end before."""
        if evaluation := self._evaluation(self.trainer.iter):
            self._log.write(self.trainer.max_iter, **evaluation)
        self._log.__exit__(None, None, None)

    def _evaluation(self, since: int) -> dict[str, Any]:
        return {name: value for name, value in self._latest(since).items() if name.startswith(self._results)}

    def _latest(self, since: int) -> dict[str, Any]:
        """Return the finite numbers that were recorded since an iteration."""
        return {
            "loss" if name == "total_loss" else name: float(value)
            for name, (value, iteration) in self.trainer.storage.latest().items()
            if iteration >= since and math.isfinite(value)
            and name.startswith(("total_loss", "loss", "lr", *self._results))
        }


class ProgressHook(HookBase):
    """Show iteration, loss, rate and remaining time; the first hook, so that it times training alone."""

    def __init__(self, title: str, batch: int) -> None:
        self._title, self._batch = title, batch  # images in an iteration of all processes
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
