"""Make a dense network sparse without touching its source or its parameter names.

Layers are converted by exact type: a subclass that nobody looked at (one that also has an activation, say) is
refused by its path rather than converted wrongly.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from spark.errors import UserError, nearest
from spark.sparse import masked
from spark.sparse.masked import Rule
from spark.sparse.state import VisiblePatches

LAYERS_NAMED = 8  # in an error message; a network that is not supported at all has hundreds
ENGINES: Mapping[str, Mapping[type[nn.Module], Rule]] = MappingProxyType({"masked": masked.RULES})


class SparseLayer(nn.Module):
    """Mixed into a layer's own class: follows the engine's rule while a mask is set, dense otherwise."""

    _rule: Rule
    _visible: VisiblePatches

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to a feature map."""
        if not self._visible.active:
            return super().forward(x)
        return type(self)._rule(super().forward, self._visible, x)


def resolve_engine(name: str) -> str:
    """Return the engine that `auto` stands for, or the name itself.

    Raises:
        UserError: unknown engine.
    """
    if name == "auto":
        return next(iter(ENGINES))
    if name not in ENGINES:
        known = ["auto", *ENGINES]
        raise UserError(f"unknown engine '{name}' (known: {', '.join(known)}).{nearest(name, known)}")
    return name


def sparsify(
    network: nn.Module,
    visible: VisiblePatches,
    example: Tensor,
    engine: str = "auto",
    extra_rules: Mapping[type[nn.Module], Rule] | None = None,
) -> None:
    """Convert in place every module that `network(example)` runs, and freeze the parameters of the others.

    What the example does not reach (a classification head, say) is no part of the sparse network.

    Args:
        network: any module whose layers are known to the engine; parameter names and values are kept.
        visible: the state that all converted layers of this network share.
        example: an input, e.g. [1, 3, 64, 64]; no mask is set while it runs.
        engine: a key of ENGINES or "auto".
        extra_rules: rules for a user's own layers, by exact type.

    Raises:
        UserError: names the layers, by path, that have no rule; or the network does not take the example.
    """
    engine = resolve_engine(engine)
    rules = {**ENGINES[engine], **(extra_rules or {})}
    try:
        used = modules_used(network, example)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        shape = "x".join(map(str, example.shape))
        raise UserError(f"the network does not run on an input of {shape}, as a convnet would: {error}") from error
    unknown = [f"{path}: {type(layer).__name__}" for path, layer in used.items() if type(layer) not in rules]
    if unknown:
        more = f"; and {len(unknown) - LAYERS_NAMED} more" if len(unknown) > LAYERS_NAMED else ""
        raise UserError(
            f"these layers are not supported by the {engine} engine: {'; '.join(unknown[:LAYERS_NAMED])}{more}. "
            "Choose another model, or pass a rule for the layer"
        )
    for layer in used.values():
        rule = rules[type(layer)]
        if rule is masked.unchanged:
            continue
        layer.__class__ = _sparse_class(type(layer), rule)
        layer._visible = visible  # type: ignore[assignment]
    _freeze_unused(network, set(used.values()))


def modules_used(network: nn.Module, example: Tensor) -> dict[str, nn.Module]:
    """Return, by path, the modules inside `network` whose forward runs on `example` (in eval mode)."""
    used: dict[str, nn.Module] = {}
    hooks = []
    for path, layer in network.named_modules():
        if layer is not network:

            def remember(layer: nn.Module, _inputs: Any, path: str = path) -> None:
                used[path] = layer

            hooks.append(layer.register_forward_pre_hook(remember))
    modes = {layer: layer.training for layer in network.modules()}
    try:
        with torch.no_grad():
            network.eval()(example)
    finally:
        for hook in hooks:
            hook.remove()
        for layer, training in modes.items():
            layer.training = training
    return used


def _sparse_class(dense: type[nn.Module], rule: Rule) -> type[nn.Module]:
    """Derive a class from the layer's own, so that its name, attributes and state stay what they were."""
    return type(f"Sparse{dense.__name__}", (SparseLayer, dense), {"_rule": staticmethod(rule)})


def _freeze_unused(network: nn.Module, used: set[nn.Module]) -> None:
    """A parameter without gradient would only be decayed, and would make DDP wait for it forever."""
    for layer in network.modules():
        if layer is not network and layer not in used and not any(child in used for child in layer.modules()):
            for parameter in layer.parameters(recurse=False):
                parameter.requires_grad_(False)
