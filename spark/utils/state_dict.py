"""Load a state dict with nothing left over: what is missing, has no place or has another shape is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from spark.errors import UserError

NAMED = 3  # tensors in a message


def load_strictly(
    module: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    target: str = "the model",
    may_lack: Callable[[str], bool] = lambda name: False,
) -> None:
    """Copy tensors into a module.

    Args:
        module: it is changed in place.
        state: its tensors by name.
        source: where they come from, for the message.
        target: what the module is, for the message.
        may_lack: whether a tensor of the module may stay as it is.

    Raises:
        UserError: a tensor is missing, has no place, or has another shape.
    """
    own = module.state_dict()
    if not isinstance(state, Mapping):
        raise UserError(f"{source} holds no state dict")
    required = {name for name in own if not may_lack(name)}
    misshapen = [name for name in own if name in state and _shape(state[name]) != _shape(own[name])]
    problems = [
        *(f"'{name}' is missing" for name in sorted(required - state.keys())),
        *(f"'{name}' has no place in the model" for name in sorted(map(str, state.keys() - own.keys()))),
        *(f"'{name}' is {_shape(state[name])} instead of {_shape(own[name])}" for name in misshapen),
    ]
    if problems:
        more = f" and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise UserError(f"{source} does not fit {target}: {'; '.join(problems[:NAMED])}{more}")
    module.load_state_dict({**own, **state})


def _shape(tensor: Any) -> str:
    if not isinstance(tensor, Tensor):
        return f"of type {type(tensor).__name__}"
    return "x".join(map(str, tensor.shape)) or "a number"
