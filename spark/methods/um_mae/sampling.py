"""Which patch of each cell is kept, and which kept ones are replaced (UM-MAE, arXiv 2205.10063, section 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

DROPPED, KEPT, REPLACED = 0, 1, 2


def draw(
    batch: int, grid: tuple[int, int], cell: int, secondary: float, pool: bool, generator: torch.Generator | None
) -> Tensor:
    """Draw masks: uint8 [batch, 1, rows, columns] on the CPU.

    Args:
        batch: number of images.
        grid: rows and columns of patches, multiples of `cell`.
        cell: k; one of k x k patches is kept.
        secondary: share of the kept patches that is replaced; of V, int(V * (1 - secondary)) are not.
        pool: draw the choices of an image without replacement from equally many of each, twice as many as are needed,
            rounded up to whole k * k.
        generator: without one, the CPU's default generator.
    """
    rows, columns = grid[0] // cell, grid[1] // cell
    cells, kinds = rows * columns, cell**2
    if pool:
        choices = math.ceil(2 * cells / kinds) * kinds
        choice = torch.rand(batch, choices, generator=generator).argsort(1)[:, :cells] % kinds
    else:
        choice = torch.randint(kinds, (batch, cells), generator=generator)
    order = torch.rand(batch, cells, generator=generator).argsort(1)
    seen = int(cells * (1 - secondary))
    value = torch.full((batch, cells), REPLACED, dtype=torch.uint8).scatter_(1, order[:, :seen], KEPT)
    inner = torch.zeros(batch, cells, kinds, dtype=torch.uint8).scatter_(2, choice[..., None], value[..., None])
    mask = inner.view(batch, rows, columns, cell, cell).transpose(2, 3).reshape(batch, 1, *grid)
    return mask
