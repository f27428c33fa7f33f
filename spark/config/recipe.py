"""Typed configuration: dataclasses are the one source of names, defaults and documentation.

A recipe is a YAML file that differs from the defaults; dotted overrides come on top:
`load_recipe(PretrainConfig, "configs/pretrain/resnet50.yaml", ["optimizer.base_lr=4e-4"])`.
`base: other.yaml` (relative to the recipe) makes it a diff of that recipe instead.
Unknown keys fail with the nearest known one, and all mistakes are listed at once.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spark.config.overrides import split_overrides
from spark.errors import UserError, nearest
from spark.utils.files import write_text

Config = TypeVar("Config")
BASE = "base"  # a recipe's key that names the recipe it differs from


def load_recipe(schema: type[Config], recipe: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe and overrides into an instance of the dataclass `schema`.

    If the schema has a method `problems() -> list[str]`, it is asked for what is wrong with the values.

    Raises:
        UserError: one message that lists every unknown key, wrong type and unsound value.
    """
    known = sorted(_dotted_names(schema))
    layers = _layers(known, recipe, overrides)
    problems = []
    config = OmegaConf.structured(schema)
    for layer in layers:
        for key, value in layer.items():
            if key not in known:
                problems.append(f"unknown key '{key}'.{nearest(key, known)}")
                continue
            try:
                OmegaConf.update(config, key, value, merge=False)
            except OmegaConfBaseException as error:
                problems.append(f"{key}={value!r}: {_explained(error, value)}")
    loaded: Any = None
    if not problems:
        missing = [f"'{key}' is required: pass {key}=…" for key in sorted(OmegaConf.missing_keys(config))]
        problems.extend(missing)
        if not missing:
            loaded = OmegaConf.to_object(config)
            problems.extend(loaded.problems() if hasattr(loaded, "problems") else [])
    if problems:
        where = f"{recipe}: " if recipe is not None else ""
        raise UserError(where + "; ".join(problems))
    return loaded


def written_with(key: str, schema: type, recipe: str | Path | None, overrides: Sequence[str] = ()) -> frozenset[str]:
    """Return the dotted keys that stand beside `key` or above it; none if nothing sets it.

    Of the layers (bases, recipe, overrides) the topmost that sets `key` counts, and those over it: what stands below
    was written by somebody who did not know of it.

    Raises:
        UserError: as for `load_recipe`.
    """
    layers = _layers(sorted(_dotted_names(schema)), recipe, overrides)
    topmost = max((number for number, layer in enumerate(layers) if key in layer), default=len(layers))
    return frozenset().union(*layers[topmost:])


def value_in(key: str, recipe: str | Path | None, overrides: Sequence[str], default: Any) -> Any:
    """Return what a recipe and overrides set a top-level key to, before it is known which schema they follow.

    Raises:
        UserError: the recipe cannot be read.
    """
    layers = _layers([key], recipe, overrides)
    return next((layer[key] for layer in reversed(layers) if layer.get(key) is not None), default)


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Return a copy of a dataclass with other values at some dotted keys."""
    changed = OmegaConf.structured(config)
    for key, value in values.items():
        OmegaConf.update(changed, key, value, merge=False)
    return typing.cast(Config, OmegaConf.to_object(changed))


def value_at(config: Any, key: str) -> Any:
    """Return the value of a dataclass at a dotted key; None if there is no such setting."""
    return reduce(lambda node, name: getattr(node, name, None), key.split("."), config)


def to_yaml(config: Any) -> str:
    """Return the resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def save_resolved(config: Any, destination: Path) -> None:
    """Write the resolved configuration beside a run's results."""
    write_text(destination, to_yaml(config))


def _layers(known: Sequence[str], recipe: str | Path | None, overrides: Sequence[str]) -> list[dict[str, Any]]:
    """Return bases, recipe and overrides as {dotted key: value}, the most basic one first."""
    recipes = [] if recipe is None else _read_with_bases(Path(recipe))
    return [*(_flatten(content, known) for content in recipes), _parse_overrides(overrides)]


def _read_with_bases(path: Path, above: tuple[Path, ...] = ()) -> list[dict[str, Any]]:
    """Read a recipe and those it is based on, the most basic one first.

    Raises:
        UserError: one is missing, or is no recipe; or they go round in a circle.
    """
    if path.resolve() in above:
        raise UserError(f"recipe '{path}' is based on itself; remove its key '{BASE}'")
    content = _read_yaml(path)
    base = content.pop(BASE, None)
    if base is None:
        return [content]
    if not isinstance(base, str):
        raise UserError(f"recipe '{path}': {BASE}={base!r} must be the path of a recipe")
    return [*_read_with_bases(path.parent / base, (*above, path.resolve())), content]


def _explained(error: OmegaConfBaseException, value: Any) -> str:
    """Return what is wrong in words of recipes rather than of OmegaConf's classes."""
    if "is not a ListConfig" in str(error):
        return f"one value where a list is needed, such as [{value},{value}]"
    return str(error).splitlines()[0]


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        siblings = [str(p) for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise UserError(f"recipe '{path}' does not exist.{nearest(str(path), siblings)}")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"recipe '{path}' is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"recipe '{path}' must be a mapping of keys to values")
    return typing.cast(dict[str, Any], content)


def _parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Turn ['a.b=1', 'c=[2,3]'] into {'a.b': 1, 'c': [2, 3]}; values are read as YAML."""
    parsed: dict[str, Any] = {}
    for key, value in split_overrides(overrides):
        try:
            content = OmegaConf.create({"value": yaml.safe_load(value)})["value"] if value else None
            # OmegaConf's YAML reader knows that 4e-4 is a number; PyYAML's does not.
            if isinstance(content, str):
                content = OmegaConf.from_dotlist([f"value={value}"])["value"]
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise UserError(f"'{key}={value}': {' '.join(str(error).split())}") from None
        if isinstance(content, DictConfig | ListConfig):
            content = OmegaConf.to_container(content)
        parsed[key] = content
    return parsed


def _flatten(tree: dict[str, Any], known: Sequence[str], prefix: str = "") -> dict[str, Any]:
    """Turn nested keys into dotted ones, down to the names that the schema knows as values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in known:
            flat.update(_flatten(value, known, f"{name}."))
        else:
            flat[name] = value
    return flat


def _dotted_names(schema: type, prefix: str = "") -> Iterator[str]:
    types = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        if dataclasses.is_dataclass(types[field.name]):
            yield from _dotted_names(types[field.name], f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"
