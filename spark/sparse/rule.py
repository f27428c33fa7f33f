"""What the engines need to know of a sort of layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from spark.sparse.state import VisiblePatches

Dense = Callable[[Tensor], Tensor]
SparseForward = Callable[[nn.Module, Dense, VisiblePatches, Tensor], Tensor]
"""(layer, the layer's own forward, visible patches, feature map) -> feature map, while a mask is set."""


@dataclass(frozen=True)
class LayerRule:
    """How one sort of layer behaves while a mask is set: one rule for each engine.

    Attributes:
        masked: the definition, on dense maps with zeros in the holes.
        compact: the same on compact maps; None if the compact engine has to stand back for such a layer.
        channels_last: whether maps are [B, H, W, C].
        inner_maps: whether layers inside of it see feature maps too, and have rules of their own.
        inner: the rules, by path, of layers inside of it that are not those of the table there.
        refuses: says what is wrong with a layer of this sort that has no sparse meaning.
        name: what becomes of a layer, for people.
    """

    masked: SparseForward
    compact: SparseForward | None
    channels_last: bool = False
    inner_maps: bool = True
    inner: Callable[[nn.Module], Mapping[str, LayerRule]] = lambda layer: {}
    refuses: Callable[[nn.Module], str | None] = lambda layer: None
    name: str = "a rule of its own"


def unchanged(layer: nn.Module, dense: Dense, visible: VisiblePatches, x: Tensor) -> Tensor:
    """The layer's own forward pass."""
    return dense(x)


def sparse_layers_of(
    network: object, extra_layers: Mapping[type[nn.Module], LayerRule] | None = None
) -> Mapping[type[nn.Module], LayerRule]:
    """Return the rules of a network's own layers, and `extra_layers` beside them."""
    return {**getattr(network, "sparse_layers", {}), **(extra_layers or {})}
