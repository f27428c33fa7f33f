"""The masked engine: run the dense operator, keep masked positions at zero.

This is the definition of sparse convolution here (SparK, section 3.2): whatever the faster engine does must
agree with it. Each rule says how one kind of layer behaves while a mask is set. Shapes: B images, C
channels, H x W positions, N visible positions of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import timm.layers
import timm.layers.activations
import torch
from timm.models import convnext, resnet
from torch import Tensor, nn

from spark.sparse.state import VisiblePatches

Dense = Callable[[Tensor], Tensor]
Rule = Callable[[Dense, VisiblePatches, Tensor], Tensor]


def unchanged(dense: Dense, visible: VisiblePatches, x: Tensor) -> Tensor:
    """For operators that map each position by itself and zero to zero, and for compositions of layers."""
    return dense(x)


def zero_masked(dense: Dense, visible: VisiblePatches, x_BCHW: Tensor) -> Tensor:
    """For convolutions, and for norms over the channels of one position: whatever lands in holes is removed."""
    y_BCHW = dense(x_BCHW)
    return y_BCHW * visible.at(*y_BCHW.shape[-2:])


def zero_masked_channels_last(dense: Dense, visible: VisiblePatches, x_BHWC: Tensor) -> Tensor:
    """The same for layers that see channels last, such as the linear layers of a ConvNeXt block."""
    y_BHWC = dense(x_BHWC)
    return y_BHWC * visible.at(*y_BHWC.shape[1:3]).permute(0, 2, 3, 1)


def max_over_visible(dense: Dense, visible: VisiblePatches, x_BCHW: Tensor) -> Tensor:
    """For max pooling: holes must not win against negative values."""
    y_BCHW = dense(x_BCHW.masked_fill(~visible.at(*x_BCHW.shape[-2:]), -torch.inf))
    return y_BCHW.masked_fill(~visible.at(*y_BCHW.shape[-2:]), 0)


def statistics_over_visible(dense: Dense, visible: VisiblePatches, x_BCHW: Tensor) -> Tensor:
    """For batch norms: the layer itself sees the visible positions only, as N images of one position.

    Running statistics, momentum, synchronisation across ranks and a fused activation stay the layer's own.
    """
    mask_BHW = visible.at(*x_BCHW.shape[-2:]).squeeze(1)
    x_BHWC = x_BCHW.permute(0, 2, 3, 1)
    # As [N, C, 1, 1] and not [1, C, N, 1]: torch 2.14's batch norm on CPUs returns wrong gradients for the
    # transposed strides of the latter.
    y_NC = dense(x_BHWC[mask_BHW][:, :, None, None]).flatten(1)
    y_BHWC = torch.zeros_like(x_BHWC, dtype=y_NC.dtype)  # like: the memory format stays what it was
    y_BHWC[mask_BHW] = y_NC
    return y_BHWC.permute(0, 3, 1, 2)


RULES: Mapping[type[nn.Module], Rule] = MappingProxyType(
    {
        nn.Conv2d: zero_masked,
        nn.MaxPool2d: max_over_visible,
        nn.BatchNorm2d: statistics_over_visible,
        nn.SyncBatchNorm: statistics_over_visible,
        timm.layers.LayerNorm2d: zero_masked,
        timm.layers.LayerNorm: zero_masked_channels_last,
        nn.Linear: zero_masked_channels_last,
        # Position by position, and zero stays zero.
        nn.Identity: unchanged,
        nn.ReLU: unchanged,
        nn.GELU: unchanged,
        timm.layers.activations.GELU: unchanged,
        nn.Dropout: unchanged,
        timm.layers.DropPath: unchanged,
        # Compositions of layers from this table, sums of their outputs and per-channel scales.
        nn.Sequential: unchanged,
        timm.layers.Mlp: unchanged,
        resnet.ResNet: unchanged,
        resnet.BasicBlock: unchanged,
        resnet.Bottleneck: unchanged,
        convnext.ConvNeXt: unchanged,
        convnext.ConvNeXtStage: unchanged,
        convnext.ConvNeXtBlock: unchanged,
    }
)
