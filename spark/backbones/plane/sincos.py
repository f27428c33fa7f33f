"""Fixed codes of places: sines and cosines of rows and columns."""

from __future__ import annotations

import torch
from torch import Tensor


def sincos_table(width: int, rows: int, columns: int, prefix: int = 0) -> Tensor:
    """Return the code of every place of a grid, row by row: float32 [prefix + rows * columns, width].

    The first half of a code is of the column, the second of the row; each is sin(x w_k), cos(x w_k) with
    w_k = 10000 ** (-4 k / width) (MAE, arXiv 2111.06377; the order is that of its weights). Computed in float64.

    Args:
        width: of a code, a multiple of 4.
        rows: of the grid.
        columns: of the grid.
        prefix: tokens without a place, such as a class token: zeros.
    """
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))

    def code(places: int) -> Tensor:
        angles = torch.arange(places, dtype=torch.float64)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], 1)

    by_column = code(columns)[None].expand(rows, -1, -1)
    by_row = code(rows)[:, None].expand(-1, columns, -1)
    table = torch.cat([by_column, by_row], 2).flatten(0, 1).float()
    return torch.cat([torch.zeros(prefix, width), table])
