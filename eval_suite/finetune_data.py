"""Labelled images for fine-tuning: an ImageFolder with `train/` and `val/`, timm's augmentation.

The augmentation of an image is a function of (seed, epoch, position in the epoch), whichever process does it.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.data import create_transform
from timm.data.distributed_sampler import RepeatAugSampler
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, Sampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, InterpolationMode, TrivialAugmentWide

from eval_suite.finetune_config import FinetuneConfig
from spark.data import UNREADABLE_LIMIT, mixed_seed
from spark.errors import UserError
from spark.images.decode import load_image
from spark.provenance import content_hash

UNREADABLE = -1  # the label of an image that could not be decoded


class Draw(NamedTuple):
    """Which image, and the seed of its augmentation."""

    image: int
    seed: int


class LabelledImages(ImageFolder):
    """An ImageFolder whose unreadable images come back black and labelled `UNREADABLE`.

    So a batch can be filtered, and the losses counted, where it is used: workers share no state.
    """

    def __init__(self, root: Path, transform: Callable[[Any], Tensor], input_size: int) -> None:
        if not root.is_dir():
            raise UserError(f"folder '{root}' does not exist; data.root needs train/<class>/, val/<class>/")
        try:
            super().__init__(str(root), transform)
        except FileNotFoundError as error:  # no class folder, or one without images
            reason = str(error).partition(" Supported")[0]
            raise UserError(f"'{root}' is not a folder of class folders with images: {reason}") from None
        self._blank = torch.zeros(3, input_size, input_size)

    def __getitem__(self, draw: Draw | int) -> tuple[Tensor, int]:
        """Return an image and its label; a plain number is enough where the transform has no randomness."""
        index, seed = draw if isinstance(draw, Draw) else (draw, 0)
        path, label = self.samples[index]
        try:
            image = load_image(Path(path))
        except (OSError, ValueError) as error:
            warnings.warn(f"unreadable image skipped: {path} ({error})", stacklevel=2)
            return self._blank, UNREADABLE
        with seeded(seed):
            return self.transform(image), label


class TrainSampler(Sampler[Draw]):
    """Draws the training images of one epoch; repeated draws of an image are augmented differently."""

    def __init__(self, order: DistributedSampler[Any] | RepeatAugSampler, seed: int) -> None:
        self._order, self._seed, self._epoch = order, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation of an epoch."""
        self._epoch = epoch
        self._order.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Draw]:
        for position, image in enumerate(self._order):
            yield Draw(int(image), mixed_seed(self._seed, self._epoch, position))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed every generator that augmentation draws from while the body runs; put them back after it."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


class ReadableImages:
    """Drops unreadable images from the batches of one pass, and stops when they are over 1% of its images.

    >>> readable = ReadableImages(total=len(loader.dataset))
    >>> images, labels = readable(images, labels)
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self.lost = 0

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the readable part of a batch: images [B, 3, H, W], labels [B]."""
        kept = labels != UNREADABLE
        lost = int((~kept).sum())
        self.lost += lost
        if self.lost > UNREADABLE_LIMIT * self._total:
            raise UserError(
                f"at least {self.lost} of {self._total} images are unreadable, more than "
                f"{UNREADABLE_LIMIT:.0%}; repair or remove the files that the warnings name"
            )
        return (images[kept], labels[kept]) if lost else (images, labels)


@dataclass(frozen=True)
class Data:
    """Both splits, ready to iterate."""

    train: DataLoader[tuple[Tensor, Tensor]]
    val: DataLoader[tuple[Tensor, Tensor]]
    classes: list[str]
    identity: dict[str, Any]  # what distinguishes this data set from another, wherever it lies

    def start_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation of the training images of an epoch."""
        assert isinstance(self.train.sampler, TrainSampler)
        self.train.sampler.set_epoch(epoch)


def open_data(config: FinetuneConfig) -> Data:
    """Open `data.root`.

    Raises:
        UserError: a split is missing, the classes differ, or there is less than one batch of images.
    """
    root, size = Path(config.data.root), config.data.input_size
    train = LabelledImages(root / "train", train_transform(config), size)
    val = LabelledImages(root / "val", val_transform(config), size)
    if train.classes != val.classes:
        different = sorted(set(train.classes) ^ set(val.classes))
        raise UserError(f"'{root}': classes differ between train and val: {', '.join(different[:5])}")
    if len(train) < config.train.batch:
        raise UserError(f"train.batch={config.train.batch} exceeds the {len(train)} images of '{root}/train'")
    workers = config.data.workers
    pinned = torch.cuda.is_available()
    return Data(
        DataLoader(train, config.train.batch, sampler=TrainSampler(_order(config, train), config.seed), drop_last=True,
                   num_workers=workers, pin_memory=pinned),
        DataLoader(val, config.train.batch, num_workers=workers, pin_memory=pinned),
        train.classes,
        {
            "classes": len(train.classes), "train_images": len(train), "val_images": len(val),
            "files": content_hash([_relative_names(train), _relative_names(val)]),
        },
    )


def train_transform(config: FinetuneConfig) -> Compose:
    """Return crop, flip, the augmentation policy, normalisation and random erasing."""
    augment = config.augment
    crop, policy, finish = create_transform(
        config.data.input_size, is_training=True, separate=True, interpolation="bicubic",
        scale=(augment.min_crop, 1.0), hflip=augment.flip, color_jitter=None,
        auto_augment="v0" if augment.policy == "autoaugment" else None,
        re_prob=augment.random_erasing, re_mode="pixel",
        mean=tuple(config.data.mean), std=tuple(config.data.std),
    )
    if augment.policy == "trivial":
        policy = TrivialAugmentWide(interpolation=InterpolationMode.BICUBIC)
    return Compose([crop, policy, finish])


def val_transform(config: FinetuneConfig) -> Compose:
    """Return the deterministic resize, crop and normalisation of validation."""
    return create_transform(
        config.data.input_size, is_training=False, interpolation="bicubic",
        crop_pct=config.data.crop_pct, crop_mode=config.data.crop_mode,
        mean=tuple(config.data.mean), std=tuple(config.data.std),
    )


def _order(config: FinetuneConfig, dataset: Sized) -> DistributedSampler[Any] | RepeatAugSampler:
    repeats = config.augment.repeated_augmentation
    if repeats:
        return RepeatAugSampler(dataset, num_replicas=1, rank=0, num_repeats=repeats)
    return DistributedSampler(dataset, num_replicas=1, rank=0, seed=config.seed)  # type: ignore[arg-type]


def _relative_names(images: ImageFolder) -> list[str]:
    return [str(Path(path).relative_to(images.root)) for path, _ in images.samples]
