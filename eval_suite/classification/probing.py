"""Linear probes: many linear classifiers on the same frozen features, trained side by side in one pass.

The heads differ in learning rate and in what they see (the coarsest map, or the two coarsest). No head's gradient
touches another, so each becomes what it would have become alone, but the encoder runs once for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from eval_suite.classification.accuracy import accuracies
from eval_suite.classification.data import Data, LabeledImages, LabeledSample, plain_loader
from eval_suite.classification.frozen import FrozenEncoder
from eval_suite.classification.probe_config import ProbeConfig
from eval_suite.classification.supervised import RECORD_STEPS, SupervisedLearner
from spark.data.unreadable import UnreadableFiles
from spark.training.loop import LOSS, Schedule
from spark.training.parallel import data_parallel
from spark.utils.distributed import Ranks
from spark.utils.state_dict import load_optimizer, load_strictly

MOMENTUM = 0.9
HELD_OUT, VAL = "held_out", "val"


class Head(NamedTuple):
    """What tells a head from the others."""

    features: str
    base_lr: float

    def __str__(self) -> str:
        return f"{self.features}/lr={self.base_lr:g}"


class Heads(nn.Module):
    """Linear classifiers on standardised features.

    Args:
        heads: what they are.
        statistics: mean and deviation [width] of each sort of features.
        classes: how many.
    """

    def __init__(
        self, heads: Sequence[Head], statistics: Mapping[str, tuple[Tensor, Tensor]], classes: int
    ) -> None:
        super().__init__()
        self.heads = heads
        self.linear = nn.ModuleList(nn.Linear(len(statistics[head.features][0]), classes) for head in heads)
        for parameter in self.linear.parameters():
            nn.init.zeros_(parameter)  # so nothing about a head is random
        for name, (mean, deviation) in statistics.items():
            self.register_buffer(f"mean_{name}", mean)
            # A channel that never varies tells nothing.
            self.register_buffer(f"scale_{name}", torch.where(deviation > 0, 1 / deviation, 0))

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return each head's logits [B, classes]."""
        standard = {
            name: (x - getattr(self, f"mean_{name}")) * getattr(self, f"scale_{name}") for name, x in features.items()
        }
        return {
            str(head): layer(standard[head.features]) for head, layer in zip(self.heads, self.linear, strict=True)
        }


class Probing(SupervisedLearner):
    """The heads of a frozen encoder.

    Args:
        config: of the run.
        data: to train on, and to evaluate on.
        held_out: training images that no head is trained on, to choose one by.
        encoder: the features.
        statistics: of the features.
        ranks: the processes.
        origin: what the numbers come from, beside the configuration: data and initial weights, by content.
        resolved: what settings that say `auto` came to.
    """

    def __init__(
        self, config: ProbeConfig, data: Data, held_out: LabeledImages, encoder: FrozenEncoder,
        statistics: Mapping[str, tuple[Tensor, Tensor]], ranks: Ranks, origin: Mapping[str, Any],
        resolved: Mapping[str, str],
    ) -> None:
        train = config.train
        schedule = Schedule(
            train.batch / 256, train.epochs, train.warmup_epochs, train.batch, RECORD_STEPS, train.checkpoint_minutes
        )
        super().__init__(config, schedule, data, ranks, origin, resolved, train.evaluate_epochs)
        self._config, self._classes, self._ranks, self._encoder = config, data.classes, ranks, encoder
        self._splits = {HELD_OUT: held_out, VAL: data.val}
        self._unreadable = {name: UnreadableFiles(split.images, spared=0) for name, split in self._splits.items()}
        self.heads = [Head(features, lr) for features in encoder.widths for lr in config.train.base_lrs]
        self._model = Heads(self.heads, statistics, data.classes).to(ranks.device)
        self._parallel = data_parallel(self._model, ranks)
        self._optimizer = torch.optim.SGD(
            [{"params": list(layer.parameters()), "base_lr": head.base_lr}
             for head, layer in zip(self.heads, self._model.linear, strict=True)],
            lr=0.0, momentum=MOMENTUM, weight_decay=config.train.weight_decay,
        )

    def step(self, batch: LabeledSample, number: int, lr: float) -> dict[str, Any]:
        """Do one update of each head; the loss is that of the one that is best now (one may have diverged)."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["base_lr"]
        labels = batch.label.to(self._ranks.device, non_blocking=True)
        logits = self._parallel(self._encoder(batch.image))
        losses = torch.stack([functional.cross_entropy(of_head, labels) for of_head in logits.values()])
        self._optimizer.zero_grad()
        losses.sum().backward()  # a head that diverges ruins this sum, but no other head's gradient
        self._optimizer.step()
        losses = self._ranks.mean(losses.detach())
        return {"lr": lr, LOSS: losses.where(losses.isfinite(), torch.inf).min()}

    def evaluate(self, last: bool = True) -> dict[str, float]:
        """Return top-1 and top-5 accuracy of every head, such as "val/top1/last/lr=0.1"; "top1" is the chosen one's."""
        found: dict[str, float] = {}
        for name, split in self._splits.items():
            loader = plain_loader(split, self._ranks.local_batch(self._config.train.batch), self._config.data.workers,
                                  self._ranks)
            by_head = accuracies(
                self._classify, loader, self._classes, self._ranks, self._unreadable[name]
            )
            found |= {f"{name}/top{k}/{head}": value for head, by_k in by_head.items() for k, value in by_k.items()}
        return {**found, "top1": found[f"{VAL}/top1/{choose(self.heads, found)}"]}

    def own_state(self) -> dict[str, Any]:
        """Return what is trained, for a checkpoint."""
        return {"heads": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Go back to a state that `own_state` returned."""
        load_strictly(self._model, state["heads"], f"the checkpoint in '{self._config.out}'", "the run's heads")
        load_optimizer(self._optimizer, state["optimizer"], f"the checkpoint in '{self._config.out}'")

    @torch.no_grad()
    def _classify(self, images: Tensor) -> dict[str, Tensor]:
        return self._model(self._encoder(images))


def choose(heads: Sequence[Head], results: Mapping[str, float]) -> Head:
    """Return the head that is best on images held out of training; of equal ones, that of the lowest learning rate."""
    return max(heads, key=lambda head: (results.get(f"{HELD_OUT}/top1/{head}", -math.inf), -head.base_lr))
