"""Renaming a state dict, in both directions from one table, with an explanation for every key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter
from typing import NamedTuple

from torch import Tensor

from spark.errors import UserError

Renaming = Sequence[tuple[str, str]]
"""(pattern that must match the whole key, replacement with backreferences); the first match wins."""

Drops = Sequence[tuple[str, str]]
"""(pattern that must match the whole key, why the tensor is not needed)."""

CLASSIFIER = "classifier, not part of an encoder"

# What the fields of a rule stand for.
_FIELDS = {
    "block": r"\d+",
    "conv": "[123]",
    "leaf": "weight|bias",
    "norm": "weight|bias|running_mean|running_var|num_batches_tracked",
    "part": "[01]",  # of a pair such as convolution and norm
    "stage": "[0-3]",
}


@dataclass
class Conversion:
    """A converted state dict: where each tensor came from, why others were left out, which are not there."""

    state: dict[str, Tensor]
    mapped: dict[str, str] = field(default_factory=dict)  # source key -> destination key
    dropped: dict[str, str] = field(default_factory=dict)  # source key -> reason
    missing: dict[str, str] = field(default_factory=dict)  # destination key that no tensor became -> what of it

    def then(self, following: Conversion) -> Conversion:
        """Compose with a conversion of this one's result."""
        dropped = dict(self.dropped)
        mapped = {}
        for source, key in self.mapped.items():
            if key in following.mapped:
                mapped[source] = following.mapped[key]
            else:
                dropped[source] = following.dropped[key]
        return Conversion(following.state, mapped, dropped, self.missing | following.missing)


class Rule(NamedTuple):
    """One line of a table: the same tensors' names in a format and in timm.

    Fields in braces, `{block}` for one, stand for what both names share.
    """

    theirs: str
    timm: str
    shape: tuple[int, ...] | None = None  # in which the format keeps what is a vector in timm


class Table:
    """A bijection between a format's names of one family of networks and timm's.

    Args:
        rules: pairs of names.
        example: timm's name of a tensor that every network of the family has. Its counterpart tells the format.
    """

    def __init__(self, *rules: Rule, example: str) -> None:
        for rule in rules:
            if _fields(rule.theirs) != _fields(rule.timm):
                raise ValueError(f"'{rule.theirs}' and '{rule.timm}' have different fields")
        self.rules = rules
        self.example = example
        self._to_timm = [(_pattern(rule.theirs), _replacement(rule.timm)) for rule in rules]
        self._from_timm = [(_pattern(rule.timm), _replacement(rule.theirs)) for rule in rules]
        self._sign = _first_match(example, self._from_timm)

    def recognized(self, state: Mapping[str, Tensor]) -> bool:
        """Whether a state is named in the format."""
        return self._sign in state

    def to_timm(self, state: Mapping[str, Tensor], drops: Drops = (), source: str = "") -> Conversion:
        """Rename from the format to timm; raises as `rename` does."""
        conversion = rename(state, self._to_timm, drops, source)
        self._require_way_back(conversion, self._from_timm)
        for rule in self._shaped():
            _reshape(conversion.state, _pattern(rule.timm), (-1,))
        return conversion

    def from_timm(self, state: Mapping[str, Tensor], drops: Drops = (), source: str = "") -> Conversion:
        """Rename from timm to the format; raises as `rename` does."""
        conversion = rename(state, self._from_timm, drops, source)
        self._require_way_back(conversion, self._to_timm)
        for rule in self._shaped():
            assert rule.shape is not None
            _reshape(conversion.state, _pattern(rule.theirs), rule.shape)
        return conversion

    def _shaped(self) -> Iterator[Rule]:
        return (rule for rule in self.rules if rule.shape is not None)

    @staticmethod
    def _require_way_back(conversion: Conversion, inverse: Renaming) -> None:
        for old, new in conversion.mapped.items():
            if _first_match(new, inverse) != old:
                raise UserError(f"'{old}' would become '{new}', from which nothing leads back")


def per_stage(stages: Mapping[str, str], *rules: Rule) -> list[Rule]:
    """Return the rules for each of a network's stages, of which format and timm have their own names.

    Args:
        stages: the format's name -> timm's; they take the place of `{stage}` in the rules.
        rules: of a stage.
    """
    return [
        Rule(rule.theirs.replace("{stage}", theirs), rule.timm.replace("{stage}", timm), rule.shape)
        for theirs, timm in stages.items()
        for rule in rules
    ]


def table_of(tables: Sequence[Table], state: Mapping[str, Tensor], what: str) -> Table:
    """Return the table of a state in timm's naming.

    Raises:
        UserError: none is.
    """
    for table in tables:
        if table.example in state:
            return table
    raise UserError(f"{what} has no place for '{next(iter(state), 'nothing')}': it holds networks of another kind")


def unwrapped(state: Mapping[str, Tensor], wrappings: Renaming) -> Conversion:
    """Strip what a bigger model puts before a network's names; other keys stay as they are."""
    return rename(state, [*wrappings, (r"(.*)", r"\1")])


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


def _fields(template: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(template) if name is not None}


def _pattern(template: str) -> str:
    """Return the regular expression of a rule's name."""
    return "".join(
        re.escape(text) + (f"(?P<{name}>{_FIELDS[name]})" if name is not None else "")
        for text, name, _, _ in Formatter().parse(template)
    )


def _replacement(template: str) -> str:
    """Return what a match is expanded to."""
    return "".join(
        text + (rf"\g<{name}>" if name is not None else "") for text, name, _, _ in Formatter().parse(template)
    )


def _reshape(state: dict[str, Tensor], pattern: str, shape: tuple[int, ...]) -> None:
    for key, tensor in state.items():
        if re.fullmatch(pattern, key):
            state[key] = tensor.reshape(shape)
