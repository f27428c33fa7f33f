"""Fill the holes of a sparse feature map so that a dense decoder can read it (SparK, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Callable

import timm.layers
import torch
from torch import Tensor, nn

from spark.sparse.scatter_convolution import convolve_filled
from spark.sparse.state import VisiblePatches

NORMS: tuple[tuple[tuple[type[nn.Module], ...], type[nn.Module]], ...] = (
    ((nn.BatchNorm2d, nn.SyncBatchNorm), nn.BatchNorm2d),
    ((nn.LayerNorm,), timm.layers.LayerNorm2d),
    ((timm.layers.RmsNorm, timm.layers.RmsNorm2d, timm.layers.RmsNormAct2d), timm.layers.RmsNorm2d),
    ((timm.layers.SimpleNorm, timm.layers.SimpleNorm2d), timm.layers.SimpleNorm2d),
)
"""Norms, subclasses included (those with an activation, say), and the same for maps [B, C, H, W] without more to it."""

ENOUGH_CHANNELS = 192  # products are added once per tap, which takes longer than it saves for fewer


class Densify(nn.Module):
    """Norm over visible positions -> mask token in the holes -> projection to the decoder's width."""

    def __init__(self, channels: int, width: int, kernel_size: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.mask_token = nn.Parameter(torch.empty(1, channels, 1, 1))
        timm.layers.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        if kernel_size == 1 and channels == width:
            self.project: nn.Module = nn.Identity()
        else:
            self.project = nn.Conv2d(channels, width, kernel_size, padding=kernel_size // 2, bias=True)

    def forward(self, x: Tensor, visible: VisiblePatches) -> Tensor:
        """A map of the encoder, in its engine's layout -> [B, width, H, W] without holes."""
        x = self.norm(x)
        if visible.engine == "compact" and self._sparse_is_faster(x):
            assert isinstance(self.project, nn.Conv2d)
            return convolve_filled(x, self.mask_token.to(x.dtype), self.project, visible)
        x_BCHW = visible.leave(x)
        filled = torch.where(visible.at(*x_BCHW.shape[-2:]), x_BCHW, self.mask_token.to(x_BCHW.dtype))
        return self.project(filled)

    def _sparse_is_faster(self, x: Tensor) -> bool:
        """Whether to multiply visible positions only: on CPUs, for many channels; on GPUs that was not measured."""
        if not isinstance(self.project, nn.Conv2d) or x.device.type != "cpu":
            return False
        return self.project.kernel_size == (3, 3) and self.project.in_channels >= ENOUGH_CHANNELS


def norm_like(network: nn.Module) -> Callable[[int], nn.Module]:
    """Return what makes the densify layers' norms: of the kind that the network itself uses."""
    for layer in network.modules():
        for sorts, plain in NORMS:
            if isinstance(layer, sorts):
                return plain
        if isinstance(layer, nn.GroupNorm):
            groups = layer.num_groups
            return lambda channels: nn.GroupNorm(math.gcd(groups, channels), channels)
    return lambda channels: nn.Identity()
