"""Where images come from: one small interface, and the choice of its implementation by what `data.root` is."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from torchvision.datasets.folder import IMG_EXTENSIONS

from spark.data.arrow import ArrowSource, is_arrow
from spark.data.file_list import LIST_SUFFIXES, FileSource, read_list
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
    files = list_files(root, suffixes)
    if not files:
        raise UserError(f"no images found below '{root}' (looked for {', '.join(suffixes)})")
    return files


def list_files(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return all files below a folder with one of the suffixes, sorted.

    Raises:
        UserError: the folder is missing.
    """
    if not root.is_dir():
        raise UserError(f"image folder '{root}' does not exist; set data.root to a folder of images")
    # Hidden files are companions that some systems leave.
    found = (Path(folder) / name for folder, names in _walk(root) for name in names)
    return sorted(path for path in found if path.suffix.lower() in suffixes and path.name[0] != ".")


def _walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield all folders and their files; follow links, as to class folders, but none to a folder around it."""
    around = {str(root): {_place(root)}}
    for folder, folders, names in os.walk(root, followlinks=True):
        outside = around.pop(folder)
        places = {name: _place(Path(folder) / name) for name in folders}
        folders[:] = [name for name in folders if places[name] not in outside]
        around |= {os.path.join(folder, name): outside | {places[name]} for name in folders}
        yield folder, names


def _place(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _open_folder(root: Path, suffixes: tuple[str, ...]) -> ImageSource:
    """Open a folder's images; its shards if it has no images outside them."""
    found = list_files(root, (*suffixes, ".tar"))
    shards = [path for path in found if path.suffix.lower() == ".tar"]
    files = [path for path in found if path.suffix.lower() != ".tar"]
    if files and shards:
        warnings.warn(
            f"'{root}' holds {len(files)} images and {len(shards)} .tar shards: the shards are left out "
            "(for those, name them in data.root: 'folder/name-{00..99}.tar')",
            stacklevel=2,
        )
    if files:
        return FileSource(root, [str(file.relative_to(root)) for file in files])
    if shards:
        return TarSource(require_shards(shards), suffixes)
    raise UserError(f"no images found below '{root}' (looked for {', '.join((*suffixes, '.tar'))})")
