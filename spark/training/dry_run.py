"""Estimate the cost of a pre-training run from a few steps; nothing is written."""

from __future__ import annotations

import statistics
from collections.abc import Collection
from datetime import timedelta

import torch

from spark.config.pretrain import PretrainConfig
from spark.training.pretraining import Pretraining
from spark.training.rehearsal import peak_memory, timed_step
from spark.training.sizing import sized
from spark.utils.distributed import Ranks, process_group

TIMED = 3  # timed steps, after one warm-up step


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
        seconds = [timed_step(training, ranks.device) for _ in range(1 + TIMED)][1:]
        return _report(config, training, ranks, statistics.median(seconds)) if ranks.is_main else ""


def _report(config: PretrainConfig, training: Pretraining, ranks: Ranks, seconds: float) -> str:
    gpu = ranks.device.type == "cuda"
    total = seconds * training.total_steps
    used = peak_memory(ranks.device)
    device = torch.cuda.get_device_name(ranks.device) if gpu else "CPU"
    return "\n".join([
        f"method   {config.method}, {config.model.name}",
        f"steps    {training.total_steps} ({training.total_steps // config.train.epochs} in each of "
        f"{config.train.epochs} epochs, {config.train.batch} images in a step)",
        f"step     {seconds:.3f} s, {config.train.batch / seconds:.0f} images/s (median of {TIMED} steps with images "
        "from memory: loading has to keep up)",
        f"time     {timedelta(seconds=round(total))} on {ranks.size} x {device}",
        f"{'GPU-hours' if gpu else 'CPU-hours'} {total * ranks.size / 3600:.2f}",
        f"memory   {used / 2**30:.2f} GiB in {'the GPU' if gpu else 'each process'} at most",
        "nothing was written",
    ])  # fmt: skip
