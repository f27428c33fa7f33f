"""The masked engine: run the dense operator, keep masked positions at zero.

This engine defines sparse convolution here (SparK, section 3.2); the compact engine must agree with it. Each
function defines how one kind of layer behaves while a mask is set. Shapes: B images, C channels, H x W positions,
V visible positions per image, B * V in the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spark.sparse.rule import Dense
from spark.sparse.state import VisiblePatches
from spark.sparse.window import counts_padding, windows_of


def zero_masked(layer: nn.Module, dense: Dense, visible: VisiblePatches, x_BCHW: Tensor) -> Tensor:
    """For convolutions, and for norms over the channels of one position: set the holes to zero afterwards."""
    y_BCHW = dense(x_BCHW)
    return y_BCHW * visible.at(*y_BCHW.shape[-2:])


def zero_masked_channels_last(layer: nn.Module, dense: Dense, visible: VisiblePatches, x_BHWC: Tensor) -> Tensor:
    """The same for channels-last layers, such as the linear layers of a ConvNeXt block."""
    y_BHWC = dense(x_BHWC)
    return y_BHWC * visible.at(*y_BHWC.shape[1:3]).permute(0, 2, 3, 1)


def max_over_visible(layer: nn.Module, dense: Dense, visible: VisiblePatches, x_BCHW: Tensor) -> Tensor:
    """For max pooling: a hole must never be the maximum, even of negative values."""
    y_BCHW = dense(x_BCHW.masked_fill(~visible.at(*x_BCHW.shape[-2:]), -torch.inf))
    return y_BCHW.masked_fill(~visible.at(*y_BCHW.shape[-2:]), 0)


def mean_over_window(layer: nn.Module, dense: Dense, visible: VisiblePatches, x_BCHW: Tensor) -> Tensor:
    """For average pooling: a hole counts like the zeros around an image, if the layer counts those."""
    y_BCHW = dense(x_BCHW)
    shown_BCHW = visible.at(*y_BCHW.shape[-2:])
    if not counts_padding(layer) and not all(window.stays_inside for window in windows_of(layer)):
        share_BCHW = dense(visible.at(*x_BCHW.shape[-2:]).to(x_BCHW.dtype))
        y_BCHW = y_BCHW / share_BCHW.masked_fill(~shown_BCHW, 1)
    return y_BCHW * shown_BCHW


def statistics_over_visible(layer: nn.Module, dense: Dense, visible: VisiblePatches, x_BCHW: Tensor) -> Tensor:
    """For batch norms: the layer receives only the visible positions, as images of one position.

    Running statistics, momentum, synchronization across ranks and a fused activation are left to the layer.
    """
    mask_BHW = visible.at(*x_BCHW.shape[-2:]).squeeze(1)
    x_BHWC = x_BCHW.permute(0, 2, 3, 1)
    # As [B * V, C, 1, 1] and not [1, C, B * V, 1]: torch 2.14's batch norm on CPUs returns wrong gradients for
    # the transposed strides of the latter.
    y = dense(x_BHWC[mask_BHW][:, :, None, None]).flatten(1)
    y_BHWC = torch.zeros_like(x_BHWC, dtype=y.dtype)  # zeros_like keeps the memory format
    y_BHWC[mask_BHW] = y
    return y_BHWC.permute(0, 3, 1, 2)


def over_visible_of_image(layer: nn.Module, dense: Dense, visible: VisiblePatches, x_BCHW: Tensor) -> Tensor:
    """For gates and norms that reduce over an image: the layer receives the visible positions, as a V x 1 map.

    So it computes the mean, maximum or norm over the visible positions of each image.
    """
    return over_visible_of_image_channels_last(
        layer, lambda x_BV1C: dense(x_BV1C.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), visible, x_BCHW.permute(0, 2, 3, 1)
    ).permute(0, 3, 1, 2)


def over_visible_of_image_channels_last(
    layer: nn.Module, dense: Dense, visible: VisiblePatches, x_BHWC: Tensor
) -> Tensor:
    """The same for channels-last layers, such as the response norm of ConvNeXt V2."""
    mask_BHW = visible.at(*x_BHWC.shape[1:3]).squeeze(1)
    y_BV1C = dense(x_BHWC[mask_BHW].unflatten(0, (len(x_BHWC), -1, 1)))
    y_BHWC = y_BV1C.new_zeros(*x_BHWC.shape[:3], y_BV1C.shape[3])
    y_BHWC[mask_BHW] = y_BV1C.flatten(0, 2)
    return y_BHWC
