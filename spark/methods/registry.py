"""The pre-training methods by name, and recipes read as the method that they name says.

Nothing here imports torch before a model is asked for: a mistake in a recipe is told at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf.errors import OmegaConfBaseException

from spark.config.choices import DEFAULT_METHOD
from spark.config.pretrain import PretrainConfig
from spark.config.recipe import load_recipe, value_in, with_values, written_with
from spark.config.values import shown
from spark.errors import UserError, nearest

if TYPE_CHECKING:
    from spark.methods.base import Method
    from spark.methods.variant import Variant


class Entry(NamedTuple):
    """Where a method's parts are, as `module:name`.

    Attributes:
        config: the dataclass of its settings.
        model: the class derived from `Method`.
        variants: what returns the ways to compute its step that benchmarks compare; "": there is one way.
    """

    config: str
    model: str
    variants: str = ""


METHODS: Mapping[str, Entry] = MappingProxyType({
    "spark": Entry("spark.methods.spark.config:SparKConfig", "spark.methods.spark.model:SparK",
                   "spark.methods.spark.original:variants"),
    "fcmae": Entry("spark.methods.fcmae.config:FCMAEConfig", "spark.methods.fcmae.model:FCMAE",
                   "spark.methods.fcmae.variants:variants"),
    "um_mae": Entry("spark.methods.um_mae.config:UMMAEConfig", "spark.methods.um_mae.model:UMMAE",
                    "spark.methods.um_mae.variants:variants"),
    "mae": Entry("spark.methods.mae.config:MAEConfig", "spark.methods.mae.model:MAE"),
    "simmim": Entry("spark.methods.simmim.config:SimMIMConfig", "spark.methods.simmim.model:SimMIM"),
})


def config_class(method: str) -> type[PretrainConfig]:
    """Return the dataclass of a method's settings.

    Raises:
        UserError: there is no such method.
    """
    return _load(_entry(method).config)


def method_class(method: str) -> type[Method]:
    """Return a method's model.

    Raises:
        UserError: there is no such method.
    """
    return _load(_entry(method).model)


def variants(method: str, precision: str, compile: bool) -> list[Variant]:
    """Return the ways to compute a method's training step, for benchmarks to compare, the baseline first.

    Raises:
        UserError: there is no such method.
    """
    entry = _entry(method)
    if not entry.variants:
        from spark.methods.variant import Variant  # it imports torch

        return [Variant("step", method_class(method).from_config, precision=precision, compile=compile)]
    return _load(entry.variants)(precision, compile)


def build_method(config: PretrainConfig) -> Method:
    """Build the model of a run.

    Raises:
        UserError: the network or a setting is unsound.
    """
    return method_class(config.method).from_config(config)


def read_recipe(recipe: str | Path | None, overrides: Sequence[str] = ()) -> PretrainConfig:
    """Read a pre-training's recipe; its key `method` selects the settings that there are.

    Raises:
        UserError: one message that lists every unknown key, wrong type and unsound value.
    """
    return load_recipe(_schema(recipe, overrides), recipe, overrides)


def default_config(method: str, model: str, values: Mapping[str, Any]) -> PretrainConfig:
    """Return a method's default settings for a network without drop path, for work that is no run.

    Args:
        method: its name.
        model: the network's.
        values: other settings, by dotted key.

    Raises:
        UserError: there is no such method, or it has not all of these settings.
    """
    places = {"out": "unset", "data.root": "unset"}
    chosen = {**places, "method": method, "model.name": model, "model.drop_path": 0.0, **values}
    try:
        return with_values(config_class(method)(), chosen)
    except OmegaConfBaseException as error:
        raise UserError(f"method {method}: {str(error).splitlines()[0]}") from None


def written_beside_preset(recipe: str | Path | None, overrides: Sequence[str] = ()) -> frozenset[str]:
    """Return the dotted keys that `train.preset=auto` leaves as they are.

    Raises:
        UserError: as for `read_recipe`.
    """
    return written_with("train.preset", _schema(recipe, overrides), recipe, overrides)


def _schema(recipe: str | Path | None, overrides: Sequence[str]) -> type[PretrainConfig]:
    return config_class(str(value_in("method", recipe, overrides, DEFAULT_METHOD)))


def _entry(method: str) -> Entry:
    if method not in METHODS:
        raise UserError(f"method={shown(method)} is not one of {', '.join(METHODS)}.{nearest(method, METHODS)}")
    return METHODS[method]


def _load(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
