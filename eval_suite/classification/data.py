"""Labeled images in batches: which image comes when, and how each is augmented, follows from the seed alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from timm.data.distributed_sampler import RepeatAugSampler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from eval_suite.classification.augment import seeded
from eval_suite.classification.labeled import LabeledSource
from spark.data.dataset import SUBSTITUTES
from spark.data.decode import UnreadableImageError
from spark.data.samplers import AUGMENT, SHUFFLE, ShareSampler, mixed_seed
from spark.errors import UserError
from spark.utils.distributed import Ranks
from spark.utils.workers import keep_workers

UNLABELED = -1  # the class of an image that could not be decoded


class Draw(NamedTuple):
    """Which image, and the seed of its augmentation."""

    image: int
    seed: int = 0


class LabeledSample(NamedTuple):
    """An image [3, H, W], its class, and the index of an unreadable image that was met, or -1; or a batch of them."""

    image: Tensor
    label: Any
    unreadable: Any


class LabeledImages(Dataset[LabeledSample]):
    """Transformed images.

    Args:
        images: with their classes.
        transform: from a PIL image to [3, H, W].
        input_size: H and W.
        substitute: for training, any other image stands in for one that cannot be read. Otherwise, a black image of
            class `UNLABELED` does, and whoever counts leaves it out.
    """

    def __init__(
        self, images: LabeledSource, transform: Callable[[Any], Tensor], input_size: int, substitute: bool
    ) -> None:
        self.images = images
        self._transform, self._blank = transform, torch.zeros(3, input_size, input_size)
        self._tries = SUBSTITUTES if substitute else 1
        self._substitute = substitute

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw) -> LabeledSample:
        """Return an image, augmented by the draw's seed."""
        index, unreadable = draw.image, -1
        with seeded(draw.seed):
            for _ in range(self._tries):
                try:
                    image = self._transform(self.images.load(index))
                    return LabeledSample(image, self.images.label(index), unreadable)
                except UnreadableImageError:
                    unreadable = unreadable if unreadable >= 0 else index
                    index = int(torch.randint(len(self.images), ()))
        label = self.images.label(draw.image) if self._substitute else UNLABELED
        return LabeledSample(self._blank, label, unreadable)  # the loop stops at the number of unreadable ones


class TrainSampler(Sampler[Draw]):
    """Hands out whole batches of shuffled images, from `first_step` to the end of training.

    Neighbours are blended with each other by `PairMixer`, so they come from the two halves of the batch as it was
    drawn: repeated draws of an image, which follow each other there, must not meet.

    Args:
        images: how many there are.
        batch: images of a step.
        epochs: of the training.
        seed: of order and augmentation.
        repeats: draws of each image in an epoch, which has as many draws as there are images all the same.
        first_step: how many steps are done.

    Raises:
        UserError: there is not one batch of images.
    """

    def __init__(self, images: int, batch: int, epochs: int, seed: int, repeats: int = 0, first_step: int = 0) -> None:
        if batch > images:
            raise UserError(f"train.batch={batch} exceeds the {images} images to train on; make it smaller")
        self.steps_per_epoch = images // batch
        self._images, self._batch, self._epochs, self._seed = images, batch, epochs, seed
        self._repeats, self._first_step = max(repeats, 1), first_step

    def __len__(self) -> int:
        return (self._epochs * self.steps_per_epoch - self._first_step) * self._batch

    def __iter__(self) -> Iterator[Draw]:
        start_epoch, start_step = divmod(self._first_step, self.steps_per_epoch)
        half = (self._batch + 1) // 2
        interleaved = [place // 2 + place % 2 * half for place in range(self._batch)]
        for epoch in range(start_epoch, self._epochs):
            order = self._order(epoch)
            for step in range(start_step if epoch == start_epoch else 0, self.steps_per_epoch):
                for place in interleaved:
                    position = step * self._batch + place
                    yield Draw(order[position], mixed_seed(self._seed, AUGMENT, epoch, position))

    def _order(self, epoch: int) -> list[int]:
        sampler = RepeatAugSampler(
            range(self._images), num_replicas=1, rank=0, num_repeats=self._repeats, selected_round=0
        )
        sampler.set_epoch(mixed_seed(self._seed, SHUFFLE, epoch))  # all that it draws its order from
        return list(sampler)


@dataclass(frozen=True)
class Data:
    """Both splits, and what distinguishes them from others.

    Attributes:
        train: images to train on.
        val: images to evaluate on.
        classes: how many there are.
        identity: JSON-like; independent of where the images lie.
    """

    train: LabeledImages
    val: LabeledImages
    classes: int
    identity: dict[str, Any]


def train_loader(
    images: LabeledImages, sampler: TrainSampler, batch: int, workers: int, ranks: Ranks
) -> DataLoader[LabeledSample]:
    """Return this process's share of the batches: images [B, 3, H, W], labels [B], unreadable [B]."""
    return keep_workers(DataLoader(
        images, ranks.local_batch(batch), sampler=ShareSampler(sampler, batch, ranks), num_workers=workers,
        pin_memory=ranks.device.type == "cuda", drop_last=True,
    ))


def plain_loader(images: LabeledImages, batch: int, workers: int, ranks: Ranks) -> DataLoader[LabeledSample]:
    """Return this process's share of all images, each once, in order.

    Raises:
        UserError: there is not one image for each process.
    """
    if len(images) < ranks.size:
        raise UserError(f"{len(images)} images cannot be shared by {ranks.size} processes; start fewer")
    share = [Draw(index) for index in range(ranks.rank, len(images), ranks.size)]
    return keep_workers(DataLoader(
        images, batch, sampler=share, num_workers=workers, pin_memory=ranks.device.type == "cuda",
    ))
