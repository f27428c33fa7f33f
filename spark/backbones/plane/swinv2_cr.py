"""timm's other Swin V2 (`swinv2_cr_*`) as a plane encoder: a bias of log-spaced offsets, evaluated at the true ones.

In training, the MLP of the bias drops hidden values out: here for each distinct offset, where timm does so for each
pair of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from spark.backbones.plane.shifted_windows import ShiftedWindows, Windows, in_windows, out_of_windows
from spark.backbones.plane.swinv2 import attend_by_cosine


class SwinV2CrPlane(ShiftedWindows):
    """Cosine attention; norms behind attention and MLP, and at the ends of stages where the network has them."""

    @property
    def stages(self) -> Sequence[Any]:
        """The network's stages."""
        return self.network.stages

    def block(self, block: Any, x_BHWC: Tensor, windows: Windows) -> Tensor:
        """Run a block."""
        attention = block.attn
        bias = windows.bias(_bias(attention, windows.offsets.distinct))
        qkv = attention.qkv(in_windows(x_BHWC, windows))
        attended = attention.proj(attend_by_cosine(qkv, attention.num_heads, attention.logit_scale, bias))
        attended = out_of_windows(attention.proj_drop(attended), windows, *x_BHWC.shape[1:3])
        x_BHWC = x_BHWC + block.drop_path1(block.norm1(attended))
        return block.norm3(x_BHWC + block.drop_path2(block.norm2(block.mlp(x_BHWC))))

    def last_norm(self, x_BHWC: Tensor) -> Tensor:
        """Return the tokens: the last block has normalized them."""
        return x_BHWC


def _bias(attention: Any, offsets_T2: Tensor) -> Tensor:
    """Return the bias of offsets, key minus query (the function is of query minus key): [T, heads]."""
    return attention.meta_mlp(-offsets_T2.sign() * offsets_T2.abs().log1p())
