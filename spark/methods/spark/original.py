"""How the original computes: the scheme that benchmarks compare with, written plainly. Not for training.

Every convolution runs over the whole map and is multiplied by the mask; every norm looks for the visible positions,
gathers them, normalizes, and scatters them into zeros; a ConvNeXt block is multiplied by the mask at its end; the
decoder runs layer by layer. Everything else is the masked engine's, and so are the numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

import timm.layers
import torch
from timm.models import convnext
from torch import Tensor, nn

from spark.backbones.timm_pyramid import build_pyramid
from spark.methods.spark.config import SparKConfig
from spark.methods.spark.decoder import DecoderBlock
from spark.methods.spark.model import SparK
from spark.methods.variant import Variant, with_engine
from spark.sparse import masked
from spark.sparse.rule import Dense, LayerRule, unchanged
from spark.sparse.state import VisiblePatches


def gather_norm_scatter(layer: nn.Module, dense: Dense, visible: VisiblePatches, x_BCHW: Tensor) -> Tensor:
    """Norms of [B, C, H, W]: the visible positions are looked for anew by every layer."""
    return gather_norm_scatter_channels_last(
        layer, lambda x: dense(x[:, :, None, None]).flatten(1), visible, x_BCHW.permute(0, 2, 3, 1)
    ).permute(0, 3, 1, 2)


def gather_norm_scatter_channels_last(
    layer: nn.Module, dense: Dense, visible: VisiblePatches, x_BHWC: Tensor
) -> Tensor:
    """Norms of [B, H, W, C]."""
    positions = visible.at(*x_BHWC.shape[1:3]).squeeze(1).nonzero(as_tuple=True)
    y_BHWC = torch.zeros_like(x_BHWC)
    y_BHWC[positions] = dense(x_BHWC[positions])
    return y_BHWC


LAYERS: Mapping[type[nn.Module], LayerRule] = MappingProxyType(
    {
        nn.BatchNorm2d: LayerRule(gather_norm_scatter, None),
        timm.layers.LayerNorm2d: LayerRule(gather_norm_scatter, None),
        timm.layers.LayerNorm: LayerRule(gather_norm_scatter_channels_last, None),
        nn.Linear: LayerRule(unchanged, None),
        convnext.ConvNeXtBlock: LayerRule(masked.zero_masked, None),
    }
)


class PlainBlock(DecoderBlock):
    """A decoder block, layer by layer."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C / 2, 2H, 2W]"""
        x_BCHW = self.act(self.norm1(self.conv1(self.upsample(x_BCHW))))
        return self.norm2(self.conv2(x_BCHW))


def build_original(config: SparKConfig) -> SparK:
    """Build the model of a run so that it computes as the original does."""
    network = config.model
    pyramid = build_pyramid(network.name, network.in_chans, network.drop_path, network.options)
    spark = SparK(pyramid, config.mask.ratio, config.decoder.width, "masked", extra_layers=LAYERS)
    for block in spark.decoder.blocks:
        block.__class__ = PlainBlock
    return spark


def variants(precision: str, compile: bool) -> list[Variant]:
    """Return the original's scheme, the masked engine tuned, and the compact one, for benchmarks."""
    compact = Variant("compact", with_engine(SparK.from_config, "compact"), precision=precision)
    return [
        Variant("original", build_original, torch.contiguous_format, foreach=False, baseline=True),
        Variant("masked", with_engine(SparK.from_config, "masked"), precision=precision),
        compact,
        *([dataclasses.replace(compact, label="compact compiled", compile=True)] if compile else []),
    ]
