"""A 4x4 stride-2 transposed convolution and the 3x3 convolution after it, computed as one.

Nothing lies between the two in SparK's decoder, so together they are linear with a 6x6 kernel. Split by the parity
of the output position, that is a 3x3 convolution of the small map with four times the channels, whose result is
shuffled into place: 36 multiplications per input position and pair of channels instead of 16 + 36, and the
upsampled map is neither written nor kept. Composing the kernels costs as much whatever the batch, so this pays
where there are many positions for few channels. The numbers are equal to rounding.

One thing differs: the second convolution pads the upsampled map with zeros, where the composed kernel sees it
go on. `_border` computes what that adds to the outermost ring of the result, `_Assemble` takes it off.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

COMPOSITION = 324  # multiplications per triple of channels: 6 x 6 kernel positions, 3 x 3 taps
SAVING = 16  # multiplications saved per input position and pair of channels
WORTH = 1.5  # how much larger the saving must be than the composition


def upsample_convolve(x_BCHW: Tensor, up: nn.ConvTranspose2d, conv: nn.Conv2d) -> Tensor:
    """Return `conv(up(x))`: [B, C, H, W] -> [B, O, 2H, 2W].

    Args:
        up: 4x4 kernel, stride 2, padding 1, with bias.
        conv: 3x3 kernel, padding 1, without bias.
    """
    positions = x_BCHW.numel() // x_BCHW.shape[1]
    if SAVING * positions < WORTH * COMPOSITION * conv.out_channels:
        return conv(up(x_BCHW))
    return compose_and_convolve(x_BCHW, up, conv)


def compose_and_convolve(x_BCHW: Tensor, up: nn.ConvTranspose2d, conv: nn.Conv2d) -> Tensor:
    """The same, always by the composed kernel."""
    with torch.autocast(x_BCHW.device.type, enabled=False):  # weights are composed in their own precision
        assert up.bias is not None
        weight, bias = compose(up.weight, conv.weight), conv.weight.sum((2, 3)) @ up.bias
        edges = _edge_kernels(up, conv)
    x_BCHW, *lines = _WithEdges.apply(x_BCHW)
    y = functional.conv2d(x_BCHW, weight.contiguous(memory_format=torch.channels_last), bias.repeat(4), padding=1)
    return _Assemble.apply(y, *_border(lines, edges))


def compose(up: Tensor, conv: Tensor) -> Tensor:
    """Compose kernels [C, M, 4, 4] and [O, M, 3, 3] to one [4 * O, C, 3, 3], ordered by parity (row, column)."""
    both_COyx = functional.conv2d(up, conv, padding=2)  # 6 x 6; output position 2i + s sees input i by tap s + 2
    split = both_COyx.unflatten(3, (3, 2)).unflatten(2, (3, 2)).flip(2, 4)  # [C, O, tap, parity, tap, parity]
    return split.permute(3, 5, 1, 0, 2, 4).flatten(0, 2)


def _compose_line(up: Tensor, conv: Tensor) -> Tensor:
    """The same in one dimension: [C, M, 4] and [O, M, 3] to [2 * O, C, 3]."""
    split = functional.conv1d(up, conv, padding=2).unflatten(2, (3, 2)).flip(2)
    return split.permute(3, 1, 0, 2).flatten(0, 1)


def _edge_kernels(up: nn.ConvTranspose2d, conv: nn.Conv2d) -> list[tuple[Tensor, Tensor, list[Tensor], list[Tensor]]]:
    """Return, for top, bottom, left and right, what the ring outside of the upsampled map adds beyond that edge.

    Each is the kernel of a line of inputs, its bias, and for the line's two ends the same for a corner's one position.
    """
    assert up.bias is not None
    edges = []
    for axis, (outer_up, outer_conv) in ((2, (0, 0)), (2, (3, 2)), (3, (0, 0)), (3, (3, 2))):
        up_line, conv_line = up.weight.select(axis, outer_up), conv.weight.select(axis, outer_conv)
        ends = [(up_line[..., tap_up], conv_line[..., tap_conv]) for tap_up, tap_conv in ((0, 0), (3, 2))]
        edges.append((
            _compose_line(up_line, conv_line),
            conv_line.sum(2) @ up.bias,
            [conv_end @ up_end.t() for up_end, conv_end in ends],
            [conv_end @ up.bias for _, conv_end in ends],
        ))
    return edges


def _border(lines: list[Tensor], edges: list[Any]) -> list[Tensor]:
    """Return what is too much in the top and bottom row and in the left and right column: [B, O, 2W] or [B, O, 2H].

    Corners are in two of them, but too much only once: rows leave them to columns.
    """
    excess = []
    for number, (line_BCW, (kernel, bias, end_kernels, end_biases)) in enumerate(zip(lines, edges, strict=True)):
        y_BOW = functional.conv1d(line_BCW, kernel, bias.repeat(2), padding=1)
        y_BOW = y_BOW.unflatten(1, (2, -1)).permute(0, 2, 3, 1).flatten(2)
        if number < 2:
            first, last = (
                functional.linear(line_BCW[..., end], end_kernel, end_bias)[..., None]
                for end, end_kernel, end_bias in zip((0, -1), end_kernels, end_biases, strict=True)
            )
            y_BOW = torch.cat([y_BOW[..., :1] - first, y_BOW[..., 1:-1], y_BOW[..., -1:] - last], dim=2)
        excess.append(y_BOW)
    return excess


class _WithEdges(torch.autograd.Function):
    """A map, and copies of its top and bottom row and its left and right column.

    Written out because autograd's slices would make a whole map of zeros, in another memory format, for each.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, ...]:
        return x.view_as(x), x[:, :, 0].clone(), x[:, :, -1].clone(), x[..., 0].clone(), x[..., -1].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad, top, bottom, left, right = grads
        grad = grad.clone()
        grad[:, :, 0] += top
        grad[:, :, -1] += bottom
        grad[..., 0] += left
        grad[..., -1] += right
        return grad


class _Assemble(torch.autograd.Function):
    """Shuffle parities into place and take the excess off the edges: [B, 2 * 2 * O, H, W] -> [B, O, 2H, 2W].

    Written out because autograd would copy the map for each edge, and turn its gradient out of channels last.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
        y_BHWrcO = y.permute(0, 2, 3, 1).unflatten(3, (2, 2, -1))
        z_BOHW = y_BHWrcO.transpose(2, 3).flatten(3, 4).flatten(1, 2).contiguous().permute(0, 3, 1, 2)
        z_BOHW[:, :, 0] -= top
        z_BOHW[:, :, -1] -= bottom
        z_BOHW[..., 0] -= left
        z_BOHW[..., -1] -= right
        return z_BOHW

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        (grad,) = grads
        grad_BHrWcO = grad.permute(0, 2, 3, 1).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        grad_y = grad_BHrWcO.transpose(2, 3).flatten(3).permute(0, 3, 1, 2)
        return grad_y, -grad[:, :, 0], -grad[:, :, -1], -grad[..., 0], -grad[..., -1]
