"""Non-finite guard: skip and count steps with a non-finite loss or gradient, without a device synchronization.

Only the device knows whether a step is bad, so the step is not skipped by an `if`. Instead, its gradient is set to
zero, and its changes to buffers (the running statistics of batch norms) are undone. The optimizer's moments are
updated with one zero gradient, and the weights move by momentum alone in that step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from spark.errors import UserError

REPEATED = 5  # consecutive bad steps that count as divergence
LR_FACTOR = 0.5  # factor on the lr after each rollback
ROLLBACKS = 5  # per run; if more are needed, the lr is not the problem


class DivergedError(Exception):
    """Loss or gradient remain non-finite."""


class Counts(NamedTuple):
    """Numbers of bad steps: in total, and in a row (the longest row, and the current one)."""

    total: int
    longest: int
    row: int


class NonFiniteGuard:
    """Checks each step between the backward pass and the optimizer step."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._parameters = list(model.parameters())
        self._buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self._kept = [buffer.clone() for buffer in self._buffers]
        self._counts = torch.zeros(3, dtype=torch.long, device=device)

    @torch.no_grad()
    def before(self) -> None:
        """Save the buffers that the forward pass is about to change."""
        for kept, buffer in zip(self._kept, self._buffers, strict=True):
            kept.copy_(buffer)

    @torch.no_grad()
    def after(self, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """Neutralize and count the step if it is bad; return whether it is, as a tensor on the device."""
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
        """Return the counts; this synchronizes with the device."""
        return Counts(*self._counts.tolist())

    def forget(self) -> None:
        """Restart the longest row of bad steps; a row that is still going on is kept."""
        self._counts[1] = self._counts[2]

    def reset(self, total: int) -> None:
        """Reset the counts to a given total of bad steps."""
        self._counts = torch.tensor([total, 0, 0], device=self._counts.device)


def check_counts(counts: Counts, step: int, last: bool) -> None:
    """Check the steps since the last call.

    Raises:
        DivergedError: too many steps in a row were bad, or the very last step was, so that no good state can be saved.
    """
    if counts.longest >= REPEATED or (counts.row and last):
        raise DivergedError(f"loss or gradient is no longer finite near step {step}")


def check_rollback(error: DivergedError, allowed: bool, done: int, precision: str) -> None:
    """Check whether a diverged training may roll back to its last checkpoint.

    Args:
        error: the divergence.
        allowed: whether `train.on_divergence` allows it.
        done: number of rollbacks so far.
        precision: dotted key of the precision setting, for the message.

    Raises:
        UserError: rollbacks are not allowed, or their limit is reached.
    """
    advice = f"lower optimizer.base_lr, or set {precision}=float32"
    if not allowed:
        raise UserError(f"{error}; the last checkpoint is kept: {advice}; or set train.on_divergence=rollback")
    if done == ROLLBACKS:
        raise UserError(f"{error}, after {ROLLBACKS} rollbacks: {advice}")
