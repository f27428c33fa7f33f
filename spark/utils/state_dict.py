"""Load state dicts with nothing left over: what is missing, has no place or has another shape is named."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spark.errors import UserError

NAMED = 3  # tensors in a message


class MisfitError(UserError):
    """A state is not one of what it should be loaded into."""


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
        MisfitError: a tensor is missing, has no place, or has another shape.
    """
    own = module.state_dict()
    if not isinstance(state, Mapping):
        raise MisfitError(f"{source} holds no state dict")
    required = {name for name in own if not may_lack(name)}
    misshapen = [name for name in own if name in state and _shape(state[name]) != _shape(own[name])]
    problems = [
        *(f"'{name}' is missing" for name in sorted(required - state.keys())),
        *(f"'{name}' has no place in the model" for name in sorted(map(str, state.keys() - own.keys()))),
        *(f"'{name}' is {_shape(state[name])} instead of {_shape(own[name])}" for name in misshapen),
    ]
    if problems:
        more = f" and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise MisfitError(f"{source} does not fit {target}: {'; '.join(problems[:NAMED])}{more}")
    module.load_state_dict({**own, **state})


def load_optimizer(optimizer: Optimizer, state: Any, source: str) -> None:
    """Load an optimizer's state, all of it; by itself it takes moments of any shape and number.

    Raises:
        MisfitError: it is of other parameters, or of another optimizer.
    """
    own = optimizer.state_dict()["param_groups"]
    try:
        groups, moments = state["param_groups"], state["state"]
        # Other keys of groups differ between versions, and some optimizers and schedules add theirs as they step.
        fits = [group["params"] for group in groups] == [group["params"] for group in own]
        fits = fits and all("lr" in group for group in groups)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        fits = fits and all(
            not isinstance(value, Tensor) or value.dim() == 0 or value.shape == parameters[number].shape
            for number, values in moments.items() for value in values.values()
        )
        fits = fits and len({frozenset(values) for values in moments.values()}) <= 1
    except (LookupError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise MisfitError(f"{source} does not fit the run's optimizer")
    # Older versions of torch, or another scheduler, keep fewer or more settings of a group.
    whole = [{**mine, **group} for group, mine in zip(groups, own, strict=True)]
    optimizer.load_state_dict({"state": moments, "param_groups": whole})


def digest(content: Any) -> str:
    """Return a hash of plain values and tensors, whatever the order of keys: of their names, types, shapes and bits."""
    found = hashlib.sha256()
    for part in _parts(content):
        found.update(part)
    return found.hexdigest()


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield b"{"
        for key in sorted(value, key=repr):
            yield f"{key!r}:".encode(errors="surrogatepass")
            yield from _parts(value[key])
        yield b"}"
    elif isinstance(value, list | tuple):
        yield b"["
        for item in value:
            yield from _parts(item)
        yield b"]"
    elif isinstance(value, Tensor):
        tensor = value.detach().cpu().contiguous()
        yield f"{tensor.dtype}{tuple(tensor.shape)}".encode()
        yield tensor.flatten().view(torch.uint8).numpy().data
    else:
        yield f"{value!r},".encode(errors="surrogatepass")


def _shape(tensor: Any) -> str:
    if not isinstance(tensor, Tensor):
        return f"of type {type(tensor).__name__}"
    return "x".join(map(str, tensor.shape)) or "a number"
