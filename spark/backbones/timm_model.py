"""timm's models, built strictly: what timm refuses, and what a setting elsewhere decides, is one line."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import timm

import spark.backbones.plane.um_pvt
import spark.backbones.plane.um_swin  # noqa: F401  # the two are timm's, too, from here on
from spark.backbones.names import unknown_model
from spark.backbones.options import require_own_options
from spark.errors import UserError

OPTIONS_ELSEWHERE = {"in_chans": "model.in_chans", "drop_path_rate": "model.drop_path"}
OWN = ("um_swin_*", "um_pvt_*")  # names that this package adds to timm's
REFUSALS = (AssertionError, IndexError, KeyError, RuntimeError, TypeError, ValueError)  # timm's, of odd options


def timm_names() -> list[str]:
    """Return the names of the models that timm itself has."""
    return timm.list_models(exclude_filters=list(OWN))


def create_timm(
    name: str,
    *,
    classes: int = 0,
    in_chans: int = 3,
    drop_path: float = 0.0,
    options: Mapping[str, Any] | None = None,
    drop_path_key: str = "model.drop_path",
) -> Any:
    """Build a timm model with random weights.

    Args:
        name: timm's.
        classes: of its classifier; 0: without one.
        in_chans: channels of the images.
        drop_path: probability of the last block.
        options: more arguments of `timm.create_model`.
        drop_path_key: where a recipe sets the drop path, for the message.

    Raises:
        UserError: there is no such model, it has no drop path and some is asked for, or timm cannot build it.
    """
    options = options or {}
    require_own_options(options)
    if not timm.is_model(name):
        raise unknown_model(name)
    for option in OPTIONS_ELSEWHERE.keys() & options.keys():
        raise UserError(f"model.options must not have '{option}'; set {OPTIONS_ELSEWHERE[option]}")
    build = partial(timm.create_model, name, num_classes=classes, in_chans=in_chans, **options)
    try:
        return build(drop_path_rate=drop_path)  # zero too: some models' own default is not
    except REFUSALS as error:
        if not isinstance(error, TypeError) or "drop_path_rate" not in str(error):
            raise cannot_build(name, options, error) from error
    if drop_path:
        raise UserError(f"model '{name}' has no drop path; set {drop_path_key}=0")
    try:
        return build()
    except REFUSALS as error:
        raise cannot_build(name, options, error) from error


def cannot_build(name: str, options: Mapping[str, Any], error: Exception) -> UserError:
    """Return what to tell of an option, or a pretrained tag, that timm does not take."""
    chosen = f" with model.options={dict(options)}" if options else ""
    return UserError(f"timm cannot build '{name}'{chosen}: {str(error) or 'it refuses a value'}")
