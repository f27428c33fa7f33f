"""Layer rules: what the engines need to know about a kind of layer."""

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
    """How one kind of layer behaves while a mask is set: one rule for each engine.

    Attributes:
        masked: the definition, on dense maps with zeros in the holes.
        compact: the same on compact maps; None if the compact engine does not support such a layer.
        channels_last: whether maps are [B, H, W, C].
        inner_maps: whether its submodules take feature maps too and need their own rules.
        inner: returns the rules, by relative path, of submodules that differ from the general table.
        refuses: returns why a particular layer of this kind has no sparse form, if so.
        name: what a layer is converted to, for display.
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
    """Return the rules that a network defines for its own layers, together with `extra_layers`."""
    return {**getattr(network, "sparse_layers", {}), **(extra_layers or {})}
