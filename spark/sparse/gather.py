"""Gather positions of a map by a table of indices; the index after the last position stands for "no position"."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Index = Tensor  # indices into the flattened positions [N, h, w] of a map; N * h * w stands for "no position"


def gather(x_NChw: Tensor, index: Index, fill: float = 0.0) -> Tensor:
    """Return the positions in a table [M, a, b], `fill` for "no position": [M, C, a, b], channels last."""
    positions = x_NChw.permute(0, 2, 3, 1).flatten(0, 2)
    nothing = positions.new_full((1, positions.shape[1]), fill)
    found = torch.cat([positions, nothing]).index_select(0, index.flatten())
    return found.unflatten(0, index.shape).permute(0, 3, 1, 2)


def add_back(grads: Tensor, index: Index, shape: torch.Size) -> Tensor:
    """Scatter-add gradients [..., C] into a map of the given shape: the backward pass of `gather`."""
    channels, count = grads.shape[-1], math.prod(shape) // shape[1]
    total = grads.new_zeros(count + 1, channels)  # the last row takes the gradients of "no position"
    total.index_add_(0, index.flatten(), grads.reshape(-1, channels))
    return total[:-1].unflatten(0, (shape[0], *shape[2:])).permute(0, 3, 1, 2)


def gather_rows(x_NChw: Tensor, table: Index) -> Tensor:
    """Return the positions in each row of a table [M, T], concatenated: [M, T * C]."""
    return gather(x_NChw, table[:, :, None]).permute(0, 2, 3, 1).flatten(1)
