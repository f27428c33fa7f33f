"""What pre-training needs to know of a network: timm's are `spark.TimmPyramid`, and any other may join."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

from torch import Tensor, nn

from spark.backbones.tracing import output_of
from spark.errors import UserError

MEMBERS = ("forward", "channels", "strides", "example")


class Pyramid(Protocol):
    """A `torch.nn.Module` that returns feature maps, the finest first. (tools/examples/cifar_resnet.py is one.)

    The decoder takes every map that it returns; the coarsest one's stride is the patch size, a power of two. What
    `forward` does between the layers (sums, products, concatenated channels) must keep zero at zero and every
    position by itself: nobody reads it, but `spark check` proves it.

    Three more things are looked at where they exist: an attribute `sparse_layers`, the kinds of the network's own
    layers and blocks by exact type (see `spark.sparse.LayerRule`), and parameters `in_chans` and `drop_path` of its
    constructor, which are given `model.in_chans` and `model.drop_path`. `model.options` are its other parameters.
    """

    @property
    def channels(self) -> Sequence[int]:
        """Of each map."""

    @property
    def strides(self) -> Sequence[int]:
        """Of each map, relative to the image: powers of two from 2 upwards, each larger than the one before."""

    def forward(self, x_BCHW: Tensor) -> Sequence[Tensor]:
        """Return the maps [B, channels[i], H / strides[i], W / strides[i]]."""

    def example(self) -> Tensor:
        """Return a small input [1, C, H, W] that reaches every layer, of two patches or more in each direction."""


def require_pyramid(network: Any) -> None:
    """Make sure that a network is what it says, as far as that can be seen before it runs.

    Raises:
        UserError: it lacks a member, or its strides do not suit the decoder.
    """
    name = _name(network)
    if not isinstance(network, nn.Module):
        raise UserError(f"{name} is no torch.nn.Module; see `spark.Pyramid` for what a network has to have")
    if lacking := [member for member in MEMBERS if not hasattr(network, member)]:
        raise UserError(f"{name} lacks {', '.join(lacking)}; see `spark.Pyramid` for what a network has to have")
    strides, channels = list(network.strides), list(network.channels)  # type: ignore[arg-type]
    if not strides or len(strides) != len(channels):
        raise UserError(f"{name} must name a stride and a number of channels for each map, not {strides}, {channels}")
    if odd := [stride for stride in strides if stride < 2 or stride & (stride - 1)]:
        whole = "total stride" if odd[-1] == strides[-1] else "map at a stride"
        raise UserError(
            f"{name} has a {whole} of {odd[-1]}; the decoder doubles its image, so that every stride must be a "
            "power of two, and at least 2: choose another model, or leave that map out"
        )
    if not all(fine < coarse for fine, coarse in pairwise(strides)):
        raise UserError(f"{name} must return the finest map first and one map per stride, not {strides}")


def require_maps(network: Any, example: Tensor) -> None:
    """Make sure that a network's maps of `example` have the channels and strides that it names.

    Raises:
        UserError: they do not.
    """
    maps = output_of(network, example)
    name = _name(network)
    if not isinstance(maps, list | tuple) or len(maps) != len(network.strides):
        found = f"{len(maps)} maps" if isinstance(maps, list | tuple) else type(maps).__name__
        raise UserError(f"{name} must return a list of {len(network.strides)} maps, not {found}")
    for map_, channels, stride in zip(maps, network.channels, network.strides, strict=True):
        wanted = [len(example), channels, *(side // stride for side in example.shape[2:])]
        if list(map_.shape) != wanted:
            found, right = ("x".join(map(str, shape)) for shape in (map_.shape, wanted))
            raise UserError(f"{name} returns a map of {found} where its channels and strides say {right}")


def _name(network: Any) -> str:
    return f"network '{getattr(network, 'name', None) or type(network).__name__}'"
