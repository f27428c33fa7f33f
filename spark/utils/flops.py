"""Floating-point operations of what torch computes: of convolutions, matrix products and attention."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    conv_flop_count,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)


def flop_counter() -> FlopCounterMode:
    """Return a context that counts; `get_total_flops()` tells. A multiplication and an addition are two.

    torch's own counter misses attention as CPUs compute it, and the groups of a convolution's weight gradient.
    """
    return FlopCounterMode(display=False, custom_mapping=dict(CORRECTIONS))


def _convolution_backward(
    grad_shape: list[int], x_shape: list[int], weight_shape: list[int], _bias: Any, _stride: Any, _padding: Any,
    _dilation: Any, transposed: bool, _output_padding: Any, _groups: int, wanted: list[bool], **_: Any,
) -> int:
    """As many as the forward pass for each gradient."""
    return conv_flop_count(x_shape, weight_shape, grad_shape, transposed) * sum(wanted[:2])


def _attention(query_shape: list[int], key_shape: list[int], value_shape: list[int], *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query_shape, key_shape, value_shape)


def _attention_backward(
    grad_shape: list[int], query_shape: list[int], key_shape: list[int], value_shape: list[int], *_: Any, **__: Any
) -> int:
    return sdpa_backward_flop_count(grad_shape, query_shape, key_shape, value_shape)


CORRECTIONS = MappingProxyType({
    torch.ops.aten.convolution_backward: _convolution_backward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
})
