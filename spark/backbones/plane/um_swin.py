"""The Swin of UM-MAE (arXiv 2205.10063, its repository): biases are functions of true offsets, merges convolve.

Unlike Microsoft's and timm's Swin: a position bias is an MLP of log-spaced offsets instead of a table, so that nothing
depends on resolution or window; a merge is a norm and a 2 x 2 convolution, and stands in the next stage's first block.
Parameters have the original's names.

`um_swin_tiny` and `um_swin_large` are timm models by these names once this module is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from timm.layers import DropPath, Mlp
from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional

from spark.backbones.plane.geometry import Layout
from spark.backbones.plane.position_bias import Offsets, offsets_within
from spark.backbones.plane.um_network import STRIDE, UMNetwork
from spark.backbones.plane.windows import apart, fitting, from_windows, shifted, to_windows, windowed_attention
from spark.errors import UserError


class Downsample(nn.Module):
    """Merge 2 x 2 tokens: a norm, and a convolution."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_width, eps=1e-6)
        self.proj = nn.Conv2d(in_width, width, kernel_size=2, stride=2)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """[B, H, W, in_width] -> [B, H / 2, W / 2, width]"""
        return self.proj(self.norm(x_BHWC).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class WindowAttention(nn.Module):
    """Attention within windows, with a bias that is an MLP of u = sign(d) log(1 + |d|) of the offsets d."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.posmlp = nn.Sequential(nn.Conv2d(2, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, heads, 1))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def table(self, offsets_T2: Tensor) -> Tensor:
        """Return the bias of offsets, key minus query, in tokens: [T, heads]."""
        u_T2 = offsets_T2.sign() * offsets_T2.abs().log1p()
        return self.posmlp(u_T2.t()[None, :, :, None])[0, :, :, 0].t()

    def forward(self, x_BnNC: Tensor, offsets: Offsets, mask_nNN: Tensor | None) -> Tensor:
        """[B, windows, tokens, C] -> the same."""
        bias_BnhNN = offsets.look_up(self.table(offsets.distinct))
        if mask_nNN is not None:
            bias_BnhNN = bias_BnhNN + mask_nNN[:, None]
        return self.proj(windowed_attention(x_BnNC, self.qkv, self.heads, bias_BnhNN))


class Block(nn.Module):
    """A block of a stage; the first one of a later stage merges before."""

    def __init__(
        self, width: int, heads: int, hidden: int, shifts: bool, drop_path: float, downsample: nn.Module | None
    ) -> None:
        super().__init__()
        self.shifts = shifts
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, hidden)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)
        self.downsample = downsample

    def forward(self, x_BHWC: Tensor, window: int, shift: int, offsets: Offsets, mask: Tensor | None) -> Tensor:
        """Attend in windows, the last ones filled up with zeros; merging is not done here."""
        height, width = x_BHWC.shape[1:3]
        filled = functional.pad(self.norm1(x_BHWC), (0, 0, 0, -width % window, 0, -height % window))
        attended = self.attn(to_windows(shifted(filled, shift), window), offsets, mask)
        attended = shifted(from_windows(attended, window, *filled.shape[1:3]), -shift)
        x_BHWC = x_BHWC + self.drop_path(attended[:, :height, :width])
        return x_BHWC + self.drop_path(self.mlp(self.norm2(x_BHWC)))


class UMSwin(UMNetwork):
    """UM-MAE's Swin.

    Args:
        depths: blocks of each stage.
        embed_dim: width of the first stage; each next one is twice as wide.
        num_heads: of each stage.
        posmlp_dim: hidden width of the position MLPs.
        window_size: side of a window of a whole picture, in tokens; on a plane of cells of k x k it is one k-th.
        img_size: what the network is mostly used at; it takes any.
        others: see `UMNetwork`.
    """

    def __init__(
        self, *, depths: Sequence[int] = (2, 2, 6, 2), embed_dim: int = 96, num_heads: Sequence[int] = (3, 6, 12, 24),
        posmlp_dim: int = 32, window_size: int = 16, img_size: int | Sequence[int] = 256, **others: Any,
    ) -> None:
        self.window_size = window_size
        self._posmlp_dim, self._heads = posmlp_dim, num_heads
        super().__init__([embed_dim * 2**stage for stage in range(len(depths))], depths, img_size=img_size, **others)

    def build_stem_norm(self, width: int) -> nn.Module:
        """Return the norm after the stem."""
        return nn.LayerNorm(width, eps=1e-6)

    def build_block(self, stage: int, number: int, drop_path: float) -> nn.Module:
        """Return a block of a stage."""
        merges = stage > 0 and number == 0
        downsample = Downsample(self.widths[stage - 1], self.widths[stage]) if merges else None
        return Block(
            self.widths[stage], self._heads[stage], self._posmlp_dim, bool(number % 2), drop_path, downsample
        )

    def check_plane(self, height: int, width: int, cell: int) -> None:
        """Make sure that every stage's map is whole windows; UserError if not."""
        if self.window_size % cell:
            raise UserError(f"window_size={self.window_size} is no multiple of the {cell} patches of a cell's side")
        for stage in range(len(self.widths)):
            sides = height // (STRIDE << stage), width // (STRIDE << stage)
            window, _ = fitting(self.window_size // cell, sides)
            if any(side % window for side in sides):
                unit = (STRIDE << stage) * window * cell
                raise UserError(
                    f"images of {height * cell}x{width * cell} are not made of whole windows: at stage {stage + 1} a "
                    f"plane of {sides[0]}x{sides[1]} tokens has windows of {window}; set data.input_size to multiples "
                    f"of {unit}, or another model.options.window_size"
                )

    def run_stage(self, x_BHWC: Tensor, blocks: Sequence[nn.Module], stride: int, layout: Layout) -> Tensor:
        """Run the blocks of a stage, on tokens of a stride."""
        height, width = x_BHWC.shape[1:3]
        window, may_shift = fitting(self.window_size // layout.cell, (height, width))
        filled = height + -height % window, width + -width % window
        positions = layout.positions(stride, *filled, x_BHWC.device)
        seen: dict[int, tuple[Offsets, Tensor | None]] = {}  # by shift: shared by the blocks
        for block in cast("Sequence[Block]", blocks):
            shift = window // 2 if block.shifts and may_shift else 0
            if shift not in seen:
                windows = to_windows(shifted(positions.rows_columns, shift), window)
                if layout.cell == 1 and not shift:
                    windows = windows[:, :1]  # they are all alike
                reach = layout.reach(stride, window, shift)
                offsets = offsets_within(windows, positions.per_token, reach, x_BHWC.dtype)
                seen[shift] = offsets, apart(*filled, window, shift, offsets.distinct) if shift else None
            x_BHWC = block(x_BHWC, window, shift, *seen[shift])
        return x_BHWC


@register_model
def um_swin_tiny(pretrained: bool = False, **options: Any) -> UMSwin:
    """Build UM-MAE's Swin-T, with random weights."""
    return UMSwin(**options)


@register_model
def um_swin_large(pretrained: bool = False, **options: Any) -> UMSwin:
    """Build UM-MAE's Swin-L, with random weights."""
    return UMSwin(**{
        "depths": (2, 2, 18, 2), "embed_dim": 192, "num_heads": (6, 12, 24, 48), "posmlp_dim": 64, **options,
    })
