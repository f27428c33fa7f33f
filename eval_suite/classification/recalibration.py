"""Batch norms' running statistics, taken anew where those that are there are not the network's own.

A running statistic after n steps holds (1 - momentum)^n of what it was at the start: with the usual momentum of .1,
43 % after 8 steps, and less than START_SHARE from 66 on. What a network of fewer steps predicts is an accident of it.

The new statistics are plain averages over batches of training images that are prepared as those to evaluate on are,
without augmentation: nothing is drawn, so they follow from weights and images alone, and they are of what the network
is about to see. All else in the network stays in evaluation mode meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eval_suite.classification.data import LabeledImages, plain_loader
from spark.sparse.synchronize import SynchronizedNorm
from spark.utils.distributed import Ranks

START_SHARE = 1e-3  # of the start in a statistic: less is nothing


def carries_start(network: nn.Module, steps: int | None = None) -> bool:
    """Whether a batch norm's running statistics hold more than START_SHARE of what they were before any training.

    Args:
        network: with or without batch norms.
        steps: of the training that will have been done; None: what each batch norm has counted. One that counted
            nothing, but whose statistics are others than a new one's, has them from elsewhere, and is trusted.
    """
    return any(_start_share(norm, steps) > START_SHARE for norm in _batch_norms(network))


@torch.no_grad()
def recalibrate(networks: Sequence[nn.Module], forward: Callable[[Tensor], Any], batches: Iterable[Tensor]) -> None:
    """Take the running statistics of all batch norms anew, as plain averages over some batches.

    Args:
        networks: in evaluation mode, where they are left.
        forward: runs each of them once.
        batches: of images, as `forward` takes them; the same in every process, so none asks another.
    """
    norms = [norm for network in networks for norm in _batch_norms(network)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # a plain average
        if isinstance(norm, SynchronizedNorm):
            norm.alone = True
    try:
        for batch in batches:
            forward(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval()
            norm.momentum = momentum
            if isinstance(norm, SynchronizedNorm):
                norm.alone = False


@contextmanager
def statistics_put_back(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Undo after the body what it does to batch norms' statistics: a training goes on with its own."""
    buffers = [buffer for network in networks for norm in _batch_norms(network) for buffer in norm.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)


def batches_for_all(images: LabeledImages, batch: int, workers: int, device: torch.device) -> Iterator[Tensor]:
    """Yield all images [B, 3, H, W] on the device, in order, in every process alike."""
    for sample in plain_loader(images, batch, workers, Ranks(device)):
        yield sample.image.to(device).contiguous(memory_format=torch.channels_last)


def full_batches(images: LabeledImages, batch: int, workers: int, device: torch.device) -> Iterator[Tensor]:
    """Yield batches of one size, as it decides about statistics; what is left over is left out."""
    size = min(batch, len(images))
    for x in batches_for_all(images, size, workers, device):
        if len(x) == size:
            yield x


def _batch_norms(network: nn.Module) -> list[_BatchNorm]:
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
