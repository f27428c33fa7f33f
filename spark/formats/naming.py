"""Renaming a state dict with an explanation for every key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from spark.errors import UserError

Renaming = Sequence[tuple[str, str]]
"""(pattern that must match the whole key, replacement with backreferences); the first match wins."""

Drops = Sequence[tuple[str, str]]
"""(pattern that must match the whole key, why the tensor is not needed)."""


@dataclass
class Conversion:
    """A converted state dict: where each tensor came from, and why others were left out."""

    state: dict[str, Tensor]
    mapped: dict[str, str] = field(default_factory=dict)  # source key -> destination key
    dropped: dict[str, str] = field(default_factory=dict)  # source key -> reason

    def then(self, following: Conversion) -> Conversion:
        """Compose with a conversion of this one's result."""
        dropped = dict(self.dropped)
        mapped = {}
        for source, key in self.mapped.items():
            if key in following.mapped:
                mapped[source] = following.mapped[key]
            else:
                dropped[source] = following.dropped[key]
        return Conversion(following.state, mapped, dropped)


def rename(state: Mapping[str, Tensor], renaming: Renaming, drops: Drops = (), source: str = "") -> Conversion:
    """Rename every key, or drop it for a stated reason.

    Raises:
        UserError: names the keys that no rule explains, or two keys that would become one.
    """
    conversion = Conversion({})
    unexplained = []
    for key, tensor in state.items():
        reason = next((why for pattern, why in drops if re.fullmatch(pattern, key)), None)
        if reason is not None:
            conversion.dropped[key] = reason
            continue
        new = _first_match(key, renaming)
        if new is None:
            unexplained.append(key)
        elif new in conversion.state:
            raise UserError(f"two tensors of the {source or 'checkpoint'} would both become '{new}'")
        else:
            conversion.mapped[key] = new
            conversion.state[new] = tensor
    if unexplained:
        shown = ", ".join(unexplained[:5]) + (", …" if len(unexplained) > 5 else "")
        raise UserError(f"{len(unexplained)} keys are not explained by the {source or 'format'}: {shown}")
    return conversion


def _first_match(key: str, renaming: Renaming) -> str | None:
    for pattern, replacement in renaming:
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(replacement)
    return None
