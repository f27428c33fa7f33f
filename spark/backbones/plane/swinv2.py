"""timm's Swin V2 (`swinv2_*`, arXiv 2111.09883) as a plane encoder: its continuous bias, evaluated at true offsets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spark.backbones.plane.shifted_windows import ShiftedWindows, Windows, in_windows, out_of_windows
from spark.backbones.plane.windows import attend, split

LARGEST_SCALE = math.log(100)  # of cosines, in the exponent


class SwinV2Plane(ShiftedWindows):
    """Cosine attention with a bias that is a function of offsets, in parts of the full-size window."""

    @property
    def stages(self) -> Sequence[Any]:
        """The network's stages."""
        return self.network.layers

    def block(self, block: Any, x_BHWC: Tensor, windows: Windows) -> Tensor:
        """Run a block: norms behind attention and MLP."""
        attention = block.attn
        bias = windows.bias(_bias(attention, windows.offsets.distinct))
        qkv = _qkv(attention, in_windows(x_BHWC, windows))
        attended = attention.proj(attend_by_cosine(qkv, attention.num_heads, attention.logit_scale, bias))
        attended = out_of_windows(attention.proj_drop(attended), windows, *x_BHWC.shape[1:3])
        x_BHWC = x_BHWC + block.drop_path1(block.norm1(attended))
        return x_BHWC + block.drop_path2(block.norm2(block.mlp(x_BHWC)))

    def last_norm(self, x_BHWC: Tensor) -> Tensor:
        """Normalize the last stage's tokens."""
        return self.network.norm(x_BHWC)


def attend_by_cosine(qkv_BnNC: Tensor, heads: int, logit_scale: Tensor, bias_BnhNN: Tensor) -> Tensor:
    """Attend by the cosines of queries and keys, times a factor of each head's own."""
    q, k, v = split(qkv_BnNC, heads)
    factor = logit_scale.reshape(heads, 1, 1).clamp(max=LARGEST_SCALE).exp()
    return attend(functional.normalize(q, dim=-1) * factor, functional.normalize(k, dim=-1), v, bias_BnhNN, scale=1.0)


def _qkv(attention: Any, x_BnNC: Tensor) -> Tensor:
    """Project; keys have no bias."""
    if attention.q_bias is None:
        return attention.qkv(x_BnNC)
    bias = torch.cat([attention.q_bias, torch.zeros_like(attention.q_bias), attention.v_bias])
    return functional.linear(x_BnNC, attention.qkv.weight, bias)


def _bias(attention: Any, offsets_T2: Tensor) -> Tensor:
    """Return the bias of offsets, key minus query (the function is of query minus key): [T, heads]."""
    trained_on = attention.pretrained_window_size
    window = trained_on if trained_on[0] > 0 else attention.window_size
    span = offsets_T2.new_tensor([max(side - 1, 1) for side in window])
    part_T2 = -8 * offsets_T2 / span
    u_T2 = part_T2.sign() * part_T2.abs().add(1).log2() / math.log2(8)
    return 16 * attention.cpb_mlp(u_T2).sigmoid()
