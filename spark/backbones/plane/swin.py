"""timm's Swin (`swin_*`, `swin_s3_*`) as a plane encoder: its tables of biases, looked up at true offsets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from spark.backbones.plane.shifted_windows import ShiftedWindows, Windows, in_windows, out_of_windows
from spark.backbones.plane.windows import windowed_attention


class SwinPlane(ShiftedWindows):
    """Tables of windows of k w tokens have an entry for every offset within a plane's windows of w."""

    exact = True

    @property
    def stages(self) -> Sequence[Any]:
        """The network's stages."""
        return self.network.layers

    def block(self, block: Any, x_BHWC: Tensor, windows: Windows) -> Tensor:
        """Run a block: norms before attention and MLP."""
        attention = block.attn
        bias = windows.bias(_entries(attention, windows.offsets.distinct))
        tokens = in_windows(block.norm1(x_BHWC), windows)
        attended = attention.proj(windowed_attention(tokens, attention.qkv, attention.num_heads, bias))
        attended = out_of_windows(attention.proj_drop(attended), windows, *x_BHWC.shape[1:3])
        x_BHWC = x_BHWC + block.drop_path1(attended)
        return x_BHWC + block.drop_path2(block.mlp(block.norm2(x_BHWC)))

    def last_norm(self, x_BHWC: Tensor) -> Tensor:
        """Normalize the last stage's tokens."""
        return self.network.norm(x_BHWC)


def _entries(attention: Any, offsets_T2: Tensor) -> Tensor:
    """Return a table's entries for whole offsets, key minus query (it is ordered by query minus key): [T, heads]."""
    rows, columns = attention.window_size
    # Offsets across the seams of shifted windows may lie outside, and do not count.
    row = (rows - 1 - offsets_T2[:, 0]).clamp(0, 2 * rows - 2)
    column = (columns - 1 - offsets_T2[:, 1]).clamp(0, 2 * columns - 2)
    return attention.relative_position_bias_table[(row * (2 * columns - 1) + column).long()]
