"""The original's global response norm: its norm is taken over the visible positions of all images together."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spark.sparse.rule import Dense, LayerRule
from spark.sparse.state import VisiblePatches


def over_batch(layer: Any, dense: Dense, visible: VisiblePatches, x: Tensor) -> Tensor:
    """For timm's GlobalResponseNorm, on either engine: it sees the visible positions as one image of V x 1."""
    if layer.channel_dim == 1:  # [B, C, H, W]
        return _over_batch(
            lambda x_1V1C: dense(x_1V1C.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), visible, x.permute(0, 2, 3, 1)
        ).permute(0, 3, 1, 2)
    return _over_batch(dense, visible, x)


def _over_batch(dense: Dense, visible: VisiblePatches, x_BHWC: Tensor) -> Tensor:
    if visible.engine == "compact":
        return dense(x_BHWC.reshape(1, -1, 1, x_BHWC.shape[-1])).reshape(x_BHWC.shape)
    shown_BHW = visible.at(*x_BHWC.shape[1:3]).squeeze(1)
    y_1V1C = dense(x_BHWC[shown_BHW][None, :, None])
    y_BHWC = y_1V1C.new_zeros(x_BHWC.shape)
    y_BHWC[shown_BHW] = y_1V1C[0, :, 0]
    return y_BHWC


OVER_BATCH = LayerRule(over_batch, over_batch, inner_maps=False, name="reduces over the batch's visible positions")
