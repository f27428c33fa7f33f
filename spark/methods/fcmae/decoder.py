"""The decoder of FCMAE: fill the holes of the last map, a block of ConvNeXt V2, and a patch's pixels per position."""

from __future__ import annotations

import torch
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from spark.sparse.state import VisiblePatches

TOKEN_STD = 0.02


class PatchDecoder(nn.Module):
    """Decode the encoder's last map, each position of which is a patch.

    Args:
        channels: of the map.
        width: of the blocks.
        depth: number of blocks.
        patch: side in pixels.
        out_chans: channels of the images.
    """

    def __init__(self, channels: int, width: int, depth: int, patch: int, out_chans: int) -> None:
        super().__init__()
        self.patch = patch
        self.project = nn.Conv2d(channels, width, kernel_size=1)
        self.mask_token = nn.Parameter(torch.empty(1, width, 1, 1))
        nn.init.normal_(self.mask_token, std=TOKEN_STD)
        self.blocks = nn.Sequential(
            *(ConvNeXtBlock(width, use_grn=True, ls_init_value=None) for _ in range(depth))
        )
        self.to_pixels = nn.Conv2d(width, patch**2 * out_chans, kernel_size=1)

    def forward(self, x: Tensor, visible: VisiblePatches) -> Tensor:
        """The map in the engine's layout -> the image [B, out_chans, H, W]."""
        x_BCHW = visible.leave(self.project(x))
        filled = torch.where(visible.at(*x_BCHW.shape[-2:]), x_BCHW, self.mask_token.to(x_BCHW.dtype))
        return self._unfold(self.to_pixels(self.blocks(filled)))

    def _unfold(self, x_BnHW: Tensor) -> Tensor:
        """Lay out patches, whose values are ordered by row, column, channel."""
        x_BhwCHW = x_BnHW.unflatten(1, (self.patch, self.patch, -1))
        return x_BhwCHW.permute(0, 3, 4, 1, 5, 2).flatten(4).flatten(2, 3)
