"""Activation checkpointing: keep a block's input only, and compute the block again in the backward pass.

A third more computing for a fraction of the memory. Two things need care beyond torch.utils.checkpoint: the mask is
no longer shown when the backward pass comes, and batch norm must not count the second pass in its statistics.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from spark.backbones.tracing import blocks_of
from spark.sparse.extend_class import extend_class
from spark.sparse.state import VisiblePatches


class CheckpointedBlock(nn.Module):
    """Mixed into a block's own class; while a mask is shown, in training, it keeps its input only."""

    _visible: VisiblePatches

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Apply the block."""
        if not (self._visible.active and self.training):
            return super().forward(*inputs, **options)
        return checkpoint(super().forward, *inputs, use_reentrant=False, context_fn=self._contexts, **options)

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return a context for the first pass and one for the second."""
        return nullcontext(), _second_pass(self, self._visible.reuse_mask())


def checkpoint_activations(network: nn.Module, visible: VisiblePatches) -> list[str]:
    """Convert the blocks of a sparse network in place and return their paths.

    A block is an innermost module that has layers of its own and stands in a sequence of a network.
    """
    paths = blocks_of(network)
    for path in paths:
        block = network.get_submodule(path)
        extend_class(block, CheckpointedBlock, "Checkpointed")
        block._visible = visible  # type: ignore[assignment]
    return paths


@contextmanager
def _second_pass(block: nn.Module, shown: AbstractContextManager[None]) -> Iterator[None]:
    """Show what the first pass saw, and leave running statistics as it left them."""
    norms = [layer for layer in block.modules() if isinstance(layer, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    counts = [None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone() for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # of the new statistics
    try:
        with shown:
            yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            if count is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(count)
