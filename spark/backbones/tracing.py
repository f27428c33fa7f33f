"""What a network does on an example: which modules run, what depends on which parameters, what its blocks are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def modules_used(network: nn.Module, example: Tensor) -> dict[str, nn.Module]:
    """Return, by path, the modules inside `network` whose forward runs on `example` (in eval mode)."""
    used: dict[str, nn.Module] = {}
    hooks = []
    for path, layer in network.named_modules():
        if layer is not network:

            def remember(layer: nn.Module, _inputs: Any, path: str = path) -> None:
                used[path] = layer

            hooks.append(layer.register_forward_pre_hook(remember))
    try:
        output_of(network, example)
    finally:
        for hook in hooks:
            hook.remove()
    return used


def output_of(network: nn.Module, example: Tensor, gradients: bool = False) -> Any:
    """Return `network(example)`, run in eval mode, and without gradients unless asked; the mode stays what it was."""
    modes = {layer: layer.training for layer in network.modules()}
    try:
        with torch.set_grad_enabled(gradients):
            return network.eval()(example)
    finally:
        for layer, training in modes.items():
            layer.training = training


def parameters_reached(outputs: Any) -> set[nn.Parameter]:
    """Return the parameters that a tensor, or several in a list or a mapping, depend on: those that get gradients."""
    several = outputs.values() if isinstance(outputs, Mapping) else outputs
    tensors = [outputs] if isinstance(outputs, Tensor) else [output for output in several if isinstance(output, Tensor)]
    waiting, seen, reached = [tensor.grad_fn for tensor in tensors], set(), set()
    while waiting:
        step = waiting.pop()
        if step is not None and step not in seen:
            seen.add(step)
            if hasattr(step, "variable"):  # a leaf's: it would take the gradient in
                reached.add(step.variable)
            waiting.extend(before for before, _ in step.next_functions)
    return reached


CONTAINERS = (nn.Sequential, nn.ModuleList)
NO_BLOCKS = (*CONTAINERS, _BatchNorm)  # timm's batch norms hold an activation


def blocks_of(network: nn.Module) -> list[str]:
    """Return the paths of a network's blocks."""
    candidates = [
        f"{path}.{name}" if path else name
        for path, parent in network.named_modules()
        if isinstance(parent, CONTAINERS)
        for name, child in parent.named_children()
        if not isinstance(child, NO_BLOCKS) and any(True for _ in child.children())
    ]
    return [path for path in candidates if not any(other.startswith(f"{path}.") for other in candidates)]
