"""What happens to images before a classifier sees them: timm's augmentation, and the blending of pairs.

The augmentation of an image is a function of (seed, epoch, position in the epoch), whichever process does it; how
pairs are blended one of (seed, step, position in the batch).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import numpy as np
import torch
from timm.data import Mixup, create_transform
from torch import Tensor
from torchvision.transforms import Compose, InterpolationMode, TrivialAugmentWide

from eval_suite.classification.config import DataConfig
from eval_suite.classification.finetune_config import AugmentConfig
from spark.data.samplers import mixed_seed

# timm's names of policies; RandAugment is that of MAE, BEiT and their relatives.
TIMM_POLICIES: Mapping[str, str] = MappingProxyType({"autoaugment": "v0", "rand": "rand-m9-mstd0.5-inc1"})
MIX = 5  # keeps the seeds of blending apart from those of `spark.data.samplers`


def train_transform(data: DataConfig, augment: AugmentConfig) -> Compose:
    """Return crop, flip, the augmentation policy, normalisation and random erasing."""
    crop, policy, finish = create_transform(
        data.input_size, is_training=True, separate=True, interpolation="bicubic",
        scale=(augment.min_crop, 1.0), hflip=augment.flip, color_jitter=None,
        auto_augment=TIMM_POLICIES.get(augment.policy),
        re_prob=augment.random_erasing, re_mode="pixel", mean=tuple(data.mean), std=tuple(data.std),
    )
    if augment.policy == "trivial":
        policy = TrivialAugmentWide(interpolation=InterpolationMode.BICUBIC)
    return Compose([crop, policy, finish])


def val_transform(data: DataConfig) -> Compose:
    """Return the deterministic resize, crop and normalisation of validation."""
    return create_transform(
        data.input_size, is_training=False, interpolation="bicubic", crop_pct=data.crop_pct, crop_mode=data.crop_mode,
        mean=tuple(data.mean), std=tuple(data.std),
    )


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


class PairMixer:
    """Mixup and cutmix of neighbours in a batch, with labels that are smoothed and blended alike.

    timm's `Mixup` blends the first image of what it is given with the last, and so on. Here neighbours are blended
    (the sampler makes good ones of them), and groups of images have a ratio of their own: so it makes no difference
    how many processes share a batch, or in how many parts they take it.
    """

    def __init__(self, augment: AugmentConfig, classes: int, seed: int) -> None:
        self._mixup = Mixup(augment.mixup, augment.cutmix, label_smoothing=augment.label_smoothing, num_classes=classes)
        self._group, self._seed = augment.mix_group, seed

    def __call__(self, images: Tensor, labels: Tensor, step: int, first: int) -> tuple[Tensor, Tensor]:
        """Blend an even number of images.

        Args:
            images: [B, 3, H, W].
            labels: [B].
            step: of the training.
            first: place of the first image in the step's whole batch.

        Returns:
            Images [B, 3, H, W], and targets [B, classes].
        """
        mixed = []
        for group in range(first // self._group, -(-(first + len(images)) // self._group)):
            start = max(group * self._group - first, 0)
            end = min((group + 1) * self._group - first, len(images))
            order = [*range(start, end, 2), *reversed(range(start + 1, end, 2))]  # neighbours face each other
            with seeded(mixed_seed(self._seed, MIX, step, group * self._group)):
                mixed.append(self._mixup(images[order], labels[order]))
        blended, targets = (torch.cat(parts) for parts in zip(*mixed, strict=True))
        return blended, targets
