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


def offsets_within(windows_BnN2: Tensor, per_token: int, reach: int, dtype: torch.dtype) -> Offsets:
    """Return the offsets (key minus query) between the tokens of each window.

    Args:
        windows_BnN2: positions of the tokens [B or 1, windows, tokens, 2], in whole units.
        per_token: units of a token.
        reach: no offset between tokens that see each other is further; what is further, across the seams of shifted
            windows, which attention masks, counts as just so far.
        dtype: of `distinct`.
    """
    offset = (windows_BnN2[:, :, None] - windows_BnN2[:, :, :, None]).clamp(-reach, reach) + reach
    axis = torch.arange(-reach, reach + 1, device=offset.device)
    distinct = torch.cartesian_prod(axis, axis).to(dtype) / per_token
    pairs = offset[..., 0] * (2 * reach + 1) + offset[..., 1]
    return Offsets(pairs.int(), distinct)  # they are kept for the backward pass
