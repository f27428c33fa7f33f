"""Collect the facts for `train.preset=auto` and choose a run's settings; a resumed run keeps its numbers."""

from __future__ import annotations

import os
from collections.abc import Collection
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from spark.config.pretrain import AUTO, PretrainConfig
from spark.config.recipe import with_values
from spark.config.yaml_text import read_yaml
from spark.data.dataset import ImagePool
from spark.runs.folder import CHECKPOINTS, CONFIG
from spark.runs.record import value_below
from spark.training.preset import PATIENCE, Choice, Cost, Facts, choose, shown
from spark.training.rehearsal import step_cost
from spark.utils.distributed import Ranks

SIZED = (
    "train.batch", "train.recompute", "train.device_batch", "optimizer.name", "optimizer.base_lr", "train.epochs",
    "train.warmup_epochs", "train.picture_epochs", "train.checkpoint_epochs", "data.workers",
)  # fmt: skip


def sized(config: PretrainConfig, written: Collection[str], ranks: Ranks) -> PretrainConfig:
    """Return the configuration with its preset's numbers, which are also logged; unchanged without a preset.

    Args:
        config: configuration of the run.
        written: dotted keys of the settings given explicitly, which are kept.
        ranks: the processes; must be called on all ranks.

    Raises:
        UserError: images or model cannot be loaded.
    """
    if config.train.preset != AUTO:
        return config
    values = ranks.on_main(lambda: _stored(config, written))
    if values is None:
        values = ranks.on_main(lambda: _chosen(config, written, ranks))
    else:
        ranks.log(f"train.preset=auto: the run in {config.out} keeps the numbers that it began with")
    return with_values(config, values)


def _stored(config: PretrainConfig, written: Collection[str]) -> dict[str, Any] | None:
    """Return the numbers of the run to resume, if it was started with the preset; else None."""
    run = Path(config.out)
    if config.resume == "never" or not (run / CHECKPOINTS).is_dir() or not (run / CONFIG).is_file():
        return None
    before = read_yaml(run / CONFIG, "configuration")
    if value_below(before, "train", "preset") != AUTO:
        return None
    stored = {key: value_below(before, *key.split(".")) for key in SIZED}
    return {key: value for key, value in stored.items() if key not in written}


def _chosen(config: PretrainConfig, written: Collection[str], ranks: Ranks) -> dict[str, Any]:
    """Measure the cost, choose the numbers, and log them."""
    pool = ImagePool(
        config.data.root, (config.data.input_size[0], config.data.input_size[1]), config.data.min_scale, config.seed,
        config.model.in_chans,
    )  # fmt: skip
    facts = _facts(len(pool), ranks)
    measured: list[Cost] = []

    def measure(recompute: bool) -> Cost:
        measured.append(step_cost(config, pool, ranks.device, recompute))
        return measured[-1]

    choices = choose(config, written, facts, measure)
    values = {choice.key: choice.value for choice in choices}
    ranks.log(table(choices))
    ranks.log(_outlook(facts, values["train.epochs"], measured[-1].seconds))
    return {key: value for key, value in values.items() if key not in written}


def table(choices: Collection[Choice]) -> str:
    """Format one line per number, with its reason."""
    rows = [(f"{choice.key}={shown(choice.value)}", choice.reason) for choice in choices]
    width = max(len(setting) for setting, _ in rows)
    return "\n".join(["train.preset=auto", *(f"  {setting:<{width}}  {reason}" for setting, reason in rows)])


def _outlook(facts: Facts, epochs: int, seconds: float) -> str:
    """Estimate the duration, and suggest settings for a quick first result."""
    epoch = seconds * facts.images / facts.processes
    minutes = max(round(epochs * epoch / 60), 1)
    line = f"  about {timedelta(minutes=minutes)} h on this device, judged by a few steps of small batches"
    first_look = int(PATIENCE / epoch)
    if 0 < first_look < epochs:
        line += f"; train.epochs={first_look} would take {PATIENCE / 60:.0f} minutes, for a first look"
    return line


def _facts(images: int, ranks: Ranks) -> Facts:
    gpu = ranks.device.type == "cuda"
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes of this machine share its cores and memory
    memory = torch.cuda.mem_get_info(ranks.device)[0] if gpu else _free_memory() // here
    return Facts(images, ranks.size, gpu, max(len(os.sched_getaffinity(0)) // here, 1), memory)


def _free_memory() -> int:
    """Return the bytes of memory available on this machine."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
