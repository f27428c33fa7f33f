"""Images for pre-training, from wherever they lie; labels not needed.

Every random choice is a function of (seed, epoch, index of the image), so a run that is resumed in the middle
of an epoch sees exactly what it would have seen, with any number of workers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import InterpolationMode, v2

from spark.errors import UserError
from spark.files import write_text
from spark.images.decode import UnreadableImageError, decode
from spark.images.source import open_source

UNREADABLE_LIMIT, SPARED = 0.01, 2  # share of a data set's images; how many never stop a training
SUBSTITUTES = 16  # images that are tried in place of an unreadable one


AUGMENT, SHUFFLE, STEP = range(3)  # keep the seeds of different purposes apart


class Draw(NamedTuple):
    """Which image, in which epoch: all that the augmentation's randomness depends on, beside the seed."""

    epoch: int
    image: int  # index into the source


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
        """Load and augment an image; any other stands in for an unreadable one, whose neighbours may be so, too."""
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


class NamedImages(Protocol):
    """Images that can be named, and tried again: an ImagePool, for one."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Say where an image is, for people."""

    def load(self, index: int) -> Any:
        """Return an image.

        Raises:
            UnreadableImageError: it cannot be read; the message says why.
        """


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


class UnreadableFiles:
    """Counts the images that could not be read, names them in a report, and stops the run when there are too many.

    Args:
        pool: the images.
        report: a text file with a line for each, name and reason. It is written when there is something to tell,
            so that it is there however the run ends; what it tells from before a resume is kept, but of files that
            are gone.
        spared: how many never stop the run; an evaluation's number should not depend on what happens to be readable.
    """

    def __init__(self, pool: NamedImages, report: Path | None = None, spared: int = SPARED) -> None:
        self._pool, self._report, self._spared = pool, report, spared
        self.found: set[int] = set()
        told = report.read_text(encoding="utf-8").splitlines() if report and report.is_file() else []
        names = {pool.name(index) for index in range(len(pool))} if told else set()
        self._lines = dict.fromkeys(line for line in told if line.partition("\t")[0] in names)

    def note(self, indices: Tensor) -> None:
        """Take the `unreadable` entries of a batch; warn of new ones.

        Raises:
            UserError: more than one per cent of all images, and more than are spared, cannot be read.
        """
        for index in sorted(set(indices.tolist()) - {-1} - self.found):
            self.found.add(index)
            name, reason = self._pool.name(index), self._reason(index)
            self._tell(f"{name}\t{reason}")
            warnings.warn(f"unreadable image {name} is skipped ({len(self.found)} so far): {reason}", stacklevel=2)
            self.judge(len(self.found), f", '{name}' for one ({reason})")

    def judge(self, count: int, example: str = "") -> None:
        """Stop if so many images, of this process or of all, are too many.

        Raises:
            UserError: more than one per cent of all images, and more than are spared, cannot be read.
        """
        total = len(self._pool)
        if count > max(UNREADABLE_LIMIT * total, self._spared):
            raise UserError(f"{count} of {total} images cannot be read (more than {UNREADABLE_LIMIT:.0%}){example}; "
                            "repair or remove them")

    def summary(self) -> str:
        """Say how many images could not be read in the whole run, and where they are named; '' if all could."""
        if not self._lines:
            return ""
        return f"{len(self._lines)} of {len(self._pool)} images could not be read: see {self._report}"

    def _reason(self, index: int) -> str:
        """Find out what is wrong with an image; a worker tells only which it was."""
        try:
            self._pool.load(index)
        except UnreadableImageError as error:
            return " ".join(str(error).split())
        return "readable when tried again"

    def _tell(self, line: str) -> None:
        self._lines[line] = None
        if self._report:
            write_text(self._report, "".join(f"{told}\n" for told in sorted(self._lines)))


def build_loader(pool: ImagePool, sampler: Sampler[Draw], batch: int, workers: int, pin: bool) -> DataLoader[Sample]:
    """Return a loader of batches (uint8 [B, C, H, W], unreadable [B])."""
    return DataLoader(
        pool,
        batch_size=batch,
        sampler=sampler,
        num_workers=workers,
        pin_memory=pin,
        persistent_workers=workers > 0,
        drop_last=True,
    )


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float], device: torch.device) -> Tensor:
    """Move uint8 images [B, C, H, W] to the device and return (x / 255 - mean) / std as float32."""
    images = images.to(device, non_blocking=True).float()
    shape = (1, -1, 1, 1)
    mean_255 = torch.tensor(mean, device=device).view(shape) * 255
    std_255 = torch.tensor(std, device=device).view(shape) * 255
    return (images - mean_255) / std_255


def denormalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undo `normalise`, clamped to values in 0..1: [B, C, H, W], to be looked at."""
    scale, shift = (torch.tensor(values, device=images.device).view(1, -1, 1, 1) for values in (std, mean))
    return (images * scale + shift).clamp(0, 1)


def mixed_seed(*parts: int) -> int:
    """Mix integers into one 63-bit seed."""
    mixed = 0x9E3779B97F4A7C15
    for part in parts:
        mixed = ((mixed ^ (part + 1)) * 0xBF58476D1CE4E5B9) % 2**64
        mixed ^= mixed >> 31
    return mixed >> 1
