"""timm blocks whose forward pass does more than call layers: it also pads a map or reduces it over the image.

Their rules repeat timm's forward pass with that one step replaced. Layers inside them that take feature maps keep
their own rules; layers that take one vector per image stay dense (`VECTOR`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from spark.sparse import compact, masked
from spark.sparse.rule import Dense, LayerRule, SparseForward, unchanged
from spark.sparse.state import VisiblePatches
from spark.sparse.window import after_padding, windows_misfit, windows_of

VECTOR = LayerRule(unchanged, unchanged, inner_maps=False, name="unchanged: sees one vector per image")
"""Sees one vector of each image and no map: part of a gate."""

Pad = tuple[int, int, int, int]
"""Zeros at the left, right, top and bottom of a map, as torch orders them."""


def split_attention(over_image: SparseForward) -> SparseForward:
    """For ResNeSt: a convolution to `radix` branches, summed with weights that follow from the image."""

    def sparse_forward(layer: Any, dense: Dense, visible: VisiblePatches, x: Tensor) -> Tensor:
        def attend(x_BCHW: Tensor) -> Tensor:
            branches = x_BCHW.unflatten(1, (layer.radix, -1))
            mean = branches.sum(1).mean((2, 3), keepdim=True)
            logits = layer.fc2(layer.act1(layer.bn1(layer.fc1(mean))))
            weights = layer.rsoftmax(logits).view(len(x_BCHW), layer.radix, -1, 1, 1)
            return (branches * weights).sum(1)

        return over_image(layer, attend, visible, layer.act0(layer.drop(layer.bn0(layer.conv(x)))))

    return sparse_forward


def selective_kernel(over_image: SparseForward) -> SparseForward:
    """For SKNet: convolutions of several sizes, summed with weights that follow from the image."""

    def sparse_forward(layer: Any, dense: Dense, visible: VisiblePatches, x: Tensor) -> Tensor:
        def attend(x_BCHW: Tensor) -> Tensor:
            paths = x_BCHW.unflatten(1, (layer.num_paths, -1))
            return (paths * layer.attn(paths)).sum(1)

        inputs = x.chunk(layer.num_paths, 1) if layer.split_input else [x] * layer.num_paths
        paths = [path(part) for path, part in zip(layer.paths, inputs, strict=True)]
        return over_image(layer, attend, visible, torch.cat(paths, 1))

    return sparse_forward


def focal_modulation(over_image: SparseForward) -> SparseForward:
    """For FocalNet: contexts from ever larger windows and at last from the whole image, each with its gate."""

    def sparse_forward(layer: Any, dense: Dense, visible: VisiblePatches, x: Tensor) -> Tensor:
        def of_image(x_BCHW: Tensor) -> Tensor:
            context, gate = x_BCHW[:, :-1], x_BCHW[:, -1:]
            return layer.act(context.mean((2, 3), keepdim=True)) * gate

        query, context, gates = layer.f(x).split(layer.input_split, 1)
        total = torch.zeros_like(context)
        for level, focal_layer in enumerate(layer.focal_layers):
            context = focal_layer(context)
            total = total + context * gates[:, level : level + 1]
        total = total + over_image(layer, of_image, visible, torch.cat([context, gates[:, -1:]], 1))
        if layer.normalize_modulator:
            total = total / (layer.focal_level + 1)
        return layer.proj_drop(layer.proj(layer.norm(query * layer.h(total))))

    return sparse_forward


def conditional_convolutions(layer: Any, dense: Dense, visible: VisiblePatches, x: Tensor) -> Tensor:
    """For CondConv: an inverted residual whose weights are mixed anew for every image.

    Both engines run these convolutions on dense maps, one image at a time: the patches of a compact batch would all
    share the same weights.
    """

    def convolve(convolution: nn.Module, x: Tensor) -> Tensor:
        y_BCHW = visible.hide(convolution(visible.leave(x), weights))
        return visible.take(y_BCHW) if visible.engine == "compact" else y_BCHW

    x_BCHW = visible.leave(x)
    visible_share = visible.at(*x_BCHW.shape[-2:]).to(x.dtype).mean((2, 3))
    weights = torch.sigmoid(layer.routing_fn(x_BCHW.mean((2, 3)) / visible_share))
    y = layer.bn1(convolve(layer.conv_pw, x))
    y = layer.se(layer.bn2(convolve(layer.conv_dw, y)))
    y = layer.bn3(convolve(layer.conv_pwl, y))
    return layer.drop_path(y) + x if layer.has_skip else y


def hgnet_stem(layer: Any, dense: Dense, visible: VisiblePatches, x: Tensor) -> Tensor:
    """For the stem of HGNetV2 on compact maps: its padding is left to the layers that follow (`hgnet_stem_layers`)."""
    x = layer.stem1(x)
    both = torch.cat([layer.pool(x), layer.stem2b(layer.stem2a(x))], 1)
    return layer.stem4(layer.stem3(both))


def hgnet_stem_layers(layer: nn.Module) -> dict[str, LayerRule]:
    """Return the rules of those layers."""
    pad = (0, 1, 0, 1)
    return {"stem2a.conv": convolution_after(pad), "stem2b.conv": convolution_after(pad), "pool": max_pool_after(pad)}


def convolution_after(pad: Pad) -> LayerRule:
    """Return the rule of a convolution without padding whose input was padded by an earlier layer."""
    return LayerRule(
        masked.zero_masked,
        compact.convolution_after(pad),
        refuses=lambda layer: _misfit(layer, pad),
        name="sparse convolution with the padding before it",
    )


def max_pool_after(pad: Pad) -> LayerRule:
    """The same for max pooling. The zeros of the padding and of the holes count as ordinary values."""
    return LayerRule(
        masked.zero_masked,
        compact.max_pool_after(pad),
        refuses=lambda layer: _misfit(layer, pad),
        name="maximum with the padding before it",
    )


def padded_layers(sequence: nn.Module) -> dict[str, LayerRule]:
    """Return the rules of the zero-padding layers in a sequence, and of the layers that follow them.

    On dense maps they run unchanged: both holes and padding are zero.
    """
    follows: dict[type[nn.Module], Callable[[Pad], LayerRule]] = {
        nn.Conv2d: convolution_after, nn.MaxPool2d: max_pool_after,
    }
    rules: dict[str, LayerRule] = {}
    children: Iterable[tuple[str, Any]] = sequence.named_children()
    for (name, layer), (next_name, next_layer) in pairwise(children):
        pads_zeros = type(layer) in (nn.ZeroPad2d, nn.ConstantPad2d) and layer.value == 0
        if pads_zeros and type(next_layer) in follows and next_layer.padding in (0, (0, 0)):
            rules[name] = LayerRule(unchanged, compact.padding, name="padding, left to the layer after it")
            rules[next_name] = follows[type(next_layer)](layer.padding)
    return rules


def vectors(*names: str) -> Mapping[str, LayerRule]:
    """Return rules that mark layers inside a block as taking vectors, not feature maps."""
    return dict.fromkeys(names, VECTOR)


def _misfit(layer: Any, pad: Pad) -> str | None:
    return windows_misfit(after_padding(windows_of(layer), *pad), getattr(layer, "ceil_mode", False))
