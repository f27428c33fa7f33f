"""The light UNet decoder that draws the image from densified feature maps (SparK, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

from timm.layers import trunc_normal_
from torch import Tensor, nn

from spark.errors import UserError
from spark.methods.spark.upsample import upsample_convolve


class DecoderBlock(nn.Module):
    """Double the resolution, halve the width: 4x4 transposed conv, then two 3x3 convs with batch norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(width, width, kernel_size=4, stride=2, padding=1, bias=True)
        self.conv1 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.act = nn.ReLU6(inplace=True)
        self.conv2 = nn.Conv2d(width, width // 2, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width // 2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C / 2, 2H, 2W]"""
        x_BCHW = self.act(self.norm1(upsample_convolve(x_BCHW, self.upsample, self.conv1)))
        return self.norm2(self.conv2(x_BCHW))


class UNetDecoder(nn.Module):
    """One block per halving of the stride, from the total stride down to pixels.

    Attributes:
        widths: input width of each block, the coarsest first: width, width / 2, …
    """

    def __init__(self, total_stride: int, width: int = 768, out_chans: int = 3) -> None:
        super().__init__()
        blocks = total_stride.bit_length() - 1
        if total_stride != 2**blocks:
            raise UserError(f"the decoder needs a total stride that is a power of two, not {total_stride}")
        if width % 2**blocks:
            raise UserError(f"decoder.width={width} must be divisible by {2**blocks} (it halves {blocks} times)")
        self.widths = [width // 2**i for i in range(blocks)]
        self.blocks = nn.ModuleList(DecoderBlock(w) for w in self.widths)
        self.to_pixels = nn.Conv2d(width // 2**blocks, out_chans, kernel_size=1, bias=True)
        self.apply(_initialize)

    def forward(self, maps: Sequence[Tensor | None]) -> Tensor:
        """Decode one map (or None) per block, coarsest first, each added before its block.

        Returns:
            The image [B, out_chans, H, W].
        """
        x: Tensor | None = None
        for block, skip in zip(self.blocks, maps, strict=True):
            if skip is not None:
                x = skip if x is None else x + skip
            x = block(x)
        assert x is not None  # a decoder has at least one block
        return self.to_pixels(x)


def _initialize(layer: nn.Module) -> None:
    """The original's initialization; norms start at 1 and 0 by themselves."""
    if isinstance(layer, nn.Conv2d):
        trunc_normal_(layer.weight, std=0.02)
    elif isinstance(layer, nn.ConvTranspose2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    else:
        return
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
