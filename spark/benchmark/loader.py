"""How many images a second the loader delivers: less than a training step takes, and the device waits for it."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from spark.config.pretrain import PretrainConfig
from spark.data.dataset import ImagePool, build_loader
from spark.data.samplers import EpochSampler
from spark.data.unreadable import UnreadableFiles
from spark.errors import UserError

BATCH = 64  # at most; a larger one would change the rate little, and the wait for the first a lot
PREFETCH = 2  # batches that a worker of a DataLoader works ahead
ENDLESS = 10**6  # epochs


class LoaderSpeed(NamedTuple):
    """What was measured, in the loader's steady state."""

    images: int
    seconds: float
    pool: int  # images there are
    loaded: int  # images since the start, so that it shows whether they were read more than once
    workers: int
    size: tuple[int, int]

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds

    def __str__(self) -> str:
        height, width = self.size
        workers = f"{self.workers} workers" if self.workers != 1 else "1 worker"
        lines = [
            f"{self.rate:,.0f} images/s of {height}x{width} pixels: {workers} (data.workers) on {os.cpu_count()} CPUs, "
            f"{self.rate / max(self.workers, 1):,.0f} images/s each",
            f"measured on {self.images:,} images in {self.seconds:.1f} s after a warm-up; the set has {self.pool:,}",
        ]
        if self.loaded > self.pool:
            lines.append("its images were read more than once, and may have come from memory: the disk can be slower")
        lines.append("the device waits if a step does more images/s than this: see `spark bench MODEL`")
        return "\n".join(lines)


def benchmark_loader(config: PretrainConfig, seconds: float) -> LoaderSpeed:
    """Time the loader of a pre-training without the training.

    Args:
        config: of the pre-training; only its images and workers matter.
        seconds: to measure for, beside the warm-up.

    Raises:
        UserError: the time is not positive; there are no images, or too many that cannot be read.
    """
    if seconds <= 0:
        raise UserError(f"--seconds {seconds} must be positive")
    data = config.data
    size = (data.input_size[0], data.input_size[1])
    pool = ImagePool(data.root, size, data.min_scale, config.seed, config.model.in_chans)
    batch = min(BATCH, config.train.batch, len(pool))
    loader = build_loader(pool, EpochSampler(len(pool), batch, ENDLESS, config.seed), batch, data.workers, pin=False)
    unreadable, batches = UnreadableFiles(pool), iter(loader)

    def load() -> int:
        sample = next(batches)
        unreadable.note(sample.unreadable)
        return len(sample.image)

    # What the workers have made ready while nobody waited for it is not the rate at which they go on.
    loaded = sum(load() for _ in range(1 + PREFETCH * data.workers))
    warm_up, begin, elapsed = loaded, time.perf_counter(), 0.0
    while elapsed < seconds:
        loaded += load()
        elapsed = time.perf_counter() - begin
    return LoaderSpeed(loaded - warm_up, elapsed, len(pool), loaded, data.workers, size)
