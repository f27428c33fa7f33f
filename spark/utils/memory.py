"""How much memory autograd keeps: the part of a training step's memory that grows with the batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn


@contextmanager
def kept_for_backward(module: nn.Module) -> Iterator[dict[int, int]]:
    """Yield {address: bytes} of what a forward pass in the body keeps for its backward pass.

    The module's own parameters and buffers are left out; a tensor that several operations keep counts once.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in chain(module.parameters(), module.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept
