"""What a backbone costs, counted: the horizontal axes of scaling plots."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from spark.errors import UserError

USUAL_SIZE = 224  # pixels, where a task has no size of its own


class BackboneCost(NamedTuple):
    """Of a backbone without classifier. A multiplication and an addition are two FLOPs."""

    parameters: int
    flops: int  # of a forward pass over one image


def backbone_cost(
    model: str, size: int = USUAL_SIZE, options: Mapping[str, Any] | None = None
) -> BackboneCost | None:
    """Count parameters and FLOPs for images of size x size pixels; None if there is no such network (any more)."""
    return _counted(model, size, json.dumps(dict(options or {}), sort_keys=True))


@lru_cache(maxsize=64)
def _counted(model: str, size: int, options: str) -> BackboneCost | None:
    import torch  # takes seconds, and most reports do without

    from spark.backbones.timm_pyramid import build_pyramid, dense_part
    from spark.utils.flops import flop_counter

    with torch.device("meta"):  # shapes are all that is needed
        try:
            pyramid: Any = build_pyramid(model, options=json.loads(options))
            channels = pyramid.example().shape[1]
            with flop_counter() as counter, torch.no_grad():
                pyramid.eval()(torch.empty(1, channels, size, size))
        except (UserError, RuntimeError, TypeError, ValueError):  # records may tell of networks that cannot be
            return None
    parameters = sum(parameter.numel() for parameter in dense_part(pyramid).parameters())
    return BackboneCost(parameters, counter.get_total_flops())
