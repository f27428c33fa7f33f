"""Steps whose loss or gradient is not finite: leave them out, and count them, without waiting for the device.

Whether a step is bad is known on the device only. So it is not left out by an `if`: its gradient is replaced by zeros,
and what it did to buffers (the running statistics of batch norms) is undone. The optimizer's moments see one zero
gradient, and weights move by momentum alone, once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from spark.errors import UserError

REPEATED = 5  # bad steps one after the other: this is no accident any more
LR_FACTOR = 0.5  # of the learning rate after a rollback
ROLLBACKS = 5  # in a run; who needs more has another problem than the learning rate


class DivergedError(Exception):
    """Loss or gradient stay without finite value."""


class Counts(NamedTuple):
    """How many steps were bad: in all, and the last ones without interruption (the longest such row, and now)."""

    total: int
    longest: int
    row: int


class NonFiniteGuard:
    """Looks at each step between its backward pass and the optimizer."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._parameters = list(model.parameters())
        self._buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self._kept = [buffer.clone() for buffer in self._buffers]
        self._counts = torch.zeros(3, dtype=torch.long, device=device)

    @torch.no_grad()
    def before(self) -> None:
        """Remember, before the forward pass, what it is about to change beside gradients."""
        for kept, buffer in zip(self._kept, self._buffers, strict=True):
            kept.copy_(buffer)

    @torch.no_grad()
    def after(self, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """Make the step harmless if it is bad, and count it; return, on the device, whether it is."""
        bad = ~(loss.isfinite() & grad_norm.to(loss.device).isfinite())
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(bad, 0)
        for kept, buffer in zip(self._kept, self._buffers, strict=True):
            torch.where(bad, kept, buffer, out=buffer)
        total, longest, row = self._counts.unbind()
        row = (row + 1) * bad
        self._counts = torch.stack([total + bad, torch.maximum(longest, row), row])
        return bad

    def counts(self) -> Counts:
        """Return the counts; the host waits for the device."""
        return Counts(*self._counts.tolist())

    def forget(self) -> None:
        """Look for the longest row among later steps only, but for the row that lasts."""
        self._counts[1] = self._counts[2]

    def reset(self, total: int) -> None:
        """Begin again to count, after so many bad steps in all."""
        self._counts = torch.tensor([total, 0, 0], device=self._counts.device)


def check_counts(counts: Counts, step: int, last: bool) -> None:
    """Judge the steps since the last look.

    Raises:
        DivergedError: too many in a row were bad; or the last one of all, after which nothing good could be saved.
    """
    if counts.longest >= REPEATED or (counts.row and last):
        raise DivergedError(f"loss or gradient is no longer finite near step {step}")


def check_rollback(error: DivergedError, allowed: bool, done: int, precision: str) -> None:
    """Judge whether a training that diverged may go back to its last checkpoint.

    Args:
        error: that it met.
        allowed: `train.on_divergence` says so.
        done: how often it went back already.
        precision: the setting that chooses the precision.

    Raises:
        UserError: that is not wanted, or was done often enough.
    """
    advice = f"lower optimizer.base_lr, or set {precision}=float32"
    if not allowed:
        raise UserError(f"{error}; the last checkpoint is kept: {advice}; or set train.on_divergence=rollback")
    if done == ROLLBACKS:
        raise UserError(f"{error}, after {ROLLBACKS} rollbacks: {advice}")
