"""Fine-tuning a classifier: one update, and one evaluation.

Two known wounds of the original are not inherited: the moving average starts from the weights that were loaded, and
accuracies of the last weights, the best epoch's and the average are told apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from timm.optim import Lamb
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from eval_suite.classification.accuracy import accuracies
from eval_suite.classification.augment import PairMixer
from eval_suite.classification.config import RECALIBRATE
from eval_suite.classification.data import Data, LabeledSample, plain_loader
from eval_suite.classification.finetune_config import FinetuneConfig
from eval_suite.classification.frozen import some_images
from eval_suite.classification.layer_decay import parameter_groups
from eval_suite.classification.recalibration import full_batches, recalibrate, statistics_put_back
from eval_suite.classification.supervised import RECORD_STEPS, SupervisedLearner
from spark.data.samplers import STEP, mixed_seed
from spark.data.unreadable import UnreadableFiles
from spark.training.guard import NonFiniteGuard
from spark.training.loop import LOSS, Schedule
from spark.training.parallel import data_parallel
from spark.utils.device import autocast
from spark.utils.distributed import Ranks
from spark.utils.state_dict import load_optimizer, load_strictly

WEIGHTS = ("last", "ema")
RECALIBRATION_BATCH = 64  # images; without gradients, they take no more memory than a few to train on


class Finetuning(SupervisedLearner):
    """A classifier, its moving average and its optimizer.

    Args:
        config: of the run.
        data: to train on, and to evaluate on.
        model: on the CPU; it is moved, and its batch norms are synchronised where there are several processes.
        ranks: the processes.
        origin: what the numbers come from, beside the configuration: data and initial weights, by content.
        resolved: what settings that say `auto` came to.
    """

    guard: NonFiniteGuard

    def __init__(
        self, config: FinetuneConfig, data: Data, model: nn.Module, ranks: Ranks, origin: Mapping[str, Any],
        resolved: Mapping[str, str],
    ) -> None:
        super().__init__(
            config, schedule_of(config), data, ranks, origin, resolved, config.train.evaluate_epochs,
            config.augment.repeated_augmentation,
        )
        self._precision, self._recalibrated = resolved["precision"], int(resolved.get(RECALIBRATE, 0))
        self._config, self._data, self._ranks = config, data, ranks
        self._device = ranks.device
        self._local_batch = ranks.local_batch(config.train.batch)
        self._accumulation_steps = config.accumulation_steps(self._local_batch)
        self._model = model.to(self._device).to(memory_format=torch.channels_last)
        self._ema = ModelEmaV3(self._model, decay=config.train.ema_decay)
        self._parallel = data_parallel(self._model, ranks)
        self._optimizer = build_optimizer(config, self._model)
        self.guard = NonFiniteGuard(self._model, self._device)
        self._mix = PairMixer(config.augment, data.classes, config.seed) if config.mixes else None
        self._loss = build_loss(config)
        self._unreadable = UnreadableFiles(data.val.images, spared=0)

    def step(self, batch: LabeledSample, number: int, lr: float) -> dict[str, Any]:
        """Do one update; see `Learner.step`."""
        torch.manual_seed(mixed_seed(self._config.seed, STEP, number, self._ranks.rank))  # drop path
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self._optimizer.zero_grad()
        self.guard.before()
        loss = self._accumulate_gradients(batch.image, batch.label, number)
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), self._config.optimizer.clip or torch.inf)
        bad = self.guard.after(loss, norm)
        self._optimizer.step()
        self._ema.update(self._model)
        return {"lr": lr, LOSS: torch.where(bad, torch.nan, loss)}

    def evaluate(self, last: bool) -> dict[str, float]:
        """Return top-1 and top-5 accuracy of the weights as they are ("last") and of their average ("ema").

        Training goes on with its own running statistics; at its end, what was evaluated stays, to be saved.
        """
        self._model.eval()
        if not self._recalibrated:
            return self._accuracies()
        networks = (self._model, self._ema.module)
        with nullcontext() if last else statistics_put_back(networks):
            sample = some_images(self._data.train.images, self._recalibrated, self._config.data)
            batches = full_batches(sample, RECALIBRATION_BATCH, self._config.data.workers, self._device)
            recalibrate(networks, self._classify, batches)
            return self._accuracies()

    def _accuracies(self) -> dict[str, float]:
        loader = plain_loader(self._data.val, self._evaluated_at_once, self._config.data.workers, self._ranks)
        found = accuracies(self._classify, loader, self._data.classes, self._ranks, self._unreadable)
        return {f"top{k}_{name}": value for name, by_k in found.items() for k, value in by_k.items()}

    def own_state(self) -> dict[str, Any]:
        """Return what is trained, for a checkpoint."""
        return {
            "model": self._model.state_dict(), "ema": self._ema.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Go back to a state that `own_state` returned."""
        source = f"the checkpoint in '{self._config.out}'"
        load_strictly(self._model, state["model"], source, "the run's model")
        load_strictly(self._ema.module, state["ema"], source, "the run's model")
        load_optimizer(self._optimizer, state["optimizer"], source)

    @property
    def _evaluated_at_once(self) -> int:
        return max(self._local_batch // self._accumulation_steps, 1)

    def _accumulate_gradients(self, images: Tensor, labels: Tensor, number: int) -> Tensor:
        """Add up the gradients of the batch's parts, which have equally many images; return the batch's loss."""
        self._parallel.train()
        losses = []
        size = len(images) // self._accumulation_steps
        for part in range(self._accumulation_steps):
            chosen = slice(part * size, (part + 1) * size)
            x, y = self._to_device(images[chosen]), labels[chosen].to(self._device, non_blocking=True)
            if self._mix is not None:
                x, y = self._mix(x, y, number, self._ranks.rank * self._local_batch + chosen.start)
            with self._ranks.gradient_sync(self._parallel, part == self._accumulation_steps - 1):
                with autocast(self._device, self._precision):
                    logits = self._parallel(x)
                loss = self._loss(logits.float(), y)
                (loss / self._accumulation_steps).backward()
            losses.append(loss.detach())
        return self._ranks.mean(torch.stack(losses).mean())

    def _classify(self, images: Tensor) -> dict[str, Tensor]:
        x = images.contiguous(memory_format=torch.channels_last)
        with autocast(self._device, self._precision):
            return dict(zip(WEIGHTS, (self._model(x), self._ema.module(x)), strict=True))

    def _to_device(self, images: Tensor) -> Tensor:
        return images.to(self._device, non_blocking=True, memory_format=torch.channels_last)


def schedule_of(config: FinetuneConfig) -> Schedule:
    """Return how long to train, and what to do on the way."""
    train = config.train
    return Schedule(
        config.learning_rate, train.epochs, train.warmup_epochs, train.batch, RECORD_STEPS, train.checkpoint_minutes,
        may_roll_back=train.on_divergence == "rollback",
    )


def build_optimizer(config: FinetuneConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Return LAMB or AdamW over layer-wise groups; LAMB as in the original, always adapting, unclipped."""
    settings = config.optimizer
    groups = parameter_groups(model, settings.weight_decay, settings.layer_decay, settings.layers)
    if config.optimizer.name == "lamb":
        return Lamb(groups, lr=0.0, max_grad_norm=None, always_adapt=True, bias_correction=False)
    return torch.optim.AdamW(groups, lr=0.0)


def build_loss(config: FinetuneConfig) -> nn.Module:
    """Return a loss of logits [B, classes] and soft targets from mixup, or classes [B] without it."""
    smoothing = 0.0 if config.mixes else config.augment.label_smoothing  # mixup has smoothed already
    if config.train.loss == "bce":
        return BinaryCrossEntropy(smoothing=smoothing)
    return SoftTargetCrossEntropy() if config.mixes else nn.CrossEntropyLoss(label_smoothing=smoothing)
