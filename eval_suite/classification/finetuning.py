"""Fine-tuning a classifier: one update, and one evaluation.

Two known wounds of the original are not inherited: the moving average starts from the weights that were loaded, and
accuracies of the last weights, the best epoch's and the average are told apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from timm.optim import Lamb
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from eval_suite.classification.accuracy import accuracies
from eval_suite.classification.augment import PairMixer
from eval_suite.classification.data import Data, plain_loader
from eval_suite.classification.finetune_config import FinetuneConfig
from eval_suite.classification.layer_decay import parameter_groups
from eval_suite.training import Learner
from spark.data.samplers import STEP, mixed_seed
from spark.data.unreadable import UnreadableFiles
from spark.training.guard import Counts, NonFiniteGuard
from spark.training.parallel import data_parallel
from spark.utils.device import autocast
from spark.utils.distributed import Ranks

WEIGHTS = ("last", "ema")


class Finetuning(Learner):
    """A classifier, its moving average and its optimizer.

    Args:
        config: of the run.
        data: to evaluate on.
        model: on the CPU; it is moved, and its batch norms are synchronised where there are several processes.
        ranks: the processes.
    """

    def __init__(self, config: FinetuneConfig, data: Data, model: nn.Module, ranks: Ranks) -> None:
        self._config, self._data, self._ranks = config, data, ranks
        self._device = ranks.device
        self._share = ranks.local_batch(config.train.batch)
        self._parts = config.parts(self._share)
        self._model = model.to(self._device).to(memory_format=torch.channels_last)
        self._ema = ModelEmaV3(self._model, decay=config.train.ema_decay)
        self._parallel = data_parallel(self._model, ranks)
        self._optimizer = build_optimizer(config, self._model)
        self._guard = NonFiniteGuard(self._model, self._device)
        self._mix = PairMixer(config.augment, data.classes, config.seed) if config.mixes else None
        self._loss = build_loss(config)
        self._unreadable = UnreadableFiles(data.val.images, spared=0)

    def step(self, images: Tensor, labels: Tensor, number: int, rate: float) -> Tensor:
        """Do one update; see `Learner.step`."""
        torch.manual_seed(mixed_seed(self._config.seed, STEP, number, self._ranks.rank))  # drop path
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        self._optimizer.zero_grad()
        self._guard.before()
        loss = self._accumulate_gradients(images, labels, number)
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), self._config.optimizer.clip or torch.inf)
        bad = self._guard.after(loss, norm)
        self._optimizer.step()
        self._ema.update(self._model)
        return torch.where(bad, torch.nan, loss)

    def evaluate(self) -> dict[str, float]:
        """Return top-1 and top-5 accuracy of the weights as they are ("last") and of their average ("ema")."""
        self._model.eval()
        loader = plain_loader(self._data.val, self._evaluated_at_once, self._config.data.workers, self._ranks)
        found = accuracies(self._classify, loader, self._data.classes, self._ranks, self._unreadable)
        return {f"top{k}_{name}": value for name, by_k in found.items() for k, value in by_k.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on."""
        return {
            "model": self._model.state_dict(), "ema": self._ema.module.state_dict(),
            "optimizer": self._optimizer.state_dict(), "skipped": self._guard.counts().total,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state that `state_dict` returned."""
        self._model.load_state_dict(state["model"])
        self._ema.module.load_state_dict(state["ema"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._guard.reset(state["skipped"])

    def bad_steps(self) -> Counts:
        """Return how many updates were left out since the last call."""
        counts = self._guard.counts()
        self._guard.forget()
        return counts

    @property
    def _evaluated_at_once(self) -> int:
        return max(self._share // self._parts, 1)

    def _accumulate_gradients(self, images: Tensor, labels: Tensor, number: int) -> Tensor:
        """Add up the gradients of the batch's parts, which have equally many images; return the batch's loss."""
        self._parallel.train()
        losses = []
        size = len(images) // self._parts
        for part in range(self._parts):
            chosen = slice(part * size, (part + 1) * size)
            x, y = self._to_device(images[chosen]), labels[chosen].to(self._device, non_blocking=True)
            if self._mix is not None:
                x, y = self._mix(x, y, number, self._ranks.rank * self._share + chosen.start)
            with self._ranks.gradient_sync(self._parallel, part == self._parts - 1):
                with autocast(self._device, self._config.precision):
                    logits = self._parallel(x)
                loss = self._loss(logits.float(), y)
                (loss / self._parts).backward()
            losses.append(loss.detach())
        return self._ranks.mean(torch.stack(losses).mean())

    def _classify(self, images: Tensor) -> dict[str, Tensor]:
        x = images.contiguous(memory_format=torch.channels_last)
        with autocast(self._device, self._config.precision):
            return dict(zip(WEIGHTS, (self._model(x), self._ema.module(x)), strict=True))

    def _to_device(self, images: Tensor) -> Tensor:
        return images.to(self._device, non_blocking=True, memory_format=torch.channels_last)


def build_optimizer(config: FinetuneConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Return LAMB or AdamW over layer-wise groups; LAMB as in the original, always adapting, unclipped."""
    groups = parameter_groups(model, config.optimizer.weight_decay, config.optimizer.layer_decay)
    if config.optimizer.name == "lamb":
        return Lamb(groups, lr=0.0, max_grad_norm=None, always_adapt=True, bias_correction=False)
    return torch.optim.AdamW(groups, lr=0.0)


def build_loss(config: FinetuneConfig) -> nn.Module:
    """Return a loss of logits [B, classes] and soft targets from mixup, or classes [B] without it."""
    smoothing = 0.0 if config.mixes else config.augment.label_smoothing  # mixup has smoothed already
    if config.train.loss == "bce":
        return BinaryCrossEntropy(smoothing=smoothing)
    return SoftTargetCrossEntropy() if config.mixes else nn.CrossEntropyLoss(label_smoothing=smoothing)
