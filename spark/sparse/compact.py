"""The compact engine: store and compute visible patches only.

Every image shows the same number of patches, K, so the visible part of a feature map is a dense tensor whose
shape does not depend on the mask: [N, C, h, w] with N = B * K, *a visible patch is a batch entry*. It has no
holes. Layers that treat each position separately (1x1 convolutions, norms over channels, activations, sums) run
unchanged, and so does batch norm: all positions are visible ones, so its statistics are right. Three kinds of
layers need the rules below: windows that reach over a patch's border, layers that reduce over an image, and layers
that draw random numbers per image. The results equal the masked engine's up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from spark.sparse.convolution import convolve, tiles
from spark.sparse.rule import Dense, SparseForward
from spark.sparse.state import VisiblePatches
from spark.sparse.window import Windows, after_padding, blur_windows, counts_padding, sizes_of, windows_of


def convolution(layer: nn.Module, dense: Dense, visible: VisiblePatches, x_NChw: Tensor) -> Tensor:
    """Convolve across patch borders: visible neighbors are used, everything else is zero."""
    assert isinstance(layer, nn.Conv2d)
    return convolve(x_NChw, layer.weight, layer.bias, windows_of(layer), layer.groups, visible)


def convolution_by(weight_of: Callable[[nn.Module], Tensor]) -> SparseForward:
    """For convolutions whose weight is computed from their parameters in every forward pass."""

    def sparse_forward(layer: Any, dense: Dense, visible: VisiblePatches, x_NChw: Tensor) -> Tensor:
        return convolve(x_NChw, weight_of(layer), layer.bias, windows_of(layer), layer.groups, visible)

    return sparse_forward


def standardized_weight(layer: Any) -> Tensor:
    """Return the weight that timm's StdConv2d convolves with: mean 0 and variance 1 for each output channel."""
    flat = layer.weight.reshape(1, layer.out_channels, -1)
    return functional.batch_norm(flat, None, None, training=True, momentum=0.0, eps=layer.eps).view_as(layer.weight)


def scaled_standardized_weight(layer: Any) -> Tensor:
    """Return the weight that timm's ScaledStdConv2d convolves with: the same, times a learned gain."""
    gain = (layer.gain * layer.scale).view(-1)
    flat = layer.weight.reshape(1, layer.out_channels, -1)
    normal = functional.batch_norm(flat, None, None, weight=gain, training=True, momentum=0.0, eps=layer.eps)
    return normal.view_as(layer.weight)


def blur_pool(layer: Any, dense: Dense, visible: VisiblePatches, x_NChw: Tensor) -> Tensor:
    """A depthwise convolution by a fixed filter."""
    channels = x_NChw.shape[1]
    weight = layer.filt.expand(channels, -1, -1, -1)
    return convolve(x_NChw, weight, None, blur_windows(layer), channels, visible)


def padding(layer: nn.Module, dense: Dense, visible: VisiblePatches, x_NChw: Tensor) -> Tensor:
    """Do nothing: the windows of the next layer include this padding."""
    return x_NChw


@cache
def convolution_after(pad: tuple[int, int, int, int]) -> SparseForward:
    """For convolutions of a map that a separate layer padded: left, right, top, bottom."""

    def sparse_forward(layer: Any, dense: Dense, visible: VisiblePatches, x_NChw: Tensor) -> Tensor:
        windows = after_padding(windows_of(layer), *pad)
        return convolve(x_NChw, layer.weight, layer.bias, windows, layer.groups, visible)

    return sparse_forward


@cache
def max_pool_after(pad: tuple[int, int, int, int]) -> SparseForward:
    """The same for max pooling. Zeros of padding and holes count as ordinary values: they exceed negative ones."""

    def sparse_forward(layer: Any, dense: Dense, visible: VisiblePatches, x_NChw: Tensor) -> Tensor:
        return _max_pool(x_NChw, after_padding(windows_of(layer), *pad), visible, fill=0.0)

    return sparse_forward


def max_pool(layer: nn.Module, dense: Dense, visible: VisiblePatches, x_NChw: Tensor) -> Tensor:
    """As for convolutions, but positions that are not visible must never be the maximum."""
    return _max_pool(x_NChw, windows_of(layer), visible, fill=-torch.inf)


def _max_pool(x_NChw: Tensor, windows: Windows, visible: VisiblePatches, fill: float) -> Tensor:
    tile = tiles(x_NChw, windows, visible, fill)
    return functional.max_pool2d(tile, *sizes_of(windows), dilation=[window.dilation for window in windows])


def average_pool(layer: nn.Module, dense: Dense, visible: VisiblePatches, x_NChw: Tensor) -> Tensor:
    """Windows inside a patch run unchanged; others divide by the visible count, or by their size if zeros count."""
    windows = windows_of(layer)
    if all(window.stays_inside for window in windows):
        return dense(x_NChw)
    mean = functional.avg_pool2d(tiles(x_NChw, windows, visible), *sizes_of(windows))
    if counts_padding(layer):
        return mean
    ones = x_NChw.new_ones(len(x_NChw), 1, *x_NChw.shape[2:])
    return mean / functional.avg_pool2d(tiles(ones, windows, visible), *sizes_of(windows))


def over_image(layer: nn.Module, dense: Dense, visible: VisiblePatches, x_NChw: Tensor) -> Tensor:
    """For gates and norms that reduce over an image: they see its K patches as a map of K * h * w x 1 positions."""
    x_NhwC = x_NChw.permute(0, 2, 3, 1)
    as_image = x_NhwC.reshape(-1, visible.per_image * x_NhwC[0, ..., 0].numel(), 1, x_NhwC.shape[-1])
    y = dense(as_image.permute(0, 3, 1, 2))
    return y.permute(0, 2, 3, 1).reshape(*x_NhwC.shape[:3], -1).permute(0, 3, 1, 2)


def over_image_channels_last(layer: nn.Module, dense: Dense, visible: VisiblePatches, x_NhwC: Tensor) -> Tensor:
    """The same for channels-last layers, such as the response norm of ConvNeXt V2."""
    as_image = x_NhwC.reshape(-1, visible.per_image * x_NhwC[0, ..., 0].numel(), 1, x_NhwC.shape[-1])
    return dense(as_image).reshape(x_NhwC.shape)


def per_image(layer: nn.Module, dense: Dense, visible: VisiblePatches, x: Tensor) -> Tensor:
    """For drop path: one draw for the K patches of an image together, as for the whole image."""
    return dense(x.unflatten(0, (-1, visible.per_image))).flatten(0, 1)
