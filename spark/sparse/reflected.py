"""Blur pooling with reflection padding, as in timm's anti-aliased networks.

Beyond what is visible lies what lies beyond an image: zeros for other windows, its mirror image here. A patch whose
neighbour is visible looks into the neighbour; one whose neighbour is masked, or outside of the image, sees its own
positions again. Which value a hole stands for depends on the patch that looks, so both engines compute on patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spark.sparse.gather import Index, gather
from spark.sparse.rule import Dense
from spark.sparse.state import VisiblePatches
from spark.sparse.window import Windows, blur_windows, windows_misfit


def blur_pool(layer: Any, dense: Dense, visible: VisiblePatches, x: Tensor) -> Tensor:
    """A depthwise convolution by a fixed filter, on either engine's maps."""
    x_NChw = x if visible.engine == "compact" else visible.take(x)
    h, w = x_NChw.shape[-2:]
    windows, channels = blur_windows(layer), x_NChw.shape[1]
    index = visible.cached(("reflected", h, w, windows), lambda: _reflected(h, w, windows, visible))
    filters = layer.filt.expand(channels, -1, -1, -1)
    y_NChw = functional.conv2d(gather(x_NChw, index), filters, stride=layer.stride, groups=channels)
    return y_NChw if visible.engine == "compact" else visible.put(y_NChw)


def misfit(layer: Any) -> str | None:
    """Return why a reflecting blur pooling has no sparse form, if so."""
    if layer.padding[0] >= layer.stride:  # a patch may be as small as a stride
        return "reflects more positions than a patch may have"
    return windows_misfit(blur_windows(layer))


def _reflected(h: int, w: int, windows: Windows, visible: VisiblePatches) -> Index:
    """Return the indices of each patch's tile: [N, tile height, tile width].

    Positions that are not visible are mirrored: first across the patch's upper or lower border, then across the
    left or right one, then across both, which always ends in the patch itself.
    """
    down, across = (list(window.tile(side)) for window, side in zip(windows, (h, w), strict=True))
    index = visible.lookup(h, w, down, across)
    nothing = len(visible.patch_ids) * h * w
    for rows, columns in (
        (_mirrored(down, h), across), (down, _mirrored(across, w)), (_mirrored(down, h), _mirrored(across, w))
    ):  # fmt: skip
        index = torch.where(index == nothing, visible.lookup(h, w, rows, columns), index)
    return index


def _mirrored(positions: Sequence[int], side: int) -> list[int]:
    """Reflect positions outside 0..side-1 at the first and last position, without repeating these."""
    return [side - 1 - abs(side - 1 - abs(position)) for position in positions]
