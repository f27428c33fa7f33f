"""Supervised training as the loop sees it: what fine-tuning and linear probes have in common."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from eval_suite.classification.config import EvaluationConfig
from eval_suite.classification.data import Data, LabeledSample, TrainSampler, train_loader
from spark.errors import UserError
from spark.runs.record import FILE_NAME as RESULT
from spark.training.loop import Learner, Schedule
from spark.utils.distributed import Ranks
from spark.utils.stopwatch import Stopwatch

SOURCE = "source"  # of the user's own network, in what the numbers come from
RECORD_STEPS = 100  # the loss is read from the device, and logged, once in so many steps


class SupervisedLearner(Learner):
    """Trains on labeled images, and evaluates now and then.

    Args:
        config: of the run.
        schedule: of the training.
        data: to train on, and to evaluate on.
        ranks: the processes.
        origin: what the numbers come from, beside the configuration: data and initial weights, by content.
        resolved: what settings that say `auto` came to.
        evaluate_epochs: an evaluation every so many epochs, beside the last.
        repeats: draws of each image in an epoch, which has as many draws as there are images all the same.

    Attributes:
        results: of the last evaluation.
        best: of all evaluations, each metric by itself.
        stopwatch: counts the run's seconds.
    """

    def __init__(
        self, config: EvaluationConfig, schedule: Schedule, data: Data, ranks: Ranks, origin: Mapping[str, Any],
        resolved: Mapping[str, str], evaluate_epochs: int, repeats: int = 0,
    ) -> None:
        self.schedule, self.resolved, self.images = schedule, resolved, data.train.images
        self._run_config, self._train, self._all_ranks = config, data.train, ranks
        self._origin, self._evaluate_epochs, self._repeats = json.loads(json.dumps(origin)), evaluate_epochs, repeats
        self.steps_per_epoch = self._sampler().steps_per_epoch
        self.results: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.stopwatch = Stopwatch()

    @abstractmethod
    def evaluate(self, last: bool) -> dict[str, float]:
        """Return metrics in percent, the same in all processes; `last`: training is over."""

    @abstractmethod
    def own_state(self) -> dict[str, Any]:
        """Return what is trained, for a checkpoint."""

    @abstractmethod
    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Go back to a state that `own_state` returned."""

    def batches(self, first_step: int) -> DataLoader[LabeledSample]:
        """Return this process's batches of the steps that are left."""
        self.stopwatch.train(on=True)
        workers = self._run_config.data.workers
        return train_loader(self._train, self._sampler(first_step), self.schedule.batch, workers, self._all_ranks)

    def look(self, epochs_done: int, last: bool) -> dict[str, float]:
        """Evaluate every so many epochs, and at the end."""
        if not epochs_done or (epochs_done % self._evaluate_epochs and not last):
            return {}
        self.stopwatch.train(on=False)
        self.results = self.evaluate(last)
        self.best = {name: max(value, self.best.get(name, value)) for name, value in self.results.items()}
        self.stopwatch.train(on=not last)
        return self.results

    def images_per_second(self, steps: int) -> float | None:
        """Return the throughput of so many steps of training, evaluations left out."""
        seconds = self.stopwatch.training_seconds
        return steps * self.schedule.batch / seconds if seconds else None

    def check_fresh(self, run: Path) -> None:
        """Refuse to train anew where a result lies whose training's checkpoint is gone."""
        if (run / RESULT).is_file():
            raise UserError(f"'{run}' holds a result, but its training's checkpoint is gone; pass another out=…, "
                            "or resume=never to replace it")

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on."""
        return {"origin": self._origin, "results": self.results, "best": self.best, **self.stopwatch.state_dict(),
                **self.own_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state that `state_dict` returned.

        Raises:
            UserError: it came from other data, another encoder or another source of the user's own network, by content.
        """
        names = {"data": "other data", "init": "another encoder", SOURCE: "another source of the own network"}
        before = state.get("origin", {})
        older = {SOURCE: self._origin[SOURCE]} if SOURCE in self._origin else {}  # versions that did not keep it
        if changed := [names[key] for key, value in self._origin.items() if {**older, **before}.get(key) != value]:
            raise UserError(f"'{self._run_config.out}' holds a run with {' and '.join(changed)}; pass another out=…, "
                            "or resume=never to replace it")
        self.results, self.best = state["results"], state["best"]
        self.stopwatch.load_state_dict(state)
        self.load_own_state(state)

    def _sampler(self, first_step: int = 0) -> TrainSampler:
        schedule = self.schedule
        return TrainSampler(
            len(self._train), schedule.batch, schedule.epochs, self._run_config.seed, self._repeats, first_step
        )
