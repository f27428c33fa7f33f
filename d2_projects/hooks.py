"""Detectron2 hooks that write our metrics log and show our progress bar."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase

from spark.metrics import MetricsLog
from spark.progress import TrainingProgress

TASKS = ("bbox/", "segm/")  # how the names of evaluation results begin


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
    """Show iteration, loss, rate and remaining time."""

    def __init__(self, title: str, batch: int) -> None:
        self._title, self._batch = title, batch
        self.images_per_second: float | None = None  # of training alone; None before the first step

    def before_train(self) -> None:
        """Start the bar where training starts."""
        self._progress = TrainingProgress(
            self._title, self.trainer.max_iter, self._batch, done=self.trainer.start_iter
        ).__enter__()

    def after_step(self) -> None:
        """Advance by one iteration."""
        loss, _ = self.trainer.storage.latest()["total_loss"]
        self._progress.advance(f"loss {loss:.3f}")
        self.images_per_second = self._progress.images_per_second

    def after_train(self) -> None:
        """Take the bar down."""
        self._progress.__exit__(None, None, None)
