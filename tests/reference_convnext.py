"""ConvNeXt (V1 and V2) written anew from the papers, its layers named as the official code or mmpretrain names them.

Neither is a library that the tests can install. Names are those of facebookresearch/ConvNeXt `models/convnext.py`,
ConvNeXt-V2 `models/convnextv2.py` and open-mmlab/mmpretrain `mmpretrain/models/backbones/convnext.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6


class Names(NamedTuple):
    """What the two call the same layers."""

    depthwise: str
    pointwise: str
    last_norm: str
    grn_shape: tuple[int, ...]


OFFICIAL = Names("dwconv", "pwconv", "norm", (1, 1, 1, -1))
MMPRETRAIN = Names("depthwise_conv", "pointwise_conv", "norm3", (-1,))


class ResponseNorm(nn.Module):
    """Global response normalisation: each channel is weighed by its share of the picture's energy."""

    def __init__(self, width: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(width).reshape(shape))
        self.beta = nn.Parameter(torch.zeros(width).reshape(shape))

    def forward(self, x_BHWC: Tensor) -> Tensor:
        energy = x_BHWC.square().sum((1, 2), keepdim=True).sqrt()
        return x_BHWC + self.gamma * x_BHWC * energy / (energy.mean(-1, keepdim=True) + EPS) + self.beta


class Block(nn.Module):
    def __init__(self, width: int, names: Names, version: int) -> None:
        super().__init__()
        self.names = names
        self.add_module(names.depthwise, nn.Conv2d(width, width, 7, padding=3, groups=width))
        self.norm = norm_of(width)
        self.add_module(names.pointwise + "1", nn.Linear(width, 4 * width))
        self.add_module(names.pointwise + "2", nn.Linear(4 * width, width))
        self.gamma = nn.Parameter(torch.ones(width)) if version == 1 else None
        self.grn = ResponseNorm(4 * width, names.grn_shape) if version == 2 else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BHWC = self.norm(getattr(self, self.names.depthwise)(x_BCHW).movedim(1, -1))
        hidden = self.grn(F.gelu(getattr(self, self.names.pointwise + "1")(y_BHWC)))
        y_BHWC = getattr(self, self.names.pointwise + "2")(hidden)
        return x_BCHW + (y_BHWC if self.gamma is None else self.gamma * y_BHWC).movedim(-1, 1)


class ConvNeXt(nn.Module):
    """Pooled and normalised features [B, channels] of an image [B, 3, H, W]."""

    def __init__(self, depths: Sequence[int], widths: Sequence[int], names: Names, version: int) -> None:
        super().__init__()
        self.names = names
        self.downsample_layers = nn.ModuleList([nn.ModuleList([nn.Conv2d(3, widths[0], 4, 4), norm_of(widths[0])])])
        for narrow, wide in pairwise(widths):
            self.downsample_layers.append(nn.ModuleList([norm_of(narrow), nn.Conv2d(narrow, wide, 2, 2)]))
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(width, names, version) for _ in range(depth)))
            for depth, width in zip(depths, widths, strict=True)
        )
        self.add_module(names.last_norm, norm_of(widths[-1]))

    def forward(self, x: Tensor) -> Tensor:
        for pair, stage in zip(self.downsample_layers, self.stages, strict=True):
            for layer in pair:
                x = layer(x.movedim(1, -1)).movedim(-1, 1) if isinstance(layer, nn.LayerNorm) else layer(x)
            x = stage(x)
        return getattr(self, self.names.last_norm)(x.mean((2, 3)))


def norm_of(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, EPS)
