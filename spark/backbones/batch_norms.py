"""Whose running statistics a network's batch norms hold: its own, or still those that they started from.

A running statistic after n steps holds (1 - momentum)^n of what it was at the start: with the usual momentum of .1,
43 % after 8 steps, and less than START_SHARE from 66 on. What a network of fewer steps predicts is an accident of it.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

START_SHARE = 1e-3  # of the start in a statistic: less is nothing


def carries_start(network: nn.Module, steps: int | None = None) -> bool:
    """Whether a batch norm's running statistics hold more than START_SHARE of what they were before any training.

    Args:
        network: with or without batch norms.
        steps: of the training that will have been done; None: what each batch norm has counted. One that counted
            nothing, but whose statistics are others than a new one's, has them from elsewhere, and is trusted.
    """
    return any(_start_share(norm, steps) > START_SHARE for norm in batch_norms(network))


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """Return those that keep running statistics, and are to (a momentum of 0 says otherwise)."""
    return [module for module in network.modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None and module.momentum != 0]


def _start_share(norm: _BatchNorm, steps: int | None) -> float:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    if steps is None:
        steps = int(norm.num_batches_tracked) if norm.num_batches_tracked is not None else 0
        if not steps and not (bool((norm.running_mean == 0).all()) and bool((norm.running_var == 1).all())):
            return 0.0
    return float(steps == 0) if norm.momentum is None else (1 - norm.momentum) ** steps
