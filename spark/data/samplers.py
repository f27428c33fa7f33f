"""Which image comes when: a function of the seed and the step, shared among processes."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import NamedTuple, TypeVar

import torch
from torch.utils.data import Sampler

from spark.errors import UserError
from spark.utils.distributed import Ranks

AUGMENT, SHUFFLE, STEP = range(3)  # keep the seeds of different purposes apart
Drawn = TypeVar("Drawn")


class Draw(NamedTuple):
    """Which image, in which epoch: all that the augmentation's randomness depends on, beside the seed."""

    epoch: int
    image: int  # index into the source


class EpochSampler(Sampler[Draw]):
    """Shuffles each epoch by (seed, epoch) and hands out whole batches from `first_step` to the end of training.

    One long iteration over all remaining epochs keeps workers busy across their borders. The last images of
    an epoch that do not fill a batch are left out, as the order changes every epoch.
    """

    def __init__(self, images: int, batch: int, epochs: int, seed: int, first_step: int = 0) -> None:
        if batch > images:
            raise UserError(f"train.batch={batch} is more than the {images} images there are; make it smaller")
        self.steps_per_epoch = images // batch
        self._images, self._batch, self._epochs, self._seed = images, batch, epochs, seed
        self._first_step = first_step

    def __len__(self) -> int:
        return (self._epochs * self.steps_per_epoch - self._first_step) * self._batch

    def __iter__(self) -> Iterator[Draw]:
        start_epoch, start_step = divmod(self._first_step, self.steps_per_epoch)
        for epoch in range(start_epoch, self._epochs):
            generator = torch.Generator().manual_seed(mixed_seed(self._seed, SHUFFLE, epoch))
            order = torch.randperm(self._images, generator=generator)[: self.steps_per_epoch * self._batch]
            skipped = start_step * self._batch if epoch == start_epoch else 0
            yield from (Draw(epoch, index) for index in order[skipped:].tolist())


class ShareSampler(Sampler[Drawn]):
    """Of the images of each batch, those of one process: a slice, as `Ranks.slice` takes it of the mask."""

    def __init__(self, batches: Sampler[Drawn], batch: int, ranks: Ranks) -> None:
        self._batches, self._batch, self._ranks = batches, batch, ranks

    def __len__(self) -> int:
        assert isinstance(self._batches, Sized)
        return len(self._batches) // self._ranks.size

    def __iter__(self) -> Iterator[Drawn]:
        share = self._batch // self._ranks.size
        for position, draw in enumerate(self._batches):
            if position % self._batch // share == self._ranks.rank:
                yield draw


def mixed_seed(*parts: int) -> int:
    """Mix integers into one 63-bit seed."""
    mixed = 0x9E3779B97F4A7C15
    for part in parts:
        mixed = ((mixed ^ (part + 1)) * 0xBF58476D1CE4E5B9) % 2**64
        mixed ^= mixed >> 31
    return mixed >> 1
