"""Positions of a map, looked up in a table of indices; the last index is the one of nothing."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Index = Tensor  # indices into the positions of a map as [N, h, w]; their number where there is nothing


def gather(x_NChw: Tensor, index: Index, fill: float = 0.0) -> Tensor:
    """Return the positions that a table [M, a, b] names, `fill` for nothing: [M, C, a, b], channels last."""
    positions = x_NChw.permute(0, 2, 3, 1).flatten(0, 2)
    nothing = positions.new_full((1, positions.shape[1]), fill)
    found = torch.cat([positions, nothing]).index_select(0, index.flatten())
    return found.unflatten(0, index.shape).permute(0, 3, 1, 2)


def add_back(grads: Tensor, index: Index, shape: torch.Size) -> Tensor:
    """Add gradients [..., C] to the positions, of a map of that shape, that they came from; `gather` in reverse."""
    channels, count = grads.shape[-1], math.prod(shape) // shape[1]
    total = grads.new_zeros(count + 1, channels)  # the last one is for what came from nowhere
    total.index_add_(0, index.flatten(), grads.reshape(-1, channels))
    return total[:-1].unflatten(0, (shape[0], *shape[2:])).permute(0, 3, 1, 2)


def gather_rows(x_NChw: Tensor, table: Index) -> Tensor:
    """Return the positions that each row of a table [M, T] names, side by side: [M, T * C]."""
    return gather(x_NChw, table[:, :, None]).permute(0, 2, 3, 1).flatten(1)
