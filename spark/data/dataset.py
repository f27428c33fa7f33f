"""Images for pre-training, from wherever they lie; labels not needed.

Every random choice is a function of (seed, epoch, index of the image), so a run that is resumed in the middle
of an epoch sees exactly what it would have seen, with any number of workers.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import InterpolationMode, v2

from spark.data.decode import UnreadableImageError, decode
from spark.data.samplers import AUGMENT, Draw, mixed_seed
from spark.data.source import open_source
from spark.utils.workers import keep_workers

SUBSTITUTES = 16  # images that are tried in place of an unreadable one


class Sample(NamedTuple):
    """An augmented image, uint8 [C, H, W], and the index of an unreadable image it stands in for, or -1."""

    image: Tensor
    unreadable: int


class ImagePool(Dataset[Sample]):
    """All images of a source, cropped and flipped as SparK does (RandomResizedCrop and flip only).

    Args:
        root: a folder (nested or not; class folders are welcome and ignored), a file list, tar shards, or a
            Hugging Face data set on disk.
        size: height and width of the crops in pixels.
        min_scale: smallest share of an image's area that a crop may take.
        seed: of the augmentation.
        channels: of the images; 1 is luminance, 3 RGB, 4 RGBA, other numbers are bands as stored.

    Raises:
        UserError: the root is missing, of no known kind, or holds no images.
    """

    def __init__(
        self, root: str | Path, size: tuple[int, int], min_scale: float = 0.67, seed: int = 0, channels: int = 3
    ) -> None:
        self.source = open_source(root, channels)
        self._size, self._seed, self._channels = size, seed, channels
        self._augment = v2.Compose(
            [
                v2.RandomResizedCrop(
                    size, scale=(min_scale, 1.0), interpolation=InterpolationMode.BICUBIC, antialias=True
                ),
                v2.RandomHorizontalFlip(),
            ]
        )

    def __len__(self) -> int:
        return len(self.source)

    @property
    def identity(self) -> str:
        """A hash that tells this set of images from others, wherever it lies."""
        return self.source.identity

    @property
    def checksum(self) -> str | None:
        """A hash of the images' content, or of a sample of it."""
        return self.source.checksum

    def name(self, index: int) -> str:
        """Say where an image is, for people."""
        return self.source.name(index)

    def load(self, index: int) -> Tensor:
        """Return a whole image, uint8 [C, height, width].

        Raises:
            UnreadableImageError: it cannot be read; the message says why.
        """
        try:
            with self.source.open(index) as file:
                pixels = decode(file, self._channels)
        except (OSError, ValueError) as error:
            raise error if isinstance(error, UnreadableImageError) else UnreadableImageError(str(error)) from None
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def some(self, count: int) -> Tensor:
        """Return some images from all over the source, always the same ones: uint8 [count, C, H, W]."""
        return torch.stack([self[Draw(0, number * len(self) // count)].image for number in range(count)])

    def __getitem__(self, draw: Draw) -> Sample:
        """Load and augment an image; any other stands in for an unreadable one, whose neighbors may be so, too."""
        index, unreadable = draw.image, -1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mixed_seed(self._seed, AUGMENT, draw.epoch, draw.image))
            for _ in range(SUBSTITUTES):
                try:
                    return Sample(self._augment(self.load(index)), unreadable)
                except UnreadableImageError:
                    unreadable = unreadable if unreadable >= 0 else index
                    index = int(torch.randint(len(self), ()))
        # Not raised here, where a worker's traceback would be wrapped around it: the loop stops at the count.
        return Sample(torch.zeros(self._channels, *self._size, dtype=torch.uint8), unreadable)


def build_loader(pool: ImagePool, sampler: Sampler[Draw], batch: int, workers: int, pin: bool) -> DataLoader[Sample]:
    """Return a loader of batches (uint8 [B, C, H, W], unreadable [B])."""
    loader = DataLoader(
        pool,
        batch_size=batch,
        sampler=sampler,
        num_workers=workers,
        pin_memory=pin,
        persistent_workers=workers > 0,
        drop_last=True,
    )
    return keep_workers(loader)


