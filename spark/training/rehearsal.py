"""Measure the cost of a pre-training step on noise images; nothing is written."""

from __future__ import annotations

import dataclasses
import gc
import resource
import time

import torch

from spark.config.pretrain import PretrainConfig
from spark.data.dataset import ImagePool
from spark.errors import UserError
from spark.training.preset import Cost
from spark.training.pretraining import Pretraining
from spark.utils.distributed import Ranks

QUICK = 2.0  # seconds; where the smaller batch takes longer, the larger one is left out
IMAGES = {"cuda": (8, 64), "cpu": (2, 8)}  # two batch sizes separate the fixed cost from the cost per image


def timed_step(training: Pretraining, device: torch.device) -> float:
    """Run a step and return its duration in seconds."""
    started = time.perf_counter()
    training.rehearse()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of the GPU, or else of this process since it started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def step_cost(config: PretrainConfig, pool: ImagePool, device: torch.device, recompute: bool) -> Cost:
    """Measure steps of two small batches, in this process only.

    On a CPU the memory is the peak of the whole process, so a later, smaller measurement does not show up.

    Raises:
        UserError: the model cannot be built, or not even the smaller batch fits.
    """
    small, large = (min(count, len(pool)) for count in IMAGES[device.type])
    too_many = UserError(f"{small} images do not fit the device: set train.device_batch and train.recompute=true")
    try:
        below, seconds = _measure(config, pool, device, recompute, small)
    except torch.cuda.OutOfMemoryError:
        raise too_many from None
    if large == small or seconds > QUICK:  # nothing to separate the fixed cost from the cost per image with
        return Cost(0, below / small, seconds / small)
    while large > small:
        try:
            above, seconds = _measure(config, pool, device, recompute, large)
        except torch.cuda.OutOfMemoryError:
            large //= 2
            continue
        per_image = max(above - below, 0) / (large - small)
        return Cost(max(below - small * per_image, 0), per_image, seconds / large)
    raise too_many


def _measure(
    config: PretrainConfig, pool: ImagePool, device: torch.device, recompute: bool, images: int
) -> tuple[int, float]:
    """Return the peak memory and the seconds of a step of a given number of images."""
    train = dataclasses.replace(
        config.train, batch=images, device_batch=None, accumulate="auto", epochs=1, recompute=recompute, compile=False
    )
    probe = dataclasses.replace(config.probe, train=None, val=None)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    training = Pretraining(dataclasses.replace(config, train=train, probe=probe), Ranks(device), pool)
    try:
        seconds = [timed_step(training, device) for _ in range(2)][-1]  # the first is a warm-up
        return peak_memory(device), seconds
    finally:
        del training
        gc.collect()
