"""A 3x3 convolution of a map that holds one constant vector at all masked positions.

conv(x) = conv(the vector everywhere) + conv((x - the vector) at visible positions): the first term is the same for
all images, the second multiplies only visible inputs and adds the products to the outputs around them. Exact up to
rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spark.sparse.gather import Index, gather_rows
from spark.sparse.state import VisiblePatches


def convolve_filled(x_NChw: Tensor, fill_1C11: Tensor, conv: nn.Conv2d, visible: VisiblePatches) -> Tensor:
    """Return `conv` of the dense map that holds the patches x and `fill` in the holes: [B, O, H, W].

    Args:
        conv: 3x3, stride 1, padding 1.
    """
    images, _, rows, columns = visible.mask.shape
    h, w = x_NChw.shape[-2:]
    everywhere = fill_1C11.expand(-1, -1, rows * h, columns * w)
    base_1OHW = conv(everywhere)
    difference = (x_NChw - fill_1C11).to(base_1OHW.dtype)
    targets = visible.cached(("targets", h, w), lambda: _targets(h, w, visible))
    weight = conv.weight.to(base_1OHW.dtype)
    return _ScatterConvolution.apply(difference, weight, base_1OHW, targets, images)


def _targets(h: int, w: int, visible: VisiblePatches) -> Index:
    """Return the output that each visible input contributes to through each tap: [N * h * w, 9].

    Indices into the B * H * W positions of the dense map, and B * H * W itself for what falls off the image.
    """
    images, _, rows, columns = visible.mask.shape
    height, width, ids = rows * h, columns * w, visible.patch_ids
    tap = torch.arange(3, device=ids.device) - 1
    down_Nht = ((ids // columns % rows) * h)[:, None, None] + torch.arange(h, device=ids.device)[:, None] - tap
    across_Nwt = ((ids % columns) * w)[:, None, None] + torch.arange(w, device=ids.device)[:, None] - tap
    inside_d, inside_a = ((line >= 0) & (line < size) for line, size in ((down_Nht, height), (across_Nwt, width)))
    inside = inside_d[:, :, None, :, None] & inside_a[:, None, :, None, :]
    first = (ids // (rows * columns) * height * width)[:, None, None, None, None]
    there = first + down_Nht[:, :, None, :, None] * width + across_Nwt[:, None, :, None, :]
    return torch.where(inside, there, images * height * width).flatten(3).flatten(0, 2)


class _ScatterConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, base_1OHW: Tensor, targets: Tensor, images: int) -> Tensor:
        ctx.save_for_backward(x, weight, targets)
        _, outputs, height, width = base_1OHW.shape
        products = x.permute(0, 2, 3, 1).flatten(0, 2) @ weight.permute(1, 2, 3, 0).flatten(1)
        total = base_1OHW.new_empty(images * height * width + 1, outputs)  # the last is for what falls off the image
        total[:-1].view(images, -1, outputs).copy_(base_1OHW.permute(0, 2, 3, 1).flatten(1, 2))
        total.index_add_(0, targets.flatten(), products.view(-1, outputs))
        return total[:-1].view(images, height, width, outputs).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, targets = ctx.saved_tensors
        (grad,) = grads
        seen = gather_rows(grad, targets)
        flat_weight = weight.permute(1, 2, 3, 0).flatten(1)
        grad_x = (seen @ flat_weight.t()).unflatten(0, (len(x), *x.shape[2:])).permute(0, 3, 1, 2)
        product = x.permute(0, 2, 3, 1).flatten(0, 2).t() @ seen
        grad_weight = product.unflatten(1, (3, 3, -1)).permute(3, 0, 1, 2)
        return grad_x, grad_weight, grad.sum(0, keepdim=True), None, None
