"""What `auto` came to: it is kept in checkpoints and records, and holds when a run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from spark.config.pretrain import AUTO
from spark.config.recipe import value_at, with_values
from spark.runs.checkpoint import peek
from spark.runs.folder import CHECKPOINTS
from spark.utils.device import choose_precision
from spark.utils.distributed import Ranks

Config = TypeVar("Config")
RESOLVED = "resolved"  # a key of checkpoints


def resolved_before(config: Any, ranks: Ranks) -> dict[str, str]:
    """Return what `auto` came to when a run began that goes on now; {} if it begins, or an older version began it.

    Args:
        config: of the run; it has `out` and `resume`.
        ranks: the processes; all of them must ask.
    """
    if config.resume == "never":
        return {}
    return dict(ranks.on_main(lambda: peek(Path(config.out) / CHECKPOINTS, RESOLVED)) or {})


def kept(config: Config, before: Mapping[str, str]) -> Config:
    """Return a configuration with what its `auto`s came to before, by dotted key."""
    return with_values(config, {key: value for key, value in before.items() if value_at(config, key) == AUTO})


def resolved_precision(config: Any, key: str, device: torch.device, before: Mapping[str, str]) -> str:
    """Return the precision that a setting asks for: itself, what it came to before, or what suits the device.

    Args:
        config: of the run.
        key: the setting's dotted key.
        device: that is computed on.
        before: see `resolved_before`.
    """
    return choose_precision(value_at(kept(config, before), key), device)
