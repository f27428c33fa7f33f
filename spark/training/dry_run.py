"""Estimate the cost of a pre-training run from a few steps; nothing is written."""

from __future__ import annotations

import statistics
from collections.abc import Collection
from datetime import timedelta
from typing import NamedTuple

import torch

from spark.config.pretrain import PretrainConfig
from spark.training.pretraining import Pretraining
from spark.training.rehearsal import IMAGES, peak_memory, step_cost, timed_step
from spark.training.sizing import sized
from spark.utils.distributed import Ranks, process_group
from spark.utils.printable import counted

TIMED = 3  # timed steps, after one warm-up step
PATIENCE = 5.0  # seconds that steps may take on a CPU


class _Step(NamedTuple):
    """Seconds and peak bytes (0: unknown) of a step, and how they were found."""

    seconds: float
    memory: float
    how: str


def dry_run(config: PretrainConfig, written: Collection[str] = ()) -> str:
    """Return a readable report of a run's steps, time, memory and GPU-hours; "" on all ranks but the main process.

    Args:
        config: configuration of the run.
        written: dotted keys of the settings given explicitly, which the preset does not change.

    Raises:
        UserError: as for the run itself.
    """
    with process_group(config.device) as ranks:
        config = sized(config, written, ranks)
        training = ranks.on_all(lambda: Pretraining(config, ranks))
        proof = training.prove()
        step = _extrapolated(config, training, ranks) or _timed(training, ranks)
        return _report(config, training, ranks, step, proof) if ranks.is_main else ""


def _timed(training: Pretraining, ranks: Ranks) -> _Step:
    """Time steps of the whole batch, or only one where a CPU takes long."""
    seconds = [timed_step(training, ranks.device)]
    slow = ranks.on_main(lambda: ranks.device.type == "cpu" and seconds[0] > PATIENCE)
    if not slow:
        seconds = [timed_step(training, ranks.device) for _ in range(TIMED)]
    how = "one step" if slow else f"median of {TIMED} steps"
    return _Step(statistics.median(seconds), peak_memory(ranks.device), how)


def _extrapolated(config: PretrainConfig, training: Pretraining, ranks: Ranks) -> _Step | None:
    """Judge a step by small batches where steps of the whole batch would take a CPU too long; else return None."""
    images = ranks.local_batch(config.train.batch)
    few = IMAGES["cpu"][-1]
    if ranks.device.type != "cpu" or images <= few:
        return None
    cost = ranks.on_main(lambda: step_cost(config, training.images, ranks.device, config.train.recompute))
    if cost.seconds * images * (1 + TIMED) <= PATIENCE:
        return None
    # The peak is the whole process's, so that images cost nothing visible where more was used before.
    memory = cost.fixed + cost.per_image * (images // config.accumulation_steps(images)) if cost.per_image else 0
    return _Step(cost.seconds * images, memory, f"judged by steps of up to {few} images")


def _report(config: PretrainConfig, training: Pretraining, ranks: Ranks, step: _Step, proof: str) -> str:
    gpu = ranks.device.type == "cuda"
    total = step.seconds * training.total_steps
    device = torch.cuda.get_device_name(ranks.device) if gpu else "CPU"
    checks = [f"check    {proof}"] if proof else []
    memory = f"{step.memory / 2**30:.2f} GiB in {'the GPU' if gpu else 'each process'} at most"
    return "\n".join([
        *training.warnings(), *training.schedule.notes(training.total_steps),
        f"method   {config.method}, {config.model.name}",
        *checks,
        f"steps    {training.total_steps} ({training.total_steps // config.train.epochs} in each of "
        f"{counted(config.train.epochs, 'epoch')}, {counted(config.train.batch, 'image')} in a step)",
        f"step     {step.seconds:.3f} s, {config.train.batch / step.seconds:.0f} images/s ({step.how}, with images "
        "from memory: loading has to keep up)",
        f"time     {timedelta(seconds=round(total))} on {ranks.size} x {device}",
        f"{'GPU-hours' if gpu else 'CPU-hours'} {total * ranks.size / 3600:.2f}",
        *([f"memory   {memory}"] if step.memory else []),
        "nothing was written",
    ])  # fmt: skip
