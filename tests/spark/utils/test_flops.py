"""Operations are counted by hand, and as the counter does."""

from __future__ import annotations

import torch
from torch.nn import functional

from spark.utils.flops import flop_counter


def test_attention_and_its_gradients_count_on_a_cpu() -> None:
    q, k, v = (torch.randn(2, 3, 5, 8, requires_grad=True) for _ in range(3))
    product = 2 * 2 * 3 * 5 * 5 * 8  # of queries with keys; as many with values
    with flop_counter() as forward:
        y = functional.scaled_dot_product_attention(q, k, v, torch.zeros(5, 5))
    assert forward.get_total_flops() == 2 * product
    with flop_counter() as backward:
        y.sum().backward()
    assert backward.get_total_flops() == 5 * product  # logits again, and two for each of the two products


def test_the_weight_gradient_of_a_grouped_convolution_costs_what_its_forward_pass_does() -> None:
    x, weight = torch.randn(1, 8, 6, 6), torch.randn(8, 1, 3, 3, requires_grad=True)
    with flop_counter() as forward:
        y = functional.conv2d(x, weight, padding=1, groups=8)
    with flop_counter() as backward:
        y.sum().backward()
    assert forward.get_total_flops() == backward.get_total_flops() == 2 * 36 * 8 * 9
