"""Where does a sparse network go wrong? Its layers' maps are compared with those of the dense network, in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spark.sparse.convert import SparseLayer
from spark.sparse.state import VisiblePatches

TOLERANCE = 1e-6  # relative, in float64; amplified rounding is not a fault


class _Call(NamedTuple):
    """A layer's call: its path, input and output, as [B, C, H, W]."""

    path: str
    input: Tensor
    output: Tensor


def first_deviation(
    dense: nn.Module, sparse: nn.Module, visible: VisiblePatches, image: Tensor, patches: int, channels_last: set[str]
) -> str:
    """Say where maps begin to differ from the dense ones, for an image in a masked frame; "" if none does.

    Args:
        dense: the network, in float64.
        sparse: a copy of it, converted for the engine "masked".
        visible: what its layers share.
        image: [B, C, H, W].
        patches: side of the image in patches.
        channels_last: paths of the layers whose maps are [B, H, W, C].
    """
    side, stride = patches + 2, image.shape[-1] // patches
    mask = torch.zeros(len(image), 1, side, side, dtype=torch.bool)
    mask[..., 1:-1, 1:-1] = True
    frame = nn.functional.pad(image, [stride] * 4)
    paths = {path for path, layer in sparse.named_modules() if _innermost(layer)}
    with torch.no_grad():
        with _calls(dense, paths, channels_last) as wanted:
            dense(image)
        with visible.use_mask(mask), _calls(sparse, paths, channels_last) as found:
            sparse(visible.enter(frame))
    before = ""
    for right, call in zip(wanted, found, strict=False):
        layer = f"{call.path} ({type(dense.get_submodule(call.path)).__name__})"
        if _differ(call.input, right.input, patches):
            return f"between {before} and {layer}" if before else f"before {layer}"
        if _differ(call.output, right.output, patches):
            return f"in {layer}"
        before = layer
    return f"after {before}" if before else ""


def _innermost(layer: nn.Module) -> bool:
    return isinstance(layer, SparseLayer) and sum(isinstance(inner, SparseLayer) for inner in layer.modules()) == 1


@contextmanager
def _calls(network: nn.Module, paths: set[str], channels_last: set[str]) -> Iterator[list[_Call]]:
    """Record the calls of layers that take and return maps, in order."""
    calls: list[_Call] = []

    def hook_of(path: str) -> Any:
        def record(_layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            maps = [inputs[0], output]
            if all(isinstance(map_, Tensor) and map_.ndim == 4 for map_ in maps):
                copies = [map_.clone() for map_ in maps]  # the next layer may work in place
                calls.append(_Call(path, *(m.permute(0, 3, 1, 2) if path in channels_last else m for m in copies)))

        return record

    hooks = [network.get_submodule(path).register_forward_hook(hook_of(path)) for path in sorted(paths)]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _differ(found: Tensor, wanted: Tensor, patches: int) -> bool:
    """Whether a map of the framed image is another one than that of the image alone, with zeros around it."""
    border = [size // patches for size in wanted.shape[-2:]]
    expected = nn.functional.pad(wanted, [border[1]] * 2 + [border[0]] * 2)
    if expected.shape != found.shape:
        return True
    return not bool((found - expected).norm() <= TOLERANCE * expected.norm())
