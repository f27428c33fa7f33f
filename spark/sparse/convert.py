"""Make a dense network sparse without touching its source or its parameter names.

Layers are converted by exact type: an unknown subclass (one that adds an activation, say) is refused, with its path
in the message, rather than converted wrongly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spark.backbones.tracing import modules_used, output_of, parameters_reached
from spark.config.values import shown
from spark.errors import RefusedError, UserError, nearest
from spark.sparse.extend_class import extend_class
from spark.sparse.layers import BATCH_NORM, rule_of
from spark.sparse.rule import LayerRule, SparseForward, unchanged
from spark.sparse.state import VisiblePatches

LAYERS_NAMED = 8  # in an error message; an unsupported network may have hundreds
ENGINES = ("compact", "masked")
"""From the fastest to the one that takes any supported layer; "auto" takes the first that takes them all."""


class SparseLayer(nn.Module):
    """Mixed into a layer's own class: computes as the engine's rule says while a mask is set, dense otherwise."""

    _sparse_forward: SparseForward
    _visible: VisiblePatches

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to a feature map."""
        if not self._visible.active:
            return super().forward(x)
        return type(self)._sparse_forward(self, super().forward, self._visible, x)


def sparsify(
    network: nn.Module,
    example: Tensor,
    engine: str = "auto",
    extra_layers: Mapping[type[nn.Module], LayerRule] | None = None,
) -> VisiblePatches:
    """Convert in place every module that `network(example)` runs; freeze parameters that its outputs do not depend on.

    Modules that do not run on the example (a classification head, say) are not part of the sparse network.

    Args:
        network: any module whose layers are known; parameter names and values are kept.
        example: an input, e.g. [1, 3, 64, 64]; no mask is set while it runs.
        engine: one of ENGINES, or "auto".
        extra_layers: rules for custom layers, by exact type.

    Returns:
        The state that all converted layers of this network share; it names the engine.

    Raises:
        UserError: layers are not supported (the message gives their paths), or the network does not take the example.
    """
    if engine not in ("auto", *ENGINES):
        known = ["auto", *ENGINES]
        raise UserError(f"unknown engine '{shown(engine)}' (known: {', '.join(known)}).{nearest(engine, known)}")
    try:
        used = modules_used(network, example)
        reached = parameters_reached(output_of(network, example, gradients=True))
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        shape = "x".join(map(str, example.shape))
        raise RefusedError(f"the network does not run on an input of {shape}, as a convnet would: {error}") from error
    concerned = {**used, **_holders(network, used)}
    rules = _layer_rules(concerned, extra_layers)
    visible = VisiblePatches()
    visible.engine, visible.stood_back = _choose_engine(engine, concerned, rules)
    visible.converted = Counter((type(concerned[path]).__name__, rule.name) for path, rule in rules.items())
    visible.norms_of_vectors = any(
        isinstance(inner, _BatchNorm)
        for path, rule in rules.items() if not rule.inner_maps and rule is not BATCH_NORM
        for inner in concerned[path].modules()
    )
    for path, rule in rules.items():
        _convert(concerned[path], rule, visible)
    freeze_unreached(network, reached)
    return visible


def join(
    layer: nn.Module, visible: VisiblePatches, extra_layers: Mapping[type[nn.Module], LayerRule] | None = None
) -> None:
    """Convert one more layer in place; it shares `visible` and its engine.

    Raises:
        UserError: the layer is not supported.
    """
    _convert(layer, _layer_rules({type(layer).__name__: layer}, extra_layers)[type(layer).__name__], visible)


def _holders(network: nn.Module, used: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return, by path, the parents of used modules whose `forward` did not run because another method was called.

    That method must be known too, since it may compute between the layers: `forward_intermediates` of timm models, say.
    """
    paths = {path.rpartition(".")[0] for path in used}
    paths |= {path[:end] for path in paths for end, letter in enumerate(path) if letter == "."}
    return {path: network.get_submodule(path) for path in paths if path and path not in used}


def _layer_rules(
    used: Mapping[str, nn.Module], extra: Mapping[type[nn.Module], LayerRule] | None
) -> dict[str, LayerRule]:
    """Return the rule of each layer that sees a feature map.

    Raises:
        UserError: layers are unknown or have no sparse form; the message names them.
    """
    rules: dict[str, LayerRule] = {}
    refused, unknown = [], []
    inner: dict[str, LayerRule] = {}  # rules set by an enclosing layer
    opaque: tuple[str, ...] = ()  # layers whose submodules need no rules of their own
    for path in sorted(used, key=lambda path: path.split(".")):  # a layer before its submodules
        if path.startswith(opaque):
            continue
        layer = used[path]
        rule = inner.get(path) or rule_of(layer, extra)
        if rule is None:
            unknown.append(f"{path}: {type(layer).__name__}")
            continue
        if reason := rule.refuses(layer):
            refused.append(f"{path}: {type(layer).__name__} {reason}")
        if not rule.inner_maps:
            opaque += (f"{path}.",)
        inner.update({f"{path}.{name}": inner_rule for name, inner_rule in rule.inner(layer).items()})
        rules[path] = rule
    if refused := refused + unknown:
        raise RefusedError(
            f"these layers are not supported: {_some(refused)}. Choose another model, or pass a rule for the layer"
        )
    return rules


def _choose_engine(
    engine: str, used: Mapping[str, nn.Module], rules: Mapping[str, LayerRule]
) -> tuple[str, str]:
    """Return the engine, and for "auto" why a faster one was not chosen ("" if it is the fastest)."""
    stand_back = [f"{path}: {type(used[path]).__name__}" for path, rule in rules.items() if rule.compact is None]
    if engine == "masked" or not stand_back:
        return ("compact" if engine == "auto" else engine), ""
    reason = f"the compact engine has no rule for {_some(stand_back)}"
    if engine == "compact":
        raise UserError(f"{reason}; pass engine=masked")
    return "masked", reason


def _convert(layer: nn.Module, rule: LayerRule, visible: VisiblePatches) -> None:
    sparse_forward: SparseForward = getattr(rule, visible.engine)
    if sparse_forward is not unchanged:
        extend_class(layer, SparseLayer, "Sparse", _sparse_forward=sparse_forward)
        layer._visible = visible  # type: ignore[assignment]


def _some(layers: list[str]) -> str:
    more = f"; and {len(layers) - LAYERS_NAMED} more" if len(layers) > LAYERS_NAMED else ""
    return "; ".join(layers[:LAYERS_NAMED]) + more


def freeze_unreached(network: nn.Module, reached: set[nn.Parameter]) -> None:
    """Freeze unreached parameters: they would only get weight decay, and DDP would wait for their gradients forever."""
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.requires_grad and parameter in reached)
