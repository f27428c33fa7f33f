"""Nested settings, compared leaf by leaf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spark.config.identity import flat


class _Absent:
    """Stands where one side has no such setting: None is a value."""

    def __repr__(self) -> str:
        return "not set"


ABSENT = _Absent()


def leaves(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings by dotted names, which go into lists of mappings, too (`augmentations.0.max_size`)."""
    return flat({key: _lists_numbered(value) for key, value in tree.items()})


def differing(trees: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the values, one for each of several settings, under the dotted names at which they are not all equal."""
    flattened = [leaves(tree) for tree in trees]
    names = dict.fromkeys(name for tree in flattened for name in tree)
    columns = {name: [tree.get(name, ABSENT) for tree in flattened] for name in names}
    return {name: values for name, values in columns.items() if any(value != values[0] for value in values)}


def _lists_numbered(value: Any) -> Any:
    if isinstance(value, list | tuple) and any(isinstance(entry, Mapping) for entry in value):
        value = {str(index): entry for index, entry in enumerate(value)}
    if isinstance(value, Mapping):
        return {str(key): _lists_numbered(entry) for key, entry in value.items()}
    return value
