"""The loop of supervised training, which may be killed at any moment: fine-tuning and linear probes run in it.

What a step draws at random follows from the seed and the step's number alone. So a run that was killed and resumed has
the numbers of one that never stopped, without any random generator's state being kept.
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval_suite.classification.config import EvaluationConfig
from eval_suite.classification.data import Data, TrainSampler, train_loader
from spark.config.recipe import save_resolved, to_yaml
from spark.data.unreadable import UnreadableFiles
from spark.errors import UserError
from spark.runs.checkpoint import load_latest, save_checkpoint
from spark.runs.folder import CHECKPOINTS, CONFIG, check_run_folder
from spark.runs.metrics import MetricsLog
from spark.runs.record import FILE_NAME as RESULT
from spark.training.guard import LR_FACTOR, Counts, DivergedError, check_counts, check_rollback
from spark.training.optim import learning_rate_at
from spark.utils.distributed import Ranks
from spark.utils.progress import TrainingProgress
from spark.utils.signals import StopRequest

STEPS_PER_RECORD = 100  # the loss is read from the device, and logged, once in so many steps and at ends of epochs
UNREADABLE = "unreadable_files.txt"


class Learner(ABC):
    """What is trained: it knows how to do a step and how good it is."""

    @abstractmethod
    def step(self, images: Tensor, labels: Tensor, number: int, rate: float) -> Tensor:
        """Do one update.

        Args:
            images: this process's share of the batch, [B, 3, H, W], on the CPU.
            labels: [B].
            number: of the step, from 0.
            rate: learning rate of the step, by the schedule.

        Returns:
            The loss over all processes, still on the device; NaN if the update was left out.
        """

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Return metrics in percent, the same in all processes."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state that `state_dict` returned."""

    def bad_steps(self) -> Counts:
        """Return how many updates were left out since the last call."""
        return Counts(0, 0, 0)


@dataclass(frozen=True)
class Schedule:
    """How long to train, and what to do on the way; as in `finetune_config.TrainConfig`."""

    peak: float  # learning rate
    epochs: int
    warmup_epochs: int
    batch: int
    evaluate_epochs: int
    checkpoint_minutes: float
    may_roll_back: bool = False
    repeats: int = 0


class Training:
    """A training between two steps.

    Args:
        title: for people.
        config: of the run.
        schedule: of the training.
        learner: what is trained.
        data: to train on.
        ranks: the processes.
        origin: what the numbers come from, beside the configuration: data and initial weights, by content.
    """

    def __init__(
        self, title: str, config: EvaluationConfig, schedule: Schedule, learner: Learner, data: Data, ranks: Ranks,
        origin: Mapping[str, Any],
    ) -> None:
        self._title, self._config, self._schedule = title, config, schedule
        self._learner, self._data, self._ranks = learner, data, ranks
        self._origin = json.loads(json.dumps(origin))
        self._steps_per_epoch = self._sampler().steps_per_epoch
        self._total = schedule.epochs * self._steps_per_epoch
        self.step = 0  # steps done
        self.results: dict[str, float] = {}  # of the last evaluation
        self.best: dict[str, float] = {}  # of all evaluations, each metric by itself
        self._losses: list[Tensor] = []  # since the last record, still on the device
        self._rollbacks = 0
        self._seconds = 0.0  # of work, over all processes that worked on this run one after the other
        self._training_seconds = 0.0  # of these, without evaluations, up to the last record
        self._since: float | None = None  # when training went on after it; None while nothing is trained
        self._resumed = time.monotonic()

    def complete(self, request: StopRequest, yields: Collection[str] = ()) -> bool:
        """Begin the run in its folder, or go on with it; return whether it is finished, and not only stopped.

        Args:
            request: to stop.
            yields: names of files that the run leaves beside its result.

        Raises:
            UserError: the folder holds another run, or the training diverged.
        """
        run, ranks = Path(self._config.out), self._ranks
        there = ranks.on_main(lambda: self._prepare(run, yields))
        if there and (checkpoint := load_latest(run / CHECKPOINTS)):
            self._check_same(checkpoint, run)
            self.load_state_dict(checkpoint)
            if not self.finished:
                ranks.log(f"resuming {run} after step {self.step} of {self._total}")
        if ranks.is_main:
            save_resolved(self._config, run / CONFIG)
        if self.finished:
            return True
        ranks.log(to_yaml(self._config))
        self._resumed = time.monotonic()
        if self._schedule.may_roll_back and self.step == 0 and ranks.is_main:
            save_checkpoint(run / CHECKPOINTS, self.state_dict())  # something to go back to
        while True:
            try:
                self._train(run, request)
                break
            except DivergedError as error:
                self._roll_back(run, error)
        return self.finished

    @property
    def finished(self) -> bool:
        """Whether no step is left."""
        return self.step == self._total

    @property
    def seconds(self) -> float:
        """How long the run has taken, interruptions left out."""
        return self._seconds + time.monotonic() - self._resumed

    @property
    def images_per_second(self) -> float | None:
        """Throughput of training, evaluations left out."""
        images = self.step * self._schedule.batch
        return images / self._trained if self._trained else None

    @property
    def _trained(self) -> float:
        """How long was trained, until now."""
        return self._training_seconds + (time.monotonic() - self._since if self._since is not None else 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on."""
        return {
            "origin": self._origin, "step": self.step, "results": self.results, "best": self.best,
            "losses": torch.stack(self._losses).cpu() if self._losses else torch.empty(0),
            "rollbacks": self._rollbacks, "seconds": self.seconds, "training_seconds": self._trained,
            **self._learner.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state that `state_dict` returned."""
        self.step, self.results, self.best = state["step"], state["results"], state["best"]
        self._losses = list(state["losses"].to(self._ranks.device))
        self._rollbacks = state["rollbacks"]
        self._seconds, self._training_seconds = state["seconds"], state["training_seconds"]
        self._resumed, self._since = time.monotonic(), None
        self._learner.load_state_dict(state)

    def _prepare(self, run: Path, yields: Collection[str]) -> bool:
        """Make sure that the run may live in its folder; return whether there is a checkpoint to go on from."""
        fresh = self._config.resume == "never"
        check_run_folder(run, self._config, fresh, (RESULT, UNREADABLE, *yields))
        there = load_latest(run / CHECKPOINTS) is not None
        if not there and (run / RESULT).is_file():
            raise UserError(f"'{run}' holds a result, but its training's checkpoint is gone; pass another out=…, "
                            "or resume=never to replace it")
        return there

    def _check_same(self, checkpoint: Mapping[str, Any], run: Path) -> None:
        """Refuse to go on with a checkpoint that came from other data or another encoder, by content."""
        names = {"data": "other data", "init": "another encoder"}
        before = checkpoint.get("origin", {})
        changed = [names[key] for key, value in self._origin.items() if before.get(key) != value]
        if changed:
            raise UserError(f"'{run}' holds a run with {' and '.join(changed)}; pass another out=…, or resume=never "
                            "to replace it")

    def _train(self, run: Path, request: StopRequest) -> None:
        """Train, with a checkpoint after each epoch, every few minutes, and when asked to stop."""
        schedule, ranks = self._schedule, self._ranks
        loader = train_loader(
            self._data.train, self._sampler(self.step), schedule.batch, self._config.data.workers, ranks
        )
        unreadable = UnreadableFiles(self._data.train.images, run / UNREADABLE if ranks.is_main else None)
        saved = self._since = time.monotonic()
        status = ""
        with (
            MetricsLog(run, self.step, quiet=not ranks.is_main) as log,
            TrainingProgress(self._title, self._total, schedule.batch, self.step, quiet=not ranks.is_main) as progress,
        ):
            for images, labels, missing in loader:
                unreadable.note(missing)
                rate = self._rate()
                self._losses.append(self._learner.step(images, labels, self.step, rate))
                self.step += 1
                epochs_done, into_epoch = divmod(self.step, self._steps_per_epoch)
                good = True
                if into_epoch == 0 or self.step % STEPS_PER_RECORD == 0:
                    values = self._values()
                    good = bool(values)
                    self._training_seconds, self._since = self._trained, None
                    if good and into_epoch == 0 and (epochs_done % schedule.evaluate_epochs == 0 or self.finished):
                        values |= self._evaluate()
                    if good:
                        log.write(self.step, epoch=self.step / self._steps_per_epoch, lr=rate, **values)
                        status = f"epoch {-(-self.step // self._steps_per_epoch)} loss {values['loss']:.4f}"
                    self._since = time.monotonic()
                progress.advance(status)
                stop = ranks.any(request.received)
                if into_epoch == 0 or stop or time.monotonic() - saved > 60 * schedule.checkpoint_minutes:
                    if ranks.is_main and good:  # else the last good checkpoint stays
                        save_checkpoint(run / CHECKPOINTS, self.state_dict())
                    saved = time.monotonic()
                if stop:
                    break
        self._training_seconds, self._since = self._trained, None
        ranks.log(unreadable.summary())

    def _values(self) -> dict[str, float]:
        """Return what is to be logged of the steps since the last record; {} if the last step was bad, and it waits.

        Raises:
            DivergedError: there were too many bad steps.
        """
        bad = self._learner.bad_steps()
        check_counts(bad, self.step, self.finished)
        if bad.row:
            return {}
        loss = torch.stack(self._losses).nanmean().item()
        self._losses = []
        if not math.isfinite(loss):
            raise DivergedError(f"loss or gradient is no longer finite near step {self.step}")
        return {"loss": loss, **({"skipped": bad.total} if bad.total else {})}

    def _evaluate(self) -> dict[str, float]:
        self.results = self._learner.evaluate()
        self.best = {name: max(value, self.best.get(name, value)) for name, value in self.results.items()}
        return self.results

    def _rate(self) -> float:
        """Return the next step's learning rate."""
        warmup = self._schedule.warmup_epochs * self._steps_per_epoch
        return learning_rate_at(self.step, self._total, warmup, self._schedule.peak * LR_FACTOR**self._rollbacks)

    def _roll_back(self, run: Path, error: DivergedError) -> None:
        """Go back to the last checkpoint, with a lower learning rate from there on.

        Raises:
            UserError: that is not wanted, or was done often enough.
        """
        check_rollback(error, self._schedule.may_roll_back, self._rollbacks, "precision")
        rollbacks, checkpoint = self._rollbacks + 1, load_latest(run / CHECKPOINTS)
        assert checkpoint is not None  # there is one from the beginning
        self.load_state_dict(checkpoint)
        self._rollbacks = rollbacks
        # All have read what the first is about to replace. Were it not, a killed run would diverge once more.
        self._ranks.on_main(lambda: save_checkpoint(run / CHECKPOINTS, self.state_dict()))
        self._ranks.log(f"{error}: back to step {self.step}, with {LR_FACTOR**rollbacks:g} of the learning rate")

    def _sampler(self, first_step: int = 0) -> TrainSampler:
        schedule = self._schedule
        return TrainSampler(
            len(self._data.train), schedule.batch, schedule.epochs, self._config.seed, schedule.repeats, first_step
        )
