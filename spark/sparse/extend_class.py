"""Extend a module's class in place: its name, attributes, parameters and state do not change."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn


def extend_class(layer: nn.Module, mixin: type[nn.Module], prefix: str, **attributes: Any) -> None:
    """Put `mixin` before the class of a layer.

    Args:
        layer: changed in place.
        mixin: its methods come first; `super()` in them is the layer's own class.
        prefix: of the new class's name.
        attributes: of the new class; they must be hashable.
    """
    layer.__class__ = extended(type(layer), mixin, prefix, tuple(attributes.items()))


def extended(own: Any, mixin: Any, prefix: str, attributes: tuple[tuple[str, Any], ...] = ()) -> Any:
    """Return the class that `extend_class` gives a layer of class `own`."""
    return _extended(own, mixin, prefix, attributes)


@cache  # one class per kind of layer: torch.compile distinguishes layers by class
def _extended(own: Any, mixin: Any, prefix: str, attributes: tuple[tuple[str, Any], ...]) -> Any:
    return type(f"{prefix}{own.__name__}", (mixin, own), dict(attributes))
