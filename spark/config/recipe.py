"""Typed configuration: dataclasses are the one source of names, defaults and documentation.

A recipe is a YAML file that differs from the defaults; dotted overrides come on top:
`load_recipe(PretrainConfig, "configs/pretrain/resnet50.yaml", ["optimizer.base_lr=4e-4"])`.
`base: other.yaml` (relative to the recipe) makes it a diff of that recipe instead.
Unknown keys fail with the nearest known one, and all mistakes are listed at once.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import typing
from collections.abc import Collection, Mapping, Sequence
from functools import cache, reduce
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spark.config.overrides import split_overrides
from spark.config.values import is_optional, shown, text_is_wanted, type_hints, wrong_values
from spark.config.yaml_text import parse_yaml, read_yaml, require_values
from spark.errors import UserError, nearest
from spark.utils.files import write_text

Config = TypeVar("Config")
BASE = "base"  # a recipe's key that names the recipe it differs from
NULLS = ("", "null", "Null", "NULL", "~")
MOST_OF_A_KEY = 200  # characters that are compared with the known ones


def load_recipe(schema: type[Config], recipe: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe and overrides into an instance of the dataclass `schema`.

    If the schema has a method `problems() -> list[str]`, it is asked for what is wrong with the values.

    Raises:
        UserError: one message that lists every unknown key, wrong type and unsound value.
    """
    declared = declarations(schema)
    problems = []
    config = copy.deepcopy(_defaults(typing.cast(type, schema)))
    for layer in _layers(declared, recipe, overrides):
        for key, value in layer.items():
            if key not in declared:
                problems.append(_unknown(key, sorted(declared)))
                continue
            try:
                OmegaConf.update(config, key, value, merge=False)
            except (OmegaConfBaseException, ArithmeticError, ValueError) as error:  # the latter two of huge numbers
                problems.append(f"{key}={shown(value)}: {_explained(error, value)}")
    loaded: Any = None
    if not problems:
        loaded, problems = _finished(config)
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
    layers = _layers(declarations(schema), recipe, overrides)
    topmost = max((number for number, layer in enumerate(layers) if key in layer), default=len(layers))
    return frozenset().union(*layers[topmost:])


def value_in(key: str, recipe: str | Path | None, overrides: Sequence[str], default: Any) -> Any:
    """Return what a recipe and overrides set a top-level key to, before it is known which schema they follow.

    Raises:
        UserError: the recipe cannot be read.
    """
    of_the_key = [override for override in overrides if override.partition("=")[0].strip() == key]
    layers = _layers({key: str}, recipe, of_the_key)  # how others are read, their declarations say
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


def declarations(schema: type, prefix: str = "") -> dict[str, Any]:
    """Return the declared type of each setting, by dotted name."""
    declared: dict[str, Any] = {}
    hints = type_hints(schema)
    for field in dataclasses.fields(schema):
        hint, name = hints[field.name], f"{prefix}{field.name}"
        inner = dataclasses.is_dataclass(hint)
        declared |= declarations(typing.cast(type, hint), f"{name}.") if inner else {name: hint}
    return declared


def read_text(text: str, declaration: Any = Any) -> Any:
    """Return the value that a word of the command line stands for.

    Where text is wanted, it is taken as it stands, though it look like a date, a number or a list, but for quotes
    around it and, where there may be none, for `null`; elsewhere it is read as YAML.

    Raises:
        ValueError: it is no YAML.
    """
    if text_is_wanted(declaration) and text[:1] not in ("'", '"'):
        return None if is_optional(declaration) and text in NULLS else text.strip()
    content = parse_yaml(text) if text else None
    require_values(content)
    return content


@cache
def _defaults(schema: type) -> DictConfig:
    """Return a schema's defaults, to be copied: a study reads hundreds of recipes, and a copy takes a fifth as long."""
    defaults: DictConfig = OmegaConf.structured(schema)
    return defaults


def _finished(config: DictConfig) -> tuple[Any, list[str]]:
    """Return a configuration as an instance of its dataclass, and what is wrong with its values.

    One mistake is told once: what values have to do with one that is out of its limits is left out.
    """
    try:
        if missing := sorted(OmegaConf.missing_keys(config)):
            return None, [f"'{key}' is required: pass {key}=…" for key in missing]
        loaded: Any = OmegaConf.to_object(config)
    except RecursionError:
        return None, ["its interpolations ${…} go round in a circle"]
    except (OmegaConfBaseException, ArithmeticError, ValueError) as error:
        return None, [str(error).splitlines()[0]]
    wrong = list(wrong_values(loaded))
    names = [line.partition("=")[0] for line in wrong]
    problems: list[str] = loaded.problems() if hasattr(loaded, "problems") else []
    return loaded, wrong + [line for line in problems if not any(f"{name}=" in line for name in names)]


def _unknown(key: str, known: Sequence[str]) -> str:
    """Say that a key is unknown; or that it is a group, which has no value of its own."""
    inside = [name for name in known if name.startswith(f"{key}.")]
    if inside:
        return f"'{key}' is a group of settings, such as {inside[0]}, and has no value of its own"
    return f"unknown key '{shown(key)}'.{nearest(key[:MOST_OF_A_KEY], known)}"


def _layers(declared: Mapping[str, Any], recipe: str | Path | None, overrides: Sequence[str]) -> list[dict[str, Any]]:
    """Return bases, recipe and overrides as {dotted key: value}, the most basic one first."""
    recipes = [] if recipe is None else _read_with_bases(Path(recipe))
    return [*(_flatten(content, declared) for content in recipes), _parse_overrides(overrides, declared)]


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


def _explained(error: Exception, value: Any) -> str:
    """Return what is wrong in words of recipes rather than of OmegaConf's classes."""
    if "is not a ListConfig" in str(error):
        return f"one value where a list is needed, such as [{value},{value}]"
    return str(error).splitlines()[0]


def _read_yaml(path: Path) -> dict[str, Any]:
    if not os.path.lexists(path):
        siblings = [str(p) for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise UserError(f"recipe '{path}' does not exist.{nearest(str(path), siblings)}")
    content = read_yaml(path)
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UserError(f"recipe '{path}' must be a mapping of keys to values")
    try:
        require_values(content)
    except ValueError as error:
        raise UserError(f"recipe '{path}': {error}") from None
    return typing.cast(dict[str, Any], content)


def _parse_overrides(overrides: Sequence[str], declared: Mapping[str, Any]) -> dict[str, Any]:
    """Turn ['a.b=1', 'c=[2,3]'] into {'a.b': 1, 'c': [2, 3]}."""
    parsed: dict[str, Any] = {}
    for key, text in split_overrides(overrides):
        try:
            parsed[key] = read_text(text, declared.get(key, Any))
        except ValueError as error:
            raise UserError(f"'{shown(f'{key}={text}')}': {error}") from None
    return parsed


def _flatten(tree: dict[str, Any], known: Collection[str], prefix: str = "") -> dict[str, Any]:
    """Turn nested keys into dotted ones, down to the names that the schema knows as values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in known:
            flat.update(_flatten(value, known, f"{name}."))
        else:
            flat[name] = value
    return flat
