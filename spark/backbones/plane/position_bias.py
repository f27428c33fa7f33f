"""A bias of attention that is a function of true offsets, evaluated once per distinct offset.

Pairs of tokens are many (windows x tokens x tokens, in every image), distinct offsets few (31 x 31 for windows that
span 16 tokens). So the function's values are a table, and every pair looks its own up: the same numbers, and none of
the function's inner activations per pair to be kept for the backward pass.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from spark.backbones.plane.windows import Sides, pair


class Offsets(NamedTuple):
    """Where keys are as their queries see them.

    Attributes:
        pairs: row of each pair in `distinct`: [B or 1, windows, tokens, tokens], query by key.
        distinct: offsets, rows and columns, in tokens: [T, 2].
    """

    pairs: Tensor
    distinct: Tensor

    def look_up(self, table_TH: Tensor) -> Tensor:
        """Return each pair's entries of a table [T, heads]: [B or 1, windows, heads, tokens, tokens]."""
        return functional.embedding(self.pairs, table_TH).movedim(-1, 2)


def offsets_within(windows_BnN2: Tensor, per_token: int, reach: Sides, dtype: torch.dtype) -> Offsets:
    """Return the offsets (key minus query) between the tokens of each window.

    Args:
        windows_BnN2: positions of the tokens [B or 1, windows, tokens, 2], in whole units.
        per_token: units of a token.
        reach: no offset between tokens that see each other is further; what is further, across the seams of shifted
            windows, which attention masks, counts as just so far.
        dtype: of `distinct`.
    """
    down, across = pair(reach)
    offset = windows_BnN2[:, :, None] - windows_BnN2[:, :, :, None]
    device = offset.device
    axes = torch.arange(-down, down + 1, device=device), torch.arange(-across, across + 1, device=device)
    distinct = torch.cartesian_prod(*axes).to(dtype) / per_token
    row, column = offset[..., 0].clamp(-down, down) + down, offset[..., 1].clamp(-across, across) + across
    pairs = row * (2 * across + 1) + column
    return Offsets(pairs.int(), distinct)  # they are kept for the backward pass
