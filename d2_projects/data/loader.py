"""Training images that depend on the seed and the iteration alone: a resumed run sees what it would have seen.

Detectron2's loader is kept; its sampler, which always begins at the beginning, is replaced by one that can begin
anywhere, and what the augmentations of an image draw follows from the image's place in the training.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetFromList
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from omegaconf import DictConfig
from torch.utils.data import Dataset, Sampler

from spark.data.samplers import mixed_seed
from spark.utils.workers import keep_workers

Record = dict[str, Any]  # an image in Detectron2's dataset format


class Draw(NamedTuple):
    """One image of the training."""

    image: int  # index in the data set
    position: int  # in the sequence of all images of all processes


class DrawSampler(Sampler[Draw]):
    """The images of one process, from some batch on.

    Args:
        sampler: an endless one of Detectron2, whose order its seed decides, for this process.
        batch: images in a batch of this process.
        first_batch: how many batches to leave out.
        wide: which images are wider than high, if batches may not mix the two kinds.
    """

    def __init__(
        self, sampler: Iterable[int], batch: int, first_batch: int, wide: np.ndarray[Any, Any] | None = None
    ) -> None:
        self._sampler, self._batch, self._wide = sampler, batch, wide
        self._first = first_batch * batch
        self._rank, self._size = comm.get_rank(), comm.get_world_size()

    def __iter__(self) -> Iterator[Draw]:
        draws = (Draw(index, place * self._size + self._rank) for place, index in enumerate(self._sampler))
        return islice(self._grouped(draws), self._first, None)

    def _grouped(self, draws: Iterator[Draw]) -> Iterator[Draw]:
        """Bring images of equal kind together, a batch at a time, as Detectron2's AspectRatioGroupedDataset does."""
        if self._wide is None:
            yield from draws
            return
        waiting: tuple[list[Draw], list[Draw]] = ([], [])
        for draw in draws:
            group = waiting[int(self._wide[draw.image])]
            group.append(draw)
            if len(group) == self._batch:
                yield from group
                group.clear()


class DrawnImages(Dataset[Record]):
    """Images, read and augmented by a Detectron2 mapper, whose randomness the seed and the draw decide."""

    def __init__(self, records: list[Record], mapper: Callable[[Record], Record], seed: int) -> None:
        self._records = DatasetFromList(records, copy=False)  # the mapper copies
        self._mapper, self._seed = mapper, seed

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, draw: Draw) -> Record:
        with seeded(mixed_seed(self._seed, draw.position)):
            return self._mapper(self._records[draw.image])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let numpy, Python and torch (on the CPU) draw from a seed in the body, and then go on as if nothing had been."""
    before = np.random.get_state(), random.getstate(), torch.get_rng_state()
    np.random.seed(seed % 2**32)
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before[0])
        random.setstate(before[1])
        torch.set_rng_state(before[2])


def build_train_loader(
    cfg: DictConfig, records: list[Record], seed: int, first_iteration: int, accumulate: int = 1
) -> Iterable[list[Record]]:
    """Return the training batches of this process from an iteration on, endlessly.

    Args:
        cfg: a recipe's `dataloader.train`: a call of Detectron2's `build_detection_train_loader`. A sampler in it must
            be one of Detectron2's endless ones.
        records: its data set, instantiated; to read a large one takes long, and there may be several loaders.
        seed: of order and augmentation.
        first_iteration: counted from 0.
        accumulate: batches in an iteration; together they have the recipe's `total_batch_size` images.
    """
    arguments = {name: value for name, value in cfg.items() if name not in ("dataset", "mapper")}
    mapper = instantiate(cfg.mapper)
    total = arguments["total_batch_size"] // accumulate
    if arguments.get("sampler") is None:
        sampler = TrainingSampler(len(records), seed=seed)
    else:
        with seeded(seed):  # from which it draws its own
            sampler = instantiate(arguments["sampler"])
    wide = None
    if arguments.get("aspect_ratio_grouping", True):
        wide = np.fromiter((record["width"] > record["height"] for record in records), dtype=np.uint8)
    loader = instantiate(arguments | {
        "dataset": DrawnImages(records, mapper, seed),
        "sampler": DrawSampler(sampler, total // comm.get_world_size(), first_iteration * accumulate, wide),
        "mapper": None,
        "total_batch_size": total,
        "aspect_ratio_grouping": False,  # the sampler has done it
        "seed": seed,  # not of images, but each start of workers would draw from the model's generator without it
    })
    return keep_workers(loader)  # and not Detectron2's seed, which is not needed


class FollowingBatches:
    """Batches for precise batch norm statistics: those that training is about to see next.

    Detectron2's hook keeps one iterator for all its uses; this one begins anew for each, so that what a use sees does
    not depend on how many there were before in this process. Between uses it keeps no loader, nor its processes.
    """

    def __init__(
        self, build: Callable[[int], Iterable[list[Record]]], iteration: Callable[[], int], count: int
    ) -> None:
        self._build, self._iteration, self._count = build, iteration, count
        self._left: Iterator[list[Record]] | None = None
        self._given = 0

    def __iter__(self) -> Iterator[list[Record]]:
        return self

    def __next__(self) -> list[Record]:
        if self._left is None:
            self._left, self._given = iter(self._build(self._iteration() + 1)), 0
        batch = next(self._left)
        self._given += 1
        if self._given == self._count:
            self._left = None
        return batch


def seed_step(seed: int, iteration: int) -> None:
    """Seed what the model draws in an iteration (proposals to learn from, drop path), in each process otherwise."""
    seed_all_rng(mixed_seed(seed, iteration, comm.get_rank()) % 2**32)
