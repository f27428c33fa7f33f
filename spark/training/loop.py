"""The training loop of all trainings: it can be read from top to bottom, and killed at any moment.

What a step draws at random follows from the seed and the step's number alone (a learner sees to that). So a run that
was killed and resumed has the numbers of one that never stopped, without any random generator's state being kept.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spark.config.identity import acting
from spark.config.recipe import save_resolved, to_yaml
from spark.data.unreadable import NamedImages, UnreadableFiles
from spark.errors import UserError
from spark.runs.checkpoint import load_latest, save_checkpoint
from spark.runs.folder import CHECKPOINTS, CONFIG, check_run_folder
from spark.runs.metrics import MetricsLog
from spark.training.guard import LR_FACTOR, Counts, DivergedError, NonFiniteGuard, check_counts, check_rollback
from spark.training.optim import learning_rate_at
from spark.utils.distributed import Ranks
from spark.utils.progress import TrainingProgress
from spark.utils.signals import StopRequest

UNREADABLE = "unreadable_files.txt"
LOSS = "loss"


class Learner(ABC):
    """What is trained: it has the batches, knows how to do a step, and what to look at between two epochs.

    Attributes:
        images: that it is trained on, to name those that cannot be read.
        steps_per_epoch: whole batches of these.
        guard: leaves out steps that are not finite; None: there is none.
        resolved: what settings that say `auto` came to, such as {"precision": "float32"}; a resumed run keeps it.
        status: what a person wants to see beside the loss.
    """

    images: NamedImages
    steps_per_epoch: int
    guard: NonFiniteGuard | None = None
    resolved: Mapping[str, str]
    status: str = ""

    @abstractmethod
    def batches(self, first_step: int) -> Iterable[Any]:
        """Return this process's batches of the steps from `first_step` on; each has an entry `unreadable` [B]."""

    @abstractmethod
    def step(self, batch: Any, number: int, lr: float) -> dict[str, Any]:
        """Do one update.

        Args:
            batch: of `batches`.
            number: of the step, from 0.
            lr: learning rate of the step, by the schedule.

        Returns:
            What is to be logged, in the log's order: numbers, or scalars on the device. LOSS is the one over all
            processes, NaN if the update was left out; the log has its mean since the last record.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on, beside what the loop keeps."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state that `state_dict` returned.

        Raises:
            UserError: it is of another training.
        """

    def check_fresh(self, run: Path) -> None:
        """Look at a folder without checkpoints that the run is to begin in; UserError if it must not."""

    def begin(self) -> None:
        """Do what a training does once, before its first step."""

    def describe(self) -> None:
        """Say how the steps are computed."""

    def look(self, epochs_done: int, last: bool) -> dict[str, float]:
        """Return what is found out after so many epochs, by name; all processes must ask, the first gets the answer.

        Before the first step `epochs_done` is 0.
        """
        return {}

    def draw(self, epochs_done: int, last: bool) -> None:
        """Draw into the run's folder what there is to see after an epoch; only the main process is asked."""


@dataclass(frozen=True)
class Schedule:
    """How long to train, and what to do on the way.

    Attributes:
        lr: the peak of the learning rate.
        epochs: in all.
        warmup_epochs: in which the rate rises.
        batch: images of a step, over all processes.
        record_steps: the loss is read from the device, and logged, once in so many steps, and at ends of epochs.
        checkpoint_minutes: a checkpoint is written every so many minutes, too.
        checkpoint_epochs: and at the end of every so many epochs.
        may_roll_back: after steps that were not finite, to the last checkpoint.
        precision_key: the setting that chooses the precision, for advice.
    """

    lr: float
    epochs: int
    warmup_epochs: int
    batch: int
    record_steps: int
    checkpoint_minutes: float
    checkpoint_epochs: int = 1
    may_roll_back: bool = False
    precision_key: str = "precision"


class Training:
    """A training between two steps.

    Args:
        title: for people.
        config: of the run; a dataclass with `out`, `resume` and FREE_TO_CHANGE.
        schedule: of the training.
        learner: what is trained.
        ranks: the processes.
        yields: names of files and folders that the run leaves beside those that the loop writes.
    """

    def __init__(
        self, title: str, config: Any, schedule: Schedule, learner: Learner, ranks: Ranks, yields: Collection[str] = ()
    ) -> None:
        self._title, self._config, self._schedule = title, config, schedule
        self._learner, self._ranks, self._yields = learner, ranks, yields
        self._run = Path(config.out)
        self.total_steps = schedule.epochs * learner.steps_per_epoch
        self.step = 0  # steps done
        self.steps_done_here = 0  # and of these, by this process
        self.saved_step = 0  # steps done at the last checkpoint: a bad step's state is not saved
        self._losses: list[Tensor] = []  # since the last record, still on the device
        self._rollbacks = 0

    @property
    def finished(self) -> bool:
        """Whether no step is left."""
        return self.step == self.total_steps

    def complete(self, request: StopRequest) -> bool:
        """Begin the run in its folder, or go on with it; return whether it is finished, and not only stopped.

        Raises:
            UserError: the folder holds another run; or loss and gradient stay not finite, and no lower learning rate
                helps, or may be tried.
        """
        run, ranks = self._run, self._ranks
        there = ranks.on_main(self._prepare)  # a damaged checkpoint is set aside before others look
        if there and (checkpoint := load_latest(run / CHECKPOINTS)):
            self._check_precision(checkpoint)
            self.load_state_dict(checkpoint)
            if not self.finished:
                self._say_resumed(checkpoint.get("processes", ranks.size))
        else:
            self._learner.begin()
        if self.finished:
            return True
        if ranks.is_main:
            save_resolved(self._config, run / CONFIG)
        ranks.log(to_yaml(self._config))
        self._learner.describe()
        if self._schedule.may_roll_back and self.step == 0 and ranks.is_main:
            save_checkpoint(run / CHECKPOINTS, self.state_dict())  # something to go back to
        while True:
            try:
                self._train(request)
                return self.finished
            except DivergedError as error:
                self._roll_back(error)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on."""
        return {
            "step": self.step,
            "processes": self._ranks.size,
            "losses": torch.stack(self._losses).cpu() if self._losses else torch.empty(0),
            "skipped": self._counts().total,
            "rollbacks": self._rollbacks,
            "resolved": dict(self._learner.resolved),
            **self._learner.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state that `state_dict` returned.

        Raises:
            UserError: it is of another training.
        """
        self._learner.load_state_dict(state)
        if self._learner.guard:
            self._learner.guard.reset(state.get("skipped", 0))  # older runs did not count
        self._losses = list(state["losses"].to(self._ranks.device))
        self._rollbacks = state.get("rollbacks", 0)
        self.step = self.saved_step = state["step"]

    def _prepare(self) -> bool:
        """Make sure that the run may live in its folder; return whether there is a checkpoint to go on from."""
        check_run_folder(self._run, self._config, self._config.resume == "never", (UNREADABLE, *self._yields))
        there = load_latest(self._run / CHECKPOINTS) is not None
        if not there:
            self._learner.check_fresh(self._run)
        return there

    def _check_precision(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuse to go on in another precision than the run began in; older checkpoints do not tell theirs."""
        before = checkpoint.get("resolved")
        if before is not None and acting(before) != acting(self._learner.resolved):
            key = self._schedule.precision_key
            raise UserError(f"'{self._run}' was begun in {before[key]}; pass {key}={before[key]}, another out=…, or "
                            "resume=never to replace it")

    def _say_resumed(self, processes: int) -> None:
        self._ranks.log(f"resuming {self._run} after step {self.step} of {self.total_steps}")
        if processes != self._ranks.size:
            self._ranks.log(
                f"it ran in {processes} processes and goes on in {self._ranks.size}: "
                "the same images, equal to rounding, but other draws of drop path"
            )

    def _train(self, request: StopRequest) -> None:
        """Train, with a checkpoint after epochs, every few minutes, and when asked to stop.

        Then the step is finished first: a resumed run repeats nothing.
        """
        schedule, learner, ranks, run = self._schedule, self._learner, self._ranks, self._run
        batches = learner.batches(self.step)
        unreadable = UnreadableFiles(learner.images, run / UNREADABLE if ranks.is_main else None)
        saved = time.monotonic()
        status = ""
        with (
            MetricsLog(run, self.step, quiet=not ranks.is_main) as log,
            TrainingProgress(
                self._title, self.total_steps, schedule.batch, self.step, quiet=not ranks.is_main
            ) as progress,
        ):
            if self.step == 0 and (found := learner.look(epochs_done=0, last=False)):
                log.write(0, epoch=0.0, **found)
            for batch in batches if not self.finished else ():
                unreadable.note(batch.unreadable)
                values = learner.step(batch, self.step, self._lr())
                self._losses.append(values[LOSS])
                self.step += 1
                self.steps_done_here += 1
                epochs_done, into_epoch = divmod(self.step, learner.steps_per_epoch)
                if into_epoch == 0 or self.step % schedule.record_steps == 0:
                    status = self._record(log, values) or status
                progress.advance(status)
                # What is drawn comes before the checkpoint: a run that is killed in between draws it again.
                if ranks.is_main and into_epoch == 0:
                    learner.draw(epochs_done, self.finished)
                stop = ranks.any(request.received)
                if into_epoch == 0 or stop:
                    for indices in ranks.gather(sorted(unreadable.found)):  # the first one's report names all
                        unreadable.note(torch.tensor(indices, dtype=torch.long))
                due = into_epoch == 0 and (epochs_done % schedule.checkpoint_epochs == 0 or self.finished)
                if due or stop or time.monotonic() - saved > 60 * schedule.checkpoint_minutes:
                    if ranks.is_main and not self._counts().row:  # else the last good checkpoint stays
                        save_checkpoint(run / CHECKPOINTS, self.state_dict())
                        self.saved_step = self.step
                    saved = time.monotonic()
                if stop:
                    break
        ranks.log(unreadable.summary())

    def _record(self, log: MetricsLog, values: Mapping[str, Any]) -> str:
        """Log the steps since the last record, and at an epoch's end what the learner finds out.

        Returns:
            What a person wants to see of it; "" if the last step was bad, and the record has to wait.

        Raises:
            DivergedError: there were too many bad steps.
        """
        bad = self._counts()
        if self._learner.guard:
            self._learner.guard.forget()
        check_counts(bad, self.step, self.finished)
        if bad.row:
            return ""
        loss = torch.stack(self._losses).nanmean().item()
        self._losses = []
        if not math.isfinite(loss):
            raise DivergedError(f"loss or gradient is no longer finite near step {self.step}")
        logged = {
            name: loss if name == LOSS else value.item() if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        logged |= {"skipped": bad.total} if bad.total else {}
        epochs_done, into_epoch = divmod(self.step, self._learner.steps_per_epoch)
        if into_epoch == 0:
            logged |= self._learner.look(epochs_done, self.finished)
        log.write(self.step, epoch=self.step / self._learner.steps_per_epoch, **logged)
        return f"epoch {math.ceil(self.step / self._learner.steps_per_epoch)} loss {loss:.4f}{self._learner.status}"

    def _lr(self) -> float:
        """Return the next step's learning rate."""
        warmup = self._schedule.warmup_epochs * self._learner.steps_per_epoch
        peak = self._schedule.lr * LR_FACTOR**self._rollbacks
        return learning_rate_at(self.step, self.total_steps, warmup, peak)

    def _counts(self) -> Counts:
        """Return how many steps were left out; the host waits for the device."""
        return self._learner.guard.counts() if self._learner.guard else Counts(0, 0, 0)

    def _roll_back(self, error: DivergedError) -> None:
        """Go back to the last checkpoint, with a lower learning rate from there on.

        Raises:
            UserError: that is not wanted, or was done often enough.
        """
        check_rollback(error, self._schedule.may_roll_back, self._rollbacks, self._schedule.precision_key)
        rollbacks, checkpoint = self._rollbacks + 1, load_latest(self._run / CHECKPOINTS)
        assert checkpoint is not None  # there is one from the beginning
        self.load_state_dict(checkpoint)
        self._rollbacks = rollbacks
        # All have read what the first is about to replace. Were it not, a killed run would diverge once more.
        self._ranks.on_main(lambda: save_checkpoint(self._run / CHECKPOINTS, self.state_dict()))
        self._ranks.log(f"{error}: back to step {self.step}, with {LR_FACTOR**rollbacks:g} of the learning rate")
