"""A run's checkpoints: `last.pt` with all that is needed to go on, `previous.pt` before it, `best.pt` to evaluate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase
from torch import nn

from d2_projects.engine.trainer import Trainer
from spark.errors import UserError
from spark.runs.checkpoint import DamagedCheckpoint, HoldsObjects, load_file, load_latest, save_checkpoint
from spark.runs.folder import check_still_there, told_if_gone
from spark.utils.files import atomic_path, torch_save
from spark.utils.state_dict import load_optimizer, load_strictly

BEST = "best.pt"
REMOVED = "remove it, and the best from here on is kept"  # the remedy, where it cannot be read


class Checkpoints:
    """Saves and restores a training; its files have Detectron2's key "model", so DetectionCheckpointer reads them, too.

    Args:
        folder: where they are.
        model: not wrapped for several processes.
        trainer: whose optimizer and gradient scaler belong to it.
        clock: counts the run's seconds; has `state_dict` and `load_state_dict`.
        writes: whether this process saves.
    """

    def __init__(self, folder: Path, model: nn.Module, trainer: Trainer, clock: Any, writes: bool = True) -> None:
        self.folder, self._model, self._trainer, self._clock, self._writes = folder, model, trainer, clock, writes

    def save(self, iterations: int) -> None:
        """Save after so many iterations."""
        if self._writes:
            check_still_there(self.folder.parent)
            with told_if_gone(self.folder.parent):
                save_checkpoint(self.folder, {
                    "model": self._model.state_dict(),
                    "optimizer": self._trainer.optimizer.state_dict(),
                    "grad_scaler": self._trainer.grad_scaler.state_dict(),
                    "iterations": iterations,
                    "clock": self._clock.state_dict(),
                })

    def resume(self) -> int:
        """Go back to the last whole checkpoint, if there is any; return how many iterations are done.

        Raises:
            UserError: there are checkpoints, but none is whole; or they are of another model.
        """
        state = load_latest(self.folder, self._restore)
        return 0 if state is None else int(state["iterations"])

    def _restore(self, state: Mapping[str, Any]) -> None:
        load_strictly(self._model, state["model"], f"the checkpoint in '{self.folder}' (resume=never starts again)",
                      "the recipe's model")
        load_optimizer(self._trainer.optimizer, state["optimizer"], f"the checkpoint in '{self.folder}'")
        if state["grad_scaler"]:  # empty, if it was off: precision may change when a run goes on
            self._trainer.grad_scaler.load_state_dict(state["grad_scaler"])
        self._clock.load_state_dict(state["clock"])
        int(state["iterations"])


class CheckpointHook(HookBase):
    """Save every `period` iterations, and after the last."""

    def __init__(self, checkpoints: Checkpoints, period: int) -> None:
        self._checkpoints, self._period = checkpoints, period

    def after_step(self) -> None:
        """Save if it is time."""
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            self._checkpoints.save(done)


class BestHook(HookBase):
    """After each evaluation, keep the model if this metric was never as high before; comes after `EvaluationHook`."""

    def __init__(self, folder: Path, model: nn.Module, metric: str) -> None:
        self._file, self._model, self._metric = folder / BEST, model, metric

    def before_train(self) -> None:
        """Read the best value so far."""
        self._best = best_of(self._file.parent, self._metric)
        if self.trainer.start_iter < self.trainer.max_iter:  # `EvaluationHook` may have caught up on an evaluation
            self._compare(self.trainer.start_iter, self.trainer.start_iter - 1)

    def after_step(self) -> None:
        """Compare an evaluation in mid-training."""
        self._compare(self.trainer.iter + 1, self.trainer.iter)

    def after_train(self) -> None:
        """Compare the final evaluation, if training came that far."""
        if self.trainer.iter >= self.trainer.max_iter:
            self._compare(self.trainer.max_iter, self.trainer.iter)

    def _compare(self, done: int, recorded: int) -> None:
        """Compare the evaluation after `done` iterations, which Detectron2 has recorded as of iteration `recorded`."""
        value, iteration = self.trainer.storage.latest().get(self._metric, (math.nan, -1))
        if iteration != recorded or math.isnan(value):  # none was made, or it was undefined
            return
        if self._best is None or value > self._best:
            self._best = float(value)
            content = {"model": self._model.state_dict(), "iterations": done, self._metric: self._best}
            with atomic_path(self._file) as temporary:
                torch_save(content, temporary)


def best_of(folder: Path, metric: str) -> float | None:
    """Return the metric of the best checkpoint in a run's folder of checkpoints; None if there is no such.

    Raises:
        UserError: there is a file, but it is damaged, or of something else.
    """
    file = folder / BEST
    if not file.is_file():
        return None
    try:
        value = _mapping(load_file(file), file).get(metric)
    except (DamagedCheckpoint, HoldsObjects) as error:
        raise UserError(f"{error}; {REMOVED}") from None
    if not isinstance(value, int | float):
        raise UserError(f"the checkpoint '{file}' does not say its {metric}, by which the best is told; {REMOVED}")
    return float(value)


def load_model(model: nn.Module, file: Path) -> None:
    """Load the model of a checkpoint of ours or of Detectron2's `.pth`, every tensor of it.

    Raises:
        UserError: it is missing or damaged, or of another model.
    """
    content = _mapping(load_file(file), file)
    load_strictly(model, content.get("model", content), f"the checkpoint '{file}'", "the recipe's model")


def _mapping(content: Any, file: Path) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise DamagedCheckpoint(f"'{file}' is no checkpoint of a run: it holds a {type(content).__name__}")
    return content
