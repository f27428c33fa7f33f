"""Where images come from: one small interface, and the choice of its implementation by what `data.root` is."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import BinaryIO, Protocol

from torchvision.datasets.folder import IMG_EXTENSIONS

from spark.data.arrow import ArrowSource, is_arrow
from spark.data.file_list import LIST_SUFFIXES, FileSource, read_list
from spark.data.listing import list_files
from spark.data.shards import COMPRESSED, TarSource, expand_braces, require_shards
from spark.errors import UserError

ARRAY_SUFFIXES = (".npy",)


class ImageSource(Protocol):
    """A fixed, ordered set of encoded images with random access.

    It hands out bytes, not images: what bytes mean does not depend on where they lie, and twelve bands fit
    no PIL image. Random access is what makes shuffling complete and resuming exact.
    """

    def __len__(self) -> int: ...

    def open(self, index: int) -> BinaryIO:
        """Return the encoded image as a seekable file.

        Raises:
            OSError or ValueError: it cannot be read.
        """

    def name(self, index: int) -> str:
        """Say where the image is, for people."""

    @property
    def identity(self) -> str:
        """A hash that tells this set from others, wherever it lies."""

    @property
    def checksum(self) -> str | None:
        """A hash of the content, or of a sample of it, which the identity may know nothing of; None where that does."""


def open_source(root: str | Path, channels: int = 3) -> ImageSource:
    """Open a folder, a file list, tar shards or a Hugging Face data set.

    Args:
        root: the value of `data.root`.
        channels: of the images that will be read; decides which files of a folder are images.

    Raises:
        UserError: there is nothing of the kind, or no image in it.
    """
    path, suffixes = Path(root), image_suffixes(channels)
    if path.name.endswith(COMPRESSED) and not path.is_dir():
        raise UserError(f"'{root}' is compressed, so that its images have no fixed place; unpack it, or repack as .tar")
    if path.suffix == ".tar" and not path.is_dir():
        return TarSource(expand_braces(str(root)), suffixes)
    if path.is_file():
        if path.suffix.lower() not in LIST_SUFFIXES:
            raise UserError(f"'{root}' is a file, but neither a list ({', '.join(LIST_SUFFIXES)}) nor a .tar shard")
        return FileSource(path.parent, read_list(path))
    if is_arrow(path):
        return ArrowSource(path)
    return _open_folder(path, suffixes)


def image_suffixes(channels: int) -> tuple[str, ...]:
    """Return which files of a folder are images; arrays are none among color images, but features or labels."""
    return (*IMG_EXTENSIONS, *(ARRAY_SUFFIXES if channels != 3 else ()))


def list_images(root: Path, suffixes: tuple[str, ...] = IMG_EXTENSIONS) -> list[Path]:
    """Return all images below a folder, sorted, so that an index means the same file on every machine.

    Raises:
        UserError: the folder is missing or holds no images.
    """
    names = list_files(root, suffixes)
    if not names:
        raise UserError(f"no images found below '{root}' (looked for {', '.join(suffixes)})")
    return [root / name for name in names]


def _open_folder(root: Path, suffixes: tuple[str, ...]) -> ImageSource:
    """Open a folder's images; its shards if it has no images outside them."""
    found = list_files(root, (*suffixes, ".tar"))
    shards = [name for name in found if name.lower().endswith(".tar")]
    files = [name for name in found if not name.lower().endswith(".tar")] if shards else found
    if files and shards:
        warnings.warn(
            f"'{root}' holds {len(files)} images and {len(shards)} .tar shards: the shards are left out "
            "(for those, name them in data.root: 'folder/name-{00..99}.tar')",
            stacklevel=2,
        )
    if files:
        return FileSource(root, files)
    if shards:
        return TarSource(require_shards([root / name for name in shards]), suffixes)
    raise UserError(f"no images found below '{root}' (looked for {', '.join((*suffixes, '.tar'))})")
