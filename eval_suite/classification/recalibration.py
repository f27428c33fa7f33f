"""Batch norms' running statistics, taken anew where those that are there are not the network's own.

The new statistics are plain averages over batches of training images that are prepared as those to evaluate on are,
without augmentation: nothing is drawn, so they follow from weights and images alone, and they are of what the network
is about to see. All else in the network stays in evaluation mode meanwhile, which torch's `update_bn` does not do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from eval_suite.classification.data import LabeledImages, plain_loader
from spark.backbones.batch_norms import batch_norms
from spark.sparse.synchronize import SynchronizedNorm
from spark.utils.distributed import Ranks


@torch.no_grad()
def recalibrate(networks: Sequence[nn.Module], forward: Callable[[Tensor], Any], batches: Iterable[Tensor]) -> None:
    """Take the running statistics of all batch norms anew, as plain averages over some batches.

    Args:
        networks: in evaluation mode, where they are left.
        forward: runs each of them once.
        batches: of images, as `forward` takes them; the same in every process, so none asks another.
    """
    norms = [norm for network in networks for norm in batch_norms(network)]
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
    buffers = [buffer for network in networks for norm in batch_norms(network) for buffer in norm.buffers()]
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
