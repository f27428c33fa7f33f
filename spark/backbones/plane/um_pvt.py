"""The pyramid vision transformer of UM-MAE (arXiv 2205.10063, its repository): neither PVT v1 nor v2.

Positions are one fixed table at the first stage; keys and values are averaged over squares, so that no weight depends
on how many there are. Parameters have the original's names.

`um_pvt_small` is a timm model by this name once this module is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.layers import DropPath, Mlp, resample_abs_pos_embed
from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional

from spark.backbones.plane.geometry import Layout
from spark.backbones.plane.sincos import sincos_table
from spark.backbones.plane.um_network import STRIDE, UMNetwork


class Downsample(nn.Module):
    """Merge 2 x 2 tokens by a convolution."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_width, width, kernel_size=2, stride=2)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """[B, H, W, in_width] -> [B, H / 2, W / 2, width]"""
        return self.proj(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ReducedAttention(nn.Module):
    """All tokens ask; averages of them answer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.sr = nn.Conv2d(width, width, kernel_size=1)
        self.norm = nn.LayerNorm(width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BHWC: Tensor, ratio: int) -> Tensor:
        """[B, H, W, C] -> the same; keys and values are means over ratio x ratio tokens."""
        x_BCHW = x_BHWC.permute(0, 3, 1, 2)
        fewer_BCHW = functional.avg_pool2d(x_BCHW, ratio) if ratio > 1 else x_BCHW
        fewer_BNC = self.norm(self.sr(fewer_BCHW).flatten(2).transpose(1, 2))
        q = self._split(self.q(x_BHWC.flatten(1, 2)))
        k, v = map(self._split, self.kv(fewer_BNC).chunk(2, -1))
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(x_BHWC.shape))

    def _split(self, x_BNC: Tensor) -> Tensor:
        """[B, N, C] -> [B, heads, N, C / heads]"""
        return x_BNC.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """A block of a stage; the first one of a later stage merges before."""

    def __init__(
        self, width: int, heads: int, mlp_ratio: int, drop_path: float, downsample: nn.Module | None
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = ReducedAttention(width, heads)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_ratio * width)
        self.downsample = downsample

    def forward(self, x_BHWC: Tensor, ratio: int) -> Tensor:
        """[B, H, W, C] -> the same; merging is not done here."""
        x_BHWC = x_BHWC + self.drop_path(self.attn(self.norm1(x_BHWC), ratio))
        return x_BHWC + self.drop_path(self.mlp(self.norm2(x_BHWC)))


class UMPVT(UMNetwork):
    """UM-MAE's PVT.

    Args:
        embed_dims: width of each stage.
        depths: blocks of each stage.
        num_heads: of each stage.
        mlp_ratios: of each stage.
        sr_ratios: tokens that keys and values average in each direction, of a whole picture; on a plane of cells of
            k x k they are one k-th, and at least 1.
        img_size: side of the images that the table of positions is for; it is interpolated for others.
        others: see `UMNetwork`.
    """

    def __init__(
        self, *, embed_dims: Sequence[int] = (64, 128, 320, 512), depths: Sequence[int] = (3, 4, 6, 3),
        num_heads: Sequence[int] = (1, 2, 5, 8), mlp_ratios: Sequence[int] = (8, 8, 4, 4),
        sr_ratios: Sequence[int] = (8, 4, 2, 1), img_size: int | Sequence[int] = 256, **others: Any,
    ) -> None:
        self.sr_ratios = list(sr_ratios)
        self._mlp_ratios, self._heads = mlp_ratios, num_heads
        super().__init__(embed_dims, depths, img_size=img_size, **others)
        self._grid = self.img_size[0] // STRIDE, self.img_size[1] // STRIDE
        self.pos_embed = nn.Parameter(sincos_table(embed_dims[0], *self._grid)[None])

    def build_stem_norm(self, width: int) -> nn.Module:
        """Return nothing that normalizes: the stem has no norm."""
        return nn.Identity()

    def build_block(self, stage: int, number: int, drop_path: float) -> nn.Module:
        """Return a block of a stage."""
        merges = stage > 0 and number == 0
        downsample = Downsample(self.widths[stage - 1], self.widths[stage]) if merges else None
        return Block(self.widths[stage], self._heads[stage], self._mlp_ratios[stage], drop_path, downsample)

    def add_positions(self, x_BHWC: Tensor, layout: Layout) -> Tensor:
        """Add each token's entry of the table."""
        height, width = x_BHWC.shape[1:3]
        whole = height * layout.cell, width * layout.cell
        table = self.pos_embed
        if whole != self._grid:
            table = resample_abs_pos_embed(table, list(whole), list(self._grid), num_prefix_tokens=0)
        places = layout.positions(STRIDE, height, width, x_BHWC.device).rows_columns
        return x_BHWC + functional.embedding(places[..., 0] * whole[1] + places[..., 1], table[0])

    def freeze_positions(self) -> None:
        """Keep the table of positions as it is."""
        self.pos_embed.requires_grad_(False)

    def run_stage(self, x_BHWC: Tensor, blocks: Sequence[nn.Module], stride: int, layout: Layout) -> Tensor:
        """Run the blocks of a stage."""
        ratio = self.sr_ratios[(stride // STRIDE).bit_length() - 1]
        for block in blocks:
            x_BHWC = block(x_BHWC, max(ratio // layout.cell, 1))
        return x_BHWC


@register_model
def um_pvt_small(pretrained: bool = False, **options: Any) -> UMPVT:
    """Build UM-MAE's PVT-S, with random weights."""
    return UMPVT(**options)
