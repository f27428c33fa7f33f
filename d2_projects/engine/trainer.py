"""Detectron2's trainer, with mixed precision on any device, gradient accumulation and clipping."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from torch import Tensor, nn

from d2_projects.options import Amp
from spark.errors import UserError
from spark.utils.distributed import Ranks


class Trainer(SimpleTrainer):
    """One iteration: the batches of `accumulate` forward and backward passes, then one step of the optimizer.

    Detectron2's losses are means over the images, or over the proposals, of a batch, and what is accumulated is the
    mean of such means, just as it is over processes. Batch norms see one batch at a time.

    Args:
        model: on its device, wrapped for several processes.
        data_loader: endless.
        optimizer: of the model's parameters.
        ranks: the processes.
        dtype: of mixed precision; None for float32 throughout. float16 gets a gradient scaler.
        accumulate: batches in an iteration.
        clip_grad_norm: the largest norm that all gradients together may have; 0 to let them be.
    """

    def __init__(
        self, model: nn.Module, data_loader: Any, optimizer: torch.optim.Optimizer, ranks: Ranks,
        dtype: torch.dtype | None = None, accumulate: int = 1, clip_grad_norm: float = 0.0,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self._ranks, self._dtype = ranks, dtype
        self._accumulate, self._clip = accumulate, clip_grad_norm
        self.grad_scaler = torch.amp.GradScaler(ranks.device.type, enabled=dtype is torch.float16)

    def run_step(self) -> None:
        """Do one iteration."""
        self.optimizer.zero_grad()
        losses: dict[str, Tensor] = {}
        waited = 0.0
        for part in range(self._accumulate):
            started = time.perf_counter()
            batch = next(self._data_loader_iter)
            waited += time.perf_counter() - started
            with self._ranks.gradient_sync(self.model, exchange=part == self._accumulate - 1):
                with self._autocast():
                    found = {name: loss / self._accumulate for name, loss in self.model(batch).items()}
                self.grad_scaler.scale(sum(found.values())).backward()
            losses = {name: loss.detach() + losses.get(name, 0) for name, loss in found.items()}
        self.after_backward()
        if self._clip:
            self.grad_scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self._clip)
        self._write_metrics(losses, waited)  # before the step: an infinite loss ends the training
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _autocast(self) -> Any:
        return nullcontext() if self._dtype is None else torch.autocast(self._ranks.device.type, self._dtype)


def mixed_precision(amp: Amp, device: torch.device) -> torch.dtype | None:
    """Return the type of mixed precision that a recipe asks for, or None.

    It is never bfloat16: Detectron2's RoI pooling rounds boxes, in pixels, to the type of the feature maps, and
    bfloat16 knows only every fourth pixel beyond 512, every eighth beyond 1024.

    Raises:
        UserError: the device does not have it.
    """
    if not amp.enabled:
        return None
    if device.type != "cuda":
        raise UserError("train.amp.enabled needs a CUDA device")
    return torch.float16
