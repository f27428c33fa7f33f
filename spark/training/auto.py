"""Resolved values of `auto` settings: they are stored in checkpoints and records, and reused on resume."""

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
RESOLVED = "resolved"  # checkpoint key


def resolved_before(config: Any, ranks: Ranks) -> dict[str, str]:
    """Return the resolved `auto` values of the run to resume; {} for a new run or one started by an older version.

    Args:
        config: configuration of the run, with `out` and `resume`.
        ranks: the processes; must be called on all ranks.
    """
    if config.resume == "never":
        return {}
    found = ranks.on_main(lambda: peek(Path(config.out) / CHECKPOINTS, RESOLVED))
    # What is none of ours is told of, or passed over, when the whole checkpoint is read.
    sound = isinstance(found, dict) and all(isinstance(text, str) for pair in found.items() for text in pair)
    return dict(found) if sound else {}


def goes_on(config: Any, ranks: Ranks) -> bool:
    """Whether there is a checkpoint to go on from; must be called on all ranks."""
    return config.resume != "never" and bool(
        ranks.on_main(lambda: peek(Path(config.out) / CHECKPOINTS, "step") is not None))


def kept(config: Config, before: Mapping[str, str]) -> Config:
    """Return a configuration with what its `auto`s came to before, by dotted key."""
    return with_values(config, {key: value for key, value in before.items() if value_at(config, key) == AUTO})


def resolved_precision(config: Any, key: str, device: torch.device, before: Mapping[str, str]) -> str:
    """Return the precision of a setting: its explicit value, the one resolved before, or the default of the device.

    Args:
        config: configuration of the run.
        key: the setting's dotted key.
        device: compute device.
        before: see `resolved_before`.
    """
    return choose_precision(value_at(kept(config, before), key), device)
