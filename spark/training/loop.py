"""The training loop shared by all trainings; it can be killed at any moment and resumed.

The randomness of a step depends on the seed and the step's number only (the learner is responsible for that). A
resumed run therefore reproduces the numbers of an uninterrupted one, without saving random generator states.
"""

from __future__ import annotations

import dataclasses
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spark.config.choices import DEFAULT_COURSE
from spark.config.identity import acting
from spark.config.recipe import save_resolved, to_yaml
from spark.data.unreadable import NamedImages, UnreadableFiles
from spark.errors import UserError
from spark.runs.checkpoint import load_latest, save_checkpoint
from spark.runs.folder import CHECKPOINTS, CONFIG, changes, check_run_folder, check_still_there, told_if_gone
from spark.runs.metrics import MetricsLog
from spark.training.guard import LR_FACTOR, Counts, DivergedError, NonFiniteGuard, check_counts, check_rollback
from spark.training.optim import learning_rate_at
from spark.utils.distributed import Ranks
from spark.utils.printable import counted
from spark.utils.progress import TrainingProgress
from spark.utils.signals import StopRequest
from spark.utils.state_dict import MisfitError

UNREADABLE = "unreadable_files.txt"
LOSS = "loss"
SETTINGS = "settings"  # checkpoint key: the configuration
CHECKSUM_OF_IMAGES = "images_checksum"  # checkpoint key, beside their identity; older versions' have none


class Learner(ABC):
    """What is trained: provides the batches, the training step, and the evaluation between epochs.

    Attributes:
        images: the training images, to name those that cannot be read.
        steps_per_epoch: full batches per epoch.
        guard: non-finite guard, or None.
        resolved: resolved values of `auto` settings, such as {"precision": "float32"}; a resumed run keeps them.
        status: text shown beside the loss.
    """

    images: NamedImages
    steps_per_epoch: int
    guard: NonFiniteGuard | None = None
    resolved: Mapping[str, str]
    status: str = ""

    @abstractmethod
    def batches(self, first_step: int) -> Iterable[Any]:
        """Return this process's batches, starting at step `first_step`; each has an entry `unreadable` [B]."""

    @abstractmethod
    def step(self, batch: Any, number: int, lr: float) -> dict[str, Any]:
        """Run one training step.

        Args:
            batch: of `batches`.
            number: step number, from 0.
            lr: scheduled learning rate of the step.

        Returns:
            The values to log, in order: numbers, or scalars on the device. LOSS is the mean over all processes, NaN if
            the update was skipped; the log has its mean since the last record.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the state needed to resume, besides that of the loop."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state that `state_dict` returned.

        Raises:
            UserError: the state belongs to another training.
        """

    def check_fresh(self, run: Path) -> None:
        """Check a folder without checkpoints before a new run starts in it; raise UserError if it must not."""

    def begin(self) -> None:
        """Run once, before the first step of a new training."""

    def describe(self) -> None:
        """Log how the steps are computed."""

    def look(self, epochs_done: int, last: bool) -> dict[str, float]:
        """Evaluate after `epochs_done` epochs; return values by name. Called on all ranks; the main process gets them.

        Before the first step `epochs_done` is 0.
        """
        return {}

    def draw(self, epochs_done: int, last: bool) -> None:
        """Write plots and images into the run's folder after an epoch; only called on the main process."""


@dataclass(frozen=True)
class Schedule:
    """Length of a training, its peak lr, and the intervals of logging and checkpoints.

    Attributes:
        lr: peak learning rate.
        epochs: total epochs.
        warmup_epochs: epochs of lr warm-up.
        batch: images per step, over all processes.
        record_steps: interval, in steps, at which the loss is read from the device and logged; also at epoch ends.
        checkpoint_minutes: interval of checkpoints in minutes.
        checkpoint_epochs: interval of checkpoints in epochs.
        may_roll_back: whether to roll back to the last checkpoint after non-finite steps.
        precision_key: dotted key of the precision setting, for error messages.
        course: how the learning rate rises and falls, a name in `optim.COURSES`.
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
    course: str = DEFAULT_COURSE

    def warmup_steps(self, total: int) -> int:
        """Return how many of all steps are warm-up: a tenth at most where it would not end before the training."""
        return total // 10 if self._too_short else self.warmup_epochs * total // self.epochs

    def notes(self, total: int) -> list[str]:
        """Return what is not as the settings say, in lines."""
        return [
            f"train.warmup_epochs={self.warmup_epochs} is not less than train.epochs={self.epochs}: warm-up is "
            f"shortened to {counted(self.warmup_steps(total), 'step')} of {total:,}"
        ] * self._too_short

    @property
    def _too_short(self) -> bool:
        return self.warmup_epochs >= self.epochs


class Training:
    """The state of a training between two steps, and the loop that advances it.

    Args:
        title: shown with the progress.
        config: configuration of the run; a dataclass with `out`, `resume` and FREE_TO_CHANGE.
        schedule: length and intervals of the training.
        learner: what is trained.
        ranks: the processes.
        yields: names of the files and folders that the run writes besides those of the loop.
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
        """Whether all steps are done."""
        return self.step == self.total_steps

    def complete(self, request: StopRequest) -> bool:
        """Start or resume the run in its folder; return whether it finished (False: it was stopped).

        Raises:
            UserError: the folder holds another run; or loss and gradient remain non-finite, and a lower learning rate
                does not help or may not be tried.
        """
        run, ranks = self._run, self._ranks
        there = ranks.on_main(self._prepare)  # sets a damaged checkpoint aside before other ranks read
        if there and (checkpoint := load_latest(run / CHECKPOINTS)):
            self._go_on_from(checkpoint)
            if not self.finished:
                self._say_resumed(checkpoint.get("processes", ranks.size))
        else:
            self._learner.begin()
        if self.finished:
            return True
        if ranks.is_main:
            save_resolved(self._config, run / CONFIG)
        ranks.log(to_yaml(self._config))
        for note in self._schedule.notes(self.total_steps):
            ranks.log(note)
        self._learner.describe()
        if self._schedule.may_roll_back and self.step == 0 and ranks.is_main:
            save_checkpoint(run / CHECKPOINTS, self.state_dict())  # for a rollback
        while True:
            try:
                self._train(request)
                return self.finished
            except DivergedError as error:
                self._roll_back(error)

    def state_dict(self) -> dict[str, Any]:
        """Return the state needed to resume."""
        return {
            "step": self.step,
            "processes": self._ranks.size,
            "losses": torch.stack(self._losses).cpu() if self._losses else torch.empty(0),
            "skipped": self._counts().total,
            "rollbacks": self._rollbacks,
            "resolved": dict(self._learner.resolved),
            SETTINGS: dataclasses.asdict(self._config),
            CHECKSUM_OF_IMAGES: self._learner.images.checksum,
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
        """Check that the run may use its folder; return whether there is a checkpoint to resume from."""
        check_run_folder(self._run, self._config, self._config.resume == "never", (UNREADABLE, *self._yields))
        # What cannot be used is found out here, by using it, so that all processes then use the same.
        there = load_latest(self._run / CHECKPOINTS, self._go_on_from) is not None
        if not there:
            self._learner.check_fresh(self._run)
        return there

    def _go_on_from(self, checkpoint: Mapping[str, Any]) -> None:
        """Go back to a checkpoint, if it is of this run; older ones do not tell of which they are."""
        if other := changes(checkpoint[SETTINGS], self._config) if SETTINGS in checkpoint else []:
            raise MisfitError(f"it is of another configuration: {'; '.join(other[:3])}")
        self._check_precision(checkpoint)
        before, now = checkpoint.get(CHECKSUM_OF_IMAGES), self._learner.images.checksum
        if None not in (before, now) and before != now and checkpoint["step"] < self.total_steps:
            raise UserError(f"the content of the images has changed since the run in '{self._run}' began, though their "
                            "names have not: restore them, or pass another out=…, or resume=never")
        self.load_state_dict(checkpoint)
        if not 0 <= self.step <= self.total_steps:
            raise MisfitError(f"it has {self.step} of {self.total_steps} steps")

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
        """Train, with a checkpoint at epoch ends, every few minutes, and on a stop request.

        On a stop request the current step is finished first, so a resumed run repeats nothing.
        """
        schedule, learner, ranks, run = self._schedule, self._learner, self._ranks, self._run
        batches = learner.batches(self.step)
        unreadable = UnreadableFiles(learner.images, run / UNREADABLE if ranks.is_main else None)
        saved = time.monotonic()
        status = ""
        with (
            told_if_gone(run, CONFIG),
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
                    if ranks.is_main:
                        check_still_there(run, CONFIG)
                    status = self._record(log, values) or status
                progress.advance(status)
                # Draw before the checkpoint: a run killed in between draws again.
                if ranks.is_main and into_epoch == 0:
                    learner.draw(epochs_done, self.finished)
                stop = ranks.any(request.received)
                if into_epoch == 0 or stop:
                    for indices in ranks.gather(sorted(unreadable.found)):  # the main process reports all
                        unreadable.note(torch.tensor(indices, dtype=torch.long))
                due = into_epoch == 0 and (epochs_done % schedule.checkpoint_epochs == 0 or self.finished)
                if due or stop or time.monotonic() - saved > 60 * schedule.checkpoint_minutes:
                    if ranks.is_main and not self._counts().row:  # else keep the last good checkpoint
                        save_checkpoint(run / CHECKPOINTS, self.state_dict())
                        self.saved_step = self.step
                    saved = time.monotonic()
                if stop:
                    break
        ranks.log(unreadable.summary())

    def _record(self, log: MetricsLog, values: Mapping[str, Any]) -> str:
        """Log the steps since the last record, and at epoch ends the learner's evaluation.

        Returns:
            A status line; "" if the last step was bad and the record is postponed.

        Raises:
            DivergedError: too many steps were bad.
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
        warmup = self._schedule.warmup_steps(self.total_steps)
        peak = self._schedule.lr * LR_FACTOR**self._rollbacks
        return learning_rate_at(self.step, self.total_steps, warmup, peak, self._schedule.course)

    def _counts(self) -> Counts:
        """Return the counts of skipped steps; this synchronizes with the device."""
        return self._learner.guard.counts() if self._learner.guard else Counts(0, 0, 0)

    def _roll_back(self, error: DivergedError) -> None:
        """Roll back to the last checkpoint and continue with a lower learning rate.

        Raises:
            UserError: rollbacks are not allowed, or their limit is reached.
        """
        check_rollback(error, self._schedule.may_roll_back, self._rollbacks, self._schedule.precision_key)
        rollbacks, checkpoint = self._rollbacks + 1, load_latest(self._run / CHECKPOINTS)
        assert checkpoint is not None  # one is saved before the first step
        self.load_state_dict(checkpoint)
        self._rollbacks = rollbacks
        # All ranks have read the checkpoint that the main process now replaces. Without this, a run killed here
        # would resume with the old learning rate and diverge again.
        self._ranks.on_main(lambda: save_checkpoint(self._run / CHECKPOINTS, self.state_dict()))
        self._ranks.log(f"{error}: back to step {self.step}, with {LR_FACTOR**rollbacks:g} of the learning rate")
