"""Convolution of compact maps: three ways to reach over a patch's border, and the choice among them.

A compact map holds the visible patches as a batch, [N, C, h, w]. A 1x1 or patchifying convolution never looks
over a patch's border. Any other one needs the neighbors, zero where they are masked or outside the image:

*tiles*: copy each patch together with a border from its neighbors, convolve without padding. Nothing is computed
for masked patches; best while a patch is large compared to the kernel.
*taps*: for each output position, copy the inputs under the kernel into a row and multiply by the weights as one
matrix (im2col). For coarse scales, where patches have few positions (one at stride 32) and many channels.
*map*: put the patches into the dense map, convolve, take them out again. For depthwise kernels much larger than
a patch, whose copied borders would cost more than computing the holes.

Copies are made again in the backward pass instead of being saved, so a convolution saves only its input. For
stride 1 the gradient of the input is a convolution of the output's gradient with the flipped kernel. Like the
input it is zero in the holes, so it is computed in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spark.sparse.gather import Index, add_back, gather, gather_rows
from spark.sparse.patches import copy_patches, put_patches, take_patches
from spark.sparse.state import VisiblePatches
from spark.sparse.window import Windows

SMALL_PATCH = 16  # outputs; up to here, oneDNN is slower on many tiny images than one matrix product is
TILES_OVER_MAP = 2.0  # a tile position costs less than half of a map position: no zeros to write, and it fits caches


def convolve(
    x_NChw: Tensor, weight: Tensor, bias: Tensor | None, windows: Windows, groups: int, visible: VisiblePatches
) -> Tensor:
    """Convolve the visible patches [N, C, h, w] as if zeros surrounded them: [N, O, h / stride, w / stride].

    Args:
        weight: [O, C / groups, kernel, kernel].

    Raises:
        ValueError: the stride does not divide the patch.
    """
    h, w = x_NChw.shape[-2:]
    strides = [window.stride for window in windows]
    if h % strides[0] or w % strides[1]:
        raise ValueError(f"a stride of {strides[0]}x{strides[1]} does not divide a patch of {h}x{w} positions")
    if torch.is_autocast_enabled(x_NChw.device.type):
        dtype = torch.get_autocast_dtype(x_NChw.device.type)
        x_NChw, weight = x_NChw.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    way = choose(h, w, windows, groups, visible)
    if way == "plain":
        return functional.conv2d(x_NChw, weight, bias, strides, 0, [window.dilation for window in windows], groups)
    if way == "map":
        return _on_map(x_NChw, weight, bias, windows, groups, visible)
    if way == "taps":
        return _by_taps(x_NChw, weight, bias, windows, visible)
    return _by_tiles(x_NChw, weight, bias, windows, groups, visible)


def choose(h: int, w: int, windows: Windows, groups: int, visible: VisiblePatches) -> str:
    """Return the fastest way for patches of h x w positions: "plain", "tiles", "taps" or "map"."""
    outputs = h * w // (windows[0].stride * windows[1].stride)
    if groups == 1 and outputs <= SMALL_PATCH:
        return "taps"
    if all(window.stays_inside for window in windows):
        return "plain"
    tile = len(windows[0].tile(h)) * len(windows[1].tile(w))
    copied = tile * visible.per_image / (h * w * math.prod(visible.mask.shape[-2:]))
    return "map" if groups > 1 and copied > TILES_OVER_MAP else "tiles"


def tiles(x_NChw: Tensor, windows: Windows, visible: VisiblePatches, fill: float = 0.0) -> Tensor:
    """Return each patch with the border that its windows cover; `fill` where nothing is visible."""
    h, w = x_NChw.shape[-2:]
    return _Tiles.apply(x_NChw, _tile_table(h, w, windows, visible), fill)


def _by_tiles(
    x: Tensor, weight: Tensor, bias: Tensor | None, windows: Windows, groups: int, visible: VisiblePatches
) -> Tensor:
    index, back = _tables(_tile_table, x, windows, visible)
    return _TileConvolution.apply(x, weight, bias, index, back, windows, groups)


def _by_taps(x: Tensor, weight: Tensor, bias: Tensor | None, windows: Windows, visible: VisiblePatches) -> Tensor:
    if all(window.kernel == window.stride == 1 for window in windows):
        return functional.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    index, back = _tables(_tap_table, x, windows, visible)
    y = _TapConvolution.apply(x, weight, bias, index, back, windows)
    return y.unflatten(0, (-1, x.shape[2] // windows[0].stride, x.shape[3] // windows[1].stride)).permute(0, 3, 1, 2)


def _on_map(
    x: Tensor, weight: Tensor, bias: Tensor | None, windows: Windows, groups: int, visible: VisiblePatches
) -> Tensor:
    rows, columns = visible.mask.shape[-2:]
    shape = len(visible.mask), rows, columns
    y_NhwO = _MapConvolution.apply(x, weight, bias, visible.patch_ids, shape, windows, groups)
    return y_NhwO.permute(0, 3, 1, 2)


def _tables(
    table: Callable[..., Index], x: Tensor, windows: Windows, visible: VisiblePatches
) -> tuple[Index, Index | None]:
    """Return the index table from outputs to their inputs, and the one from inputs to their outputs (for gradients).

    The second is None where it is not needed: for symmetric windows both are equal, and for strided windows the
    gradients are scattered back through the first.
    """
    size, (down, across) = x.shape[-2:], windows
    index = table(*size, windows, visible)
    back_windows = down.transposed, across.transposed
    if _strided(windows) or back_windows == windows:
        return index, None
    return index, table(*size, back_windows, visible)


def _strided(windows: Windows) -> bool:
    return any(window.stride > 1 for window in windows)


def _tile_table(h: int, w: int, windows: Windows, visible: VisiblePatches) -> Index:
    """[N, tile height, tile width]"""
    down, across = windows
    return visible.cached(("tiles", h, w, windows), lambda: visible.lookup(h, w, down.tile(h), across.tile(w)))


def _tap_table(h: int, w: int, windows: Windows, visible: VisiblePatches) -> Index:
    """[N * output positions, kernel * kernel]"""
    down, across = windows

    def order() -> Index:
        found = visible.lookup(h, w, down.taps(h), across.taps(w))
        by_output = found.unflatten(2, (-1, across.kernel)).unflatten(1, (-1, down.kernel)).transpose(2, 3)
        return by_output.flatten(3).flatten(0, 2)

    return visible.cached(("taps", h, w, windows), order)


class _Tiles(torch.autograd.Function):
    """Copy borders from neighbors; the backward pass adds their gradients back."""

    @staticmethod
    def forward(ctx: Any, x_NChw: Tensor, index: Index, fill: float) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = x_NChw.shape
        return gather(x_NChw, index, fill)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return add_back(grads[0].permute(0, 2, 3, 1), index, ctx.shape), None, None


class _TileConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, index: Index, back: Index | None, windows: Windows,
        groups: int,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, index, back)
        ctx.windows, ctx.groups = windows, groups
        return _without_padding(gather(x, index), weight, bias, windows, groups)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, index, back = ctx.saved_tensors
        (grad,), (wants_x, wants_weight, wants_bias, *_) = grads, ctx.needs_input_grad
        tile = gather(x, index)
        strided = _strided(ctx.windows)
        wanted = [wants_x and strided, wants_weight]
        grad_tile, grad_weight = _gradients(grad, tile, weight, ctx.windows, ctx.groups, [0, 0], wanted)
        grad_x = None
        if wants_x and strided:
            grad_x = add_back(grad_tile.permute(0, 2, 3, 1), index, x.shape)
        elif wants_x:
            back_windows = ctx.windows[0].transposed, ctx.windows[1].transposed
            flipped = _flipped(weight, ctx.groups)
            tile = gather(grad, index if back is None else back)
            grad_x = _without_padding(tile, flipped, None, back_windows, ctx.groups)
        return grad_x, grad_weight, _bias_gradient(grad, wants_bias), None, None, None, None


class _TapConvolution(torch.autograd.Function):
    """Rows of [kernel * kernel * C] inputs times the weights as a matrix [kernel * kernel * C, O].

    The result stays a matrix: autograd refuses in-place operations on a view returned by a custom function.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, index: Index, back: Index | None, windows: Windows
    ) -> Tensor:
        ctx.save_for_backward(x, weight, index, back)
        ctx.windows = windows
        return functional.linear(gather_rows(x, index), weight.permute(0, 2, 3, 1).flatten(1), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, index, back = ctx.saved_tensors
        (grad_rows,), (wants_x, wants_weight, wants_bias, *_) = grads, ctx.needs_input_grad
        kernel = weight.shape[2:]
        grad_x = grad_weight = None
        if wants_weight:
            product = grad_rows.t() @ gather_rows(x, index)
            grad_weight = product.unflatten(1, (*kernel, -1)).permute(0, 3, 1, 2)
        if wants_x and _strided(ctx.windows):
            split = (grad_rows @ weight.permute(0, 2, 3, 1).flatten(1)).unflatten(1, (kernel.numel(), -1))
            grad_x = add_back(split, index, x.shape)
        elif wants_x:
            flipped = _flipped(weight, 1).permute(0, 2, 3, 1).flatten(1)
            grad = grad_rows.unflatten(0, (len(x), *x.shape[2:])).permute(0, 3, 1, 2)
            grad_x = functional.linear(gather_rows(grad, index if back is None else back), flipped)
            grad_x = grad_x.unflatten(0, (len(x), *x.shape[2:])).permute(0, 3, 1, 2)
        return grad_x, grad_weight, grad_rows.sum(0) if wants_bias else None, None, None, None


class _MapConvolution(torch.autograd.Function):
    """Convolve on the dense map. The result has shape [N, h, w, O], so that it is not a view."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, shape: tuple[int, int, int],
        windows: Windows, groups: int,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, ids)
        ctx.shape, ctx.windows, ctx.groups = shape, windows, groups
        dense, padding = _padded(put_patches(x, ids, *shape), windows)
        strides, dilations = [w.stride for w in windows], [w.dilation for w in windows]
        y = functional.conv2d(dense, weight, bias, strides, padding, dilations, groups)
        return copy_patches(y, ids, *shape[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, ids = ctx.saved_tensors
        (grad,), (wants_x, wants_weight, wants_bias, *_) = grads, ctx.needs_input_grad
        dense, padding = _padded(put_patches(x, ids, *ctx.shape), ctx.windows)
        grad = grad.permute(0, 3, 1, 2)
        grad_map, wanted = put_patches(grad, ids, *ctx.shape), [wants_x, wants_weight]
        grad_dense, grad_weight = _gradients(grad_map, dense, weight, ctx.windows, ctx.groups, padding, wanted)
        grad_x = None
        if wants_x:
            height, width = x.shape[2] * ctx.shape[1], x.shape[3] * ctx.shape[2]
            grad_x = take_patches(grad_dense[..., :height, :width], ids, *ctx.shape[1:])
        return grad_x, grad_weight, _bias_gradient(grad, wants_bias), None, None, None, None


def _without_padding(x: Tensor, weight: Tensor, bias: Tensor | None, windows: Windows, groups: int) -> Tensor:
    strides, dilations = [window.stride for window in windows], [window.dilation for window in windows]
    return functional.conv2d(x, weight, bias, strides, 0, dilations, groups)


def _padded(dense_BCHW: Tensor, windows: Windows) -> tuple[Tensor, list[int]]:
    """Return a dense map and the symmetric padding to convolve it with; asymmetric padding is applied here."""
    extra = [window.padding - 2 * window.before for window in windows]
    if any(extra):
        dense_BCHW = functional.pad(dense_BCHW, (0, extra[1], 0, extra[0]))
    return dense_BCHW, [window.before for window in windows]


def _flipped(weight: Tensor, groups: int) -> Tensor:
    """Return the kernel of the gradient: [O, C / groups, k, k] -> [C, O / groups, k, k], channels last."""
    split = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flip(2, 3)
    return split.contiguous(memory_format=torch.channels_last)


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, windows: Windows, groups: int, padding: list[int], wanted: list[bool]
) -> tuple[Any, Any]:
    """Return the gradients of a dense convolution's input and weight, where needed."""
    strides, dilations = [window.stride for window in windows], [window.dilation for window in windows]
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, strides, padding, dilations, False, [0, 0], groups, [*wanted, False]
    )
    return grad_x, grad_weight


def _bias_gradient(grad: Tensor, wanted: bool) -> Tensor | None:
    return grad.sum((0, 2, 3)) if wanted else None
