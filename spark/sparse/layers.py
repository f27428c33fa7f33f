"""Which layers are known, by exact type, and of which kind they are.

Exact types: a subclass that nobody looked at may do something else beside (BatchNormAct2d also activates).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import timm.layers
import timm.layers.activations
from timm.layers.grn import GlobalResponseNorm
from timm.layers.pool2d_same import MaxPool2dSame
from timm.models import _efficientnet_blocks as efficientnet_blocks
from timm.models import convnext, efficientnet, resnet
from torch import nn

from spark.sparse import compact, masked
from spark.sparse.rule import Kind, unchanged
from spark.sparse.window import misfit

COMPOSITION = Kind(unchanged, unchanged)
"""Calls layers of this table and sums, scales or concatenates what they return: zero stays zero."""

ZERO_TO_ZERO = Kind(unchanged, unchanged)
"""Maps every position by itself, and zero to zero: activations, dropout."""

POINTWISE = Kind(masked.zero_masked, unchanged)
"""Maps every position by itself, but not zero to zero."""

POINTWISE_CHANNELS_LAST = Kind(masked.zero_masked_channels_last, unchanged, channels_last=True)
"""The same for layers that see [B, H, W, C]."""

CONVOLUTION = Kind(masked.zero_masked, compact.convolution, refuses=misfit)
MAX_POOL = Kind(masked.max_over_visible, compact.max_pool, refuses=misfit)
AVERAGE_POOL = Kind(masked.mean_over_window, compact.average_pool, refuses=misfit)

BATCH_NORM = Kind(masked.statistics_over_visible, unchanged, inner_maps=False)
"""Statistics over all visible positions of the batch; a compact map has no others."""

OVER_IMAGE = Kind(masked.over_visible_of_image, compact.over_image, inner_maps=False)
"""Reduces over the positions of an image, then acts on every position: gates, group norm."""

OVER_IMAGE_CHANNELS_LAST = Kind(
    masked.over_visible_of_image_channels_last, compact.over_image_channels_last, channels_last=True, inner_maps=False
)

PER_IMAGE = Kind(unchanged, compact.per_image)
"""Draws once per image."""



def response_norm(layer: nn.Module) -> Kind:
    """ConvNeXt V2's norm follows the layout of the MLP around it."""
    return OVER_IMAGE if layer.channel_dim == 1 else OVER_IMAGE_CHANNELS_LAST


LAYERS: Mapping[type[nn.Module], Kind | Callable[[nn.Module], Kind]] = MappingProxyType(
    {
        nn.Conv2d: CONVOLUTION,
        timm.layers.Conv2dSame: CONVOLUTION,
        nn.MaxPool2d: MAX_POOL,
        MaxPool2dSame: MAX_POOL,
        nn.AvgPool2d: AVERAGE_POOL,
        timm.layers.AvgPool2dSame: AVERAGE_POOL,
        nn.BatchNorm2d: BATCH_NORM,
        nn.SyncBatchNorm: BATCH_NORM,
        timm.layers.BatchNormAct2d: BATCH_NORM,
        timm.layers.SyncBatchNormAct: BATCH_NORM,
        timm.layers.FrozenBatchNormAct2d: POINTWISE,
        timm.layers.LayerNorm2d: POINTWISE,
        timm.layers.LayerNormAct2d: POINTWISE,
        timm.layers.LayerNorm: POINTWISE_CHANNELS_LAST,
        nn.Linear: POINTWISE_CHANNELS_LAST,
        nn.GroupNorm: OVER_IMAGE,
        timm.layers.GroupNorm: OVER_IMAGE,
        timm.layers.GroupNorm1: OVER_IMAGE,
        timm.layers.GroupNormAct: OVER_IMAGE,
        timm.layers.SEModule: OVER_IMAGE,
        timm.layers.EffectiveSEModule: OVER_IMAGE,
        efficientnet_blocks.SqueezeExcite: OVER_IMAGE,
        GlobalResponseNorm: response_norm,
        timm.layers.DropPath: PER_IMAGE,
        nn.Identity: ZERO_TO_ZERO,
        nn.ReLU: ZERO_TO_ZERO,
        nn.ReLU6: ZERO_TO_ZERO,
        nn.GELU: ZERO_TO_ZERO,
        nn.SiLU: ZERO_TO_ZERO,
        nn.Hardswish: ZERO_TO_ZERO,
        timm.layers.activations.GELU: ZERO_TO_ZERO,
        timm.layers.activations.Swish: ZERO_TO_ZERO,
        nn.Dropout: ZERO_TO_ZERO,
        nn.Sequential: COMPOSITION,
        timm.layers.Mlp: COMPOSITION,
        timm.layers.GlobalResponseNormMlp: COMPOSITION,
        resnet.ResNet: COMPOSITION,
        resnet.BasicBlock: COMPOSITION,
        resnet.Bottleneck: COMPOSITION,
        convnext.ConvNeXt: COMPOSITION,
        convnext.ConvNeXtStage: COMPOSITION,
        convnext.ConvNeXtBlock: COMPOSITION,
        efficientnet.EfficientNet: COMPOSITION,
        efficientnet_blocks.ConvBnAct: COMPOSITION,
        efficientnet_blocks.DepthwiseSeparableConv: COMPOSITION,
        efficientnet_blocks.InvertedResidual: COMPOSITION,
        efficientnet_blocks.EdgeResidual: COMPOSITION,
    }
)


def kind_of(layer: nn.Module, extra: Mapping[type[nn.Module], Kind] | None = None) -> Kind | None:
    """Return the kind of a layer, by its exact type, or None if it is not known."""
    found = (extra or {}).get(type(layer)) or LAYERS.get(type(layer))
    return found if isinstance(found, Kind | None) else found(layer)
