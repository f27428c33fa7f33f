"""Images for pre-training: any folder, labels not needed.

Every random choice is a function of (seed, epoch, index of the image), so a run that is resumed in the middle
of an epoch sees exactly what it would have seen, with any number of workers.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import InterpolationMode, v2

from spark.errors import UserError
from spark.provenance import content_hash

UNREADABLE_LIMIT = 0.01  # share of a data set's files
SUBSTITUTES = 16  # images that are tried in place of an unreadable one


AUGMENT, SHUFFLE, STEP = range(3)  # keep the seeds of different purposes apart


class Draw(NamedTuple):
    """Which image, in which epoch: all that the augmentation's randomness depends on, beside the seed."""

    epoch: int
    image: int  # index into the list of files


class Sample(NamedTuple):
    """An augmented image, uint8 [C, H, W], and the index of an unreadable file it stands in for, or -1."""

    image: Tensor
    unreadable: int


class ImagePool(Dataset[Sample]):
    """All images below a folder, cropped and flipped as SparK does (RandomResizedCrop and flip only).

    Args:
        root: a folder of images, nested or not; class folders are welcome and ignored.
        size: height and width of the crops in pixels.
        min_scale: smallest share of an image's area that a crop may take.
        seed: of the augmentation.

    Raises:
        UserError: the folder is missing or holds no images.
    """

    def __init__(self, root: str | Path, size: tuple[int, int], min_scale: float = 0.67, seed: int = 0) -> None:
        self._root = Path(root)
        self.files = list_images(self._root)
        self._size, self._seed = size, seed
        self._augment = v2.Compose(
            [
                v2.PILToTensor(),
                v2.RandomResizedCrop(
                    size, scale=(min_scale, 1.0), interpolation=InterpolationMode.BICUBIC, antialias=True
                ),
                v2.RandomHorizontalFlip(),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    @property
    def identity(self) -> str:
        """A hash of the files' names below the folder, wherever that is."""
        return content_hash([str(file.relative_to(self._root)) for file in self.files])

    def __getitem__(self, draw: Draw) -> Sample:
        """Load and augment an image; in place of an unreadable one comes one of the next."""
        unreadable = -1
        for offset in range(SUBSTITUTES):
            index = (draw.image + offset) % len(self.files)
            try:
                image = load_image(self.files[index])
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                unreadable = unreadable if unreadable >= 0 else index
                continue
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(mixed_seed(self._seed, AUGMENT, draw.epoch, draw.image))
                return Sample(self._augment(image), unreadable)
        # Not raised here, where a worker's traceback would be wrapped around it: the loop stops at the count.
        return Sample(torch.zeros(3, *self._size, dtype=torch.uint8), unreadable)


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
    """Counts the files that could not be read, and stops the run when there are too many."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self.found: set[int] = set()

    def note(self, indices: Tensor) -> None:
        """Take the `unreadable` entries of a batch; warn of new ones.

        Raises:
            UserError: more than one per cent of all files cannot be read.
        """
        for index in sorted(set(indices.tolist()) - {-1} - self.found):
            self.found.add(index)
            count, total = len(self.found), len(self._files)
            warnings.warn(f"unreadable image {self._files[index]} is skipped ({count} so far)", stacklevel=2)
            if count > UNREADABLE_LIMIT * total:
                raise UserError(
                    f"{count} of {total} images cannot be read (more than {UNREADABLE_LIMIT:.0%}), "
                    f"'{self._files[index]}' for one; repair or remove them"
                )


def build_loader(pool: ImagePool, sampler: EpochSampler, batch: int, workers: int, pin: bool) -> DataLoader[Sample]:
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


def list_images(root: Path) -> list[Path]:
    """Return all images below a folder, sorted, so that an index means the same file on every machine.

    Raises:
        UserError: the folder is missing or holds no images.
    """
    if not root.is_dir():
        raise UserError(f"image folder '{root}' does not exist; set data.root to a folder of images")
    # os.walk, as it follows links to class folders. Hidden files are companions that some systems leave.
    found = (Path(folder) / name for folder, _, names in os.walk(root, followlinks=True) for name in names)
    files = sorted(path for path in found if path.suffix.lower() in IMG_EXTENSIONS and path.name[0] != ".")
    if not files:
        raise UserError(f"no images found below '{root}' (looked for {', '.join(IMG_EXTENSIONS)})")
    return files


def load_image(path: Path) -> Image.Image:
    """Read an image upright (by its EXIF orientation) as RGB with 8 bits.

    Raises:
        OSError, ValueError, SyntaxError or DecompressionBombError: it cannot be read.
    """
    with Image.open(path) as image:
        return _eight_bits(ImageOps.exif_transpose(image)).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey values to 8 bits; Pillow's own conversion would clip them to white."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if not image.mode.startswith("I"):
        return image
    grey = np.asarray(image).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError("pixels have more than 16 bits")
    return Image.fromarray(((grey + 128) // 257).astype(np.uint8))


def mixed_seed(*parts: int) -> int:
    """Mix integers into one 63-bit seed."""
    mixed = 0x9E3779B97F4A7C15
    for part in parts:
        mixed = ((mixed ^ (part + 1)) * 0xBF58476D1CE4E5B9) % 2**64
        mixed ^= mixed >> 31
    return mixed >> 1
