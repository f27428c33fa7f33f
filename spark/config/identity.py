"""Which settings decide a result: the one answer behind every id, of pre-trainings, evaluations, detectors and studies.

An id changes exactly when numbers may change. From that follow the three rules of `deciding`:

- What neither decides about the numbers nor, but for rounding, touches them is free, and enters no id.
- A setting that was `added` later enters no id while it has its default, which is what runs did before it was there.
- A callable enters under its first name, wherever its code has moved since (`first_names`).

What `auto` came to enters beside the settings, where it acts (`acting`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from spark.utils.provenance import content_hash

PRECISION = "precision"
ADDED = "added"  # the metadata of a dataclass's field that came later


def added(default: Any) -> Any:
    """Return the field of a setting that came after runs were recorded; at its default it is what those did."""
    if callable(default):
        return dataclasses.field(default_factory=default, metadata={ADDED: True})
    return dataclasses.field(default=default, metadata={ADDED: True})


def deciding(config: Any, free: Collection[str] = ()) -> dict[str, Any]:
    """Return the settings that decide a result, nested as they are in the configuration.

    Args:
        config: a dataclass, or nested mappings.
        free: dotted names of settings, or of groups of them, that do not decide.
    """
    return without(_known_from_the_start(config), free)


def deciding_hash(config: Any, free: Collection[str] = (), **beside: Any) -> str:
    """Return a short hash of the settings that decide a result, by dotted name, and of what decides `beside` them."""
    settings = flat(deciding(config, free))
    return content_hash({"settings": settings, **beside} if beside else settings)


def acting(resolved: Mapping[str, str]) -> dict[str, str]:
    """Return what of the meanings of `auto` decides about numbers: a precision that rounds more than float32 does.

    Args:
        resolved: what `auto` came to, by dotted key, such as {"train.precision": "bfloat16", "engine": "compact"}.
    """
    precision = next((value for key, value in resolved.items() if key.rpartition(".")[2] == PRECISION), "float32")
    return {} if precision == "float32" else {PRECISION: precision}


def first_names(tree: Any, moved: Mapping[str, str]) -> Any:
    """Return nested settings with each `_target_` under its first name.

    Args:
        tree: mappings, lists and values; callables as they are, or by their dotted name.
        moved: name at which a callable is now -> name under which it was first recorded.
    """
    if isinstance(tree, Mapping):
        return {
            key: moved.get(_dotted(value), value) if key == "_target_" else first_names(value, moved)
            for key, value in tree.items()
        }
    return [first_names(entry, moved) for entry in tree] if isinstance(tree, list | tuple) else tree


def without(tree: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return a copy of nested settings that lacks some, named by dotted keys, themselves or by their group."""
    kept: dict[str, Any] = {}
    for key, value in tree.items():
        if key in names:
            continue
        inner = frozenset(name.removeprefix(f"{key}.") for name in names if name.startswith(f"{key}."))
        kept[key] = without(value, inner) if isinstance(value, Mapping) else value
    return kept


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by their dotted names; an empty group has none."""
    settings: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            settings.update(flat(value, f"{prefix}{key}."))
        else:
            settings[f"{prefix}{key}"] = value
    return settings


def _dotted(target: Any) -> str:
    return target if isinstance(target, str) else f"{target.__module__}.{target.__qualname__}"


def _known_from_the_start(config: Any) -> dict[str, Any]:
    """Return a dataclass as nested mappings, without what was added later and has its default."""
    if not dataclasses.is_dataclass(config):
        return dict(config)
    settings = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata.get(ADDED) and value == _default(field):
            continue
        settings[field.name] = _known_from_the_start(value) if dataclasses.is_dataclass(value) else value
    return settings


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
