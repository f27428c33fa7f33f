"""The known layers, by exact type, and the rule of each.

Exact types, because a subclass may do more than its base class (BatchNormAct2d also applies an activation).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import timm.layers
from timm.layers import activations, activations_me, cbam, norm
from timm.layers.grn import GlobalResponseNorm
from timm.layers.pool2d_same import MaxPool2dSame
from timm.layers.squeeze_excite import SqueezeExciteCl
from timm.layers.std_conv import ScaledStdConv2dSame, StdConv2dSame
from timm.models import _efficientnet_blocks as efficientnet_blocks
from timm.models import fastvit, focalnet, hgnet, metaformer, nfnet, senet
from torch import nn

from spark.sparse import blocks, compact, masked, reflected
from spark.sparse.compositions import is_composition, reason_against
from spark.sparse.rule import LayerRule, unchanged
from spark.sparse.window import average_misfit, blur_misfit, misfit

COMPOSITION = LayerRule(unchanged, unchanged, name="block of layers")
"""Calls layers of this table and sums, scales or concatenates what they return: zero stays zero."""

SEQUENCE = LayerRule(unchanged, unchanged, inner=blocks.padded_layers, name="block of layers")
"""The same; what pads a map and what follows on it is seen together."""

ZERO_TO_ZERO = LayerRule(unchanged, unchanged, name="unchanged: zero stays zero")
"""Maps every position, or every patch, by itself, and zero to zero: activations, dropout, layer scale."""

POINTWISE = LayerRule(masked.zero_masked, unchanged, name="visible positions, each by itself")
"""Maps every position by itself, but not zero to zero."""

POINTWISE_CHANNELS_LAST = LayerRule(
    masked.zero_masked_channels_last, unchanged, channels_last=True, name=POINTWISE.name
)
"""The same for layers that see [B, H, W, C]."""

CONVOLUTION = LayerRule(masked.zero_masked, compact.convolution, refuses=misfit, name="sparse convolution")
STD_CONVOLUTION = LayerRule(
    masked.zero_masked,
    compact.convolution_by(compact.standardized_weight),
    refuses=misfit,
    name=CONVOLUTION.name,
)
SCALED_STD_CONVOLUTION = LayerRule(
    masked.zero_masked,
    compact.convolution_by(compact.scaled_standardized_weight),
    refuses=misfit,
    name=CONVOLUTION.name,
)
MAX_POOL = LayerRule(masked.max_over_visible, compact.max_pool, refuses=misfit, name="maximum over the visible")
AVERAGE_POOL = LayerRule(
    masked.mean_over_window,
    compact.average_pool,
    refuses=average_misfit,
    name="mean over a window, holes being like padding",
)
BLUR_POOL = LayerRule(masked.zero_masked, compact.blur_pool, refuses=blur_misfit, name="sparse blur")
REFLECTED_BLUR_POOL = LayerRule(
    reflected.blur_pool,
    reflected.blur_pool,
    refuses=reflected.misfit,
    name="sparse blur, reflected where nothing is visible",
)

BATCH_NORM = LayerRule(
    masked.statistics_over_visible, unchanged, inner_maps=False, name="statistics over the batch's visible positions"
)
"""Statistics over all visible positions of the batch; a compact map has no others."""

OVER_IMAGE = LayerRule(
    masked.over_visible_of_image, compact.over_image, inner_maps=False, name="reduces over an image's visible positions"
)
"""Reduces over the positions of an image, then acts on every position: gates, group norm."""

OVER_IMAGE_CHANNELS_LAST = LayerRule(
    masked.over_visible_of_image_channels_last,
    compact.over_image_channels_last,
    channels_last=True,
    inner_maps=False,
    name=OVER_IMAGE.name,
)

PER_IMAGE = LayerRule(unchanged, compact.per_image, name="draws once per image")
"""Draws once per image."""

SPLIT_ATTENTION = LayerRule(
    blocks.split_attention(masked.over_visible_of_image),
    blocks.split_attention(compact.over_image),
    inner=lambda layer: blocks.vectors("fc1", "bn1", "act1", "fc2", "rsoftmax"),
    name=OVER_IMAGE.name,
)
SELECTIVE_KERNEL = LayerRule(
    blocks.selective_kernel(masked.over_visible_of_image),
    blocks.selective_kernel(compact.over_image),
    inner=lambda layer: blocks.vectors("attn"),
    name=OVER_IMAGE.name,
)
FOCAL_MODULATION = LayerRule(
    blocks.focal_modulation(masked.over_visible_of_image),
    blocks.focal_modulation(compact.over_image),
    name=OVER_IMAGE.name,
)
CONDITIONAL_CONVOLUTIONS = LayerRule(
    blocks.conditional_convolutions,
    blocks.conditional_convolutions,
    inner=lambda layer: blocks.vectors("routing_fn", "conv_pw", "conv_dw", "conv_pwl"),
    name="sparse convolutions with weights of the image's own",
)
HGNET_STEM = LayerRule(unchanged, blocks.hgnet_stem, inner=blocks.hgnet_stem_layers, name=COMPOSITION.name)


def refused(reason: str) -> LayerRule:
    """Return the rule of layers that have no sparse form, or none yet."""
    return LayerRule(unchanged, None, inner_maps=False, refuses=lambda layer: reason)


def response_norm(layer: nn.Module) -> LayerRule:
    """ConvNeXt V2's norm follows the layout of the MLP around it."""
    return OVER_IMAGE if layer.channel_dim == 1 else OVER_IMAGE_CHANNELS_LAST


def layer_norm(layer: Any) -> LayerRule:
    """PyTorch's norm over the last dimensions. A single one means the channels."""
    single = len(layer.normalized_shape) == 1
    return POINTWISE_CHANNELS_LAST if single else refused("normalises over a map of fixed size")


def nearest_upsampling(layer: Any) -> LayerRule:
    """Each position becomes a square of positions within its patch."""
    scales = layer.scale_factor if isinstance(layer.scale_factor, tuple) else (layer.scale_factor or 0.5,)
    whole = all(float(scale).is_integer() for scale in scales)
    return ZERO_TO_ZERO if layer.mode == "nearest" and whole else refused("interpolates between positions")


def blur_pool(layer: Any) -> LayerRule:
    """timm's default padding is reflection."""
    return REFLECTED_BLUR_POOL if layer.pad_mode == "reflect" else BLUR_POOL


def inactive(attribute: str) -> Callable[[nn.Module], LayerRule]:
    """Return the rule of layers that drop whole regions: supported only if their probability is 0."""
    return lambda layer: ZERO_TO_ZERO if getattr(layer, attribute) == 0 else refused("drops whole regions of a map")


RuleChoice = LayerRule | Callable[[nn.Module], LayerRule]

_RULES: tuple[tuple[RuleChoice, tuple[type[nn.Module], ...]], ...] = (
    # Windows
    (CONVOLUTION, (nn.Conv2d, timm.layers.Conv2dSame)),
    (STD_CONVOLUTION, (timm.layers.StdConv2d, StdConv2dSame)),
    (SCALED_STD_CONVOLUTION, (timm.layers.ScaledStdConv2d, ScaledStdConv2dSame)),
    (MAX_POOL, (nn.MaxPool2d, MaxPool2dSame)),
    (AVERAGE_POOL, (nn.AvgPool2d, timm.layers.AvgPool2dSame)),
    (blur_pool, (timm.layers.BlurPool2d,)),
    # Norms
    (BATCH_NORM, (nn.BatchNorm2d, nn.SyncBatchNorm, timm.layers.BatchNormAct2d, timm.layers.SyncBatchNormAct)),
    (
        POINTWISE,
        (
            *(timm.layers.FrozenBatchNormAct2d, timm.layers.LayerNorm2d, timm.layers.LayerNorm2dFp32),
            *(timm.layers.LayerNormAct2d, timm.layers.LayerNormAct2dFp32, norm.LayerNormExp2d),
            *(timm.layers.RmsNorm2d, timm.layers.RmsNorm2dFp32, timm.layers.RmsNormAct2d),
            *(timm.layers.RmsNormAct2dFp32, timm.layers.SimpleNorm2d, timm.layers.SimpleNorm2dFp32),
            metaformer.LayerNorm2dNoBias,
        ),
    ),
    (
        POINTWISE_CHANNELS_LAST,
        (
            *(timm.layers.LayerNorm, timm.layers.LayerNormFp32, timm.layers.LayerNormAct),
            *(timm.layers.RmsNorm, timm.layers.SimpleNorm, nn.Linear),
        ),
    ),
    (layer_norm, (nn.LayerNorm,)),
    (
        OVER_IMAGE,
        (
            *(nn.GroupNorm, nn.InstanceNorm2d, timm.layers.GroupNorm, timm.layers.GroupNorm1),
            *(timm.layers.GroupNormAct, timm.layers.GroupNorm1Act, metaformer.GroupNorm1NoBias),
            *(timm.layers.EvoNorm2dB0, timm.layers.EvoNorm2dB1, timm.layers.EvoNorm2dB2),
            *(timm.layers.EvoNorm2dS0, timm.layers.EvoNorm2dS0a, timm.layers.EvoNorm2dS1),
            *(timm.layers.EvoNorm2dS1a, timm.layers.EvoNorm2dS2, timm.layers.EvoNorm2dS2a),
            *(timm.layers.FilterResponseNormTlu2d, timm.layers.FilterResponseNormAct2d),
        ),
    ),
    (response_norm, (GlobalResponseNorm,)),
    # Gates
    (
        OVER_IMAGE,
        (
            *(timm.layers.SEModule, timm.layers.EffectiveSEModule, efficientnet_blocks.SqueezeExcite),
            *(senet.SEModule, hgnet.EseModule, timm.layers.EcaModule, timm.layers.CecaModule),
            *(timm.layers.GlobalContext, cbam.ChannelAttn, cbam.LightChannelAttn),
        ),
    ),
    (OVER_IMAGE_CHANNELS_LAST, (SqueezeExciteCl,)),
    # Position by position
    (
        ZERO_TO_ZERO,
        (
            *(nn.Identity, nn.Dropout, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU),
            *(nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh, activations.Swish, activations.Mish, activations.Tanh),
            *(activations.HardSwish, activations.HardMish, activations.PReLU, activations.GELU),
            *(activations.GELUTanh, activations.QuickGELU, activations_me.SwishMe, activations_me.MishMe),
            *(activations_me.HardSwishMe, activations_me.HardMishMe),
            *(timm.layers.LayerScale, timm.layers.LayerScale2d, fastvit.LayerScale2d, metaformer.Scale),
            *(timm.layers.SpaceToDepth, timm.layers.DepthToSpace, nn.PixelShuffle, nn.PixelUnshuffle),
        ),
    ),
    (
        POINTWISE,
        (
            *(nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.LogSigmoid, nn.Hardtanh, activations.Sigmoid),
            *(activations.HardSigmoid, activations_me.HardSigmoidMe, nfnet.GammaAct, metaformer.StarReLU),
            hgnet.LearnableAffineBlock,
        ),
    ),
    (nearest_upsampling, (nn.Upsample,)),
    # Random draws
    (PER_IMAGE, (timm.layers.DropPath,)),
    (inactive("drop_prob"), (timm.layers.DropBlock2d,)),
    (inactive("p"), (nn.Dropout2d,)),
    # Blocks
    (SEQUENCE, (nn.Sequential,)),
    (
        COMPOSITION,
        (
            *(nn.ModuleList, nn.ModuleDict, timm.layers.ConvNormAct, timm.layers.SeparableConvNormAct),
            *(timm.layers.SeparableConv2d, timm.layers.MixedConv2d, timm.layers.Mlp, timm.layers.GluMlp),
            *(timm.layers.SwiGLU, timm.layers.ConvMlp, timm.layers.GlobalResponseNormMlp),
            *(cbam.CbamModule, cbam.LightCbamModule, cbam.SpatialAttn, cbam.LightSpatialAttn),
        ),
    ),
    (SPLIT_ATTENTION, (timm.layers.SplitAttn,)),
    (SELECTIVE_KERNEL, (timm.layers.SelectiveKernel,)),
    (FOCAL_MODULATION, (focalnet.FocalModulation,)),
    (CONDITIONAL_CONVOLUTIONS, (efficientnet_blocks.CondConvResidual,)),
    (HGNET_STEM, (hgnet.StemV2,)),
    # Not supported in a sparse network
    (refused("pads a map otherwise than right before a convolution or max pooling"), (nn.ZeroPad2d, nn.ConstantPad2d)),
    (refused("pools an image to a fixed size"), (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)),
    (refused("spreads a position over its neighbours"), (nn.ConvTranspose2d,)),
)

LAYERS: Mapping[type[nn.Module], RuleChoice] = MappingProxyType(
    {layer: rule for rule, layers in _RULES for layer in layers}
)


def rule_of(layer: nn.Module, extra: Mapping[type[nn.Module], LayerRule] | None = None) -> LayerRule | None:
    """Return the rule of a layer, by its exact type, or None if it is not known."""
    found = (extra or {}).get(type(layer)) or LAYERS.get(type(layer))
    if found is not None:
        return found if isinstance(found, LayerRule) else found(layer)
    if reason := reason_against(type(layer)):
        return refused(reason)
    return COMPOSITION if is_composition(type(layer)) else None
