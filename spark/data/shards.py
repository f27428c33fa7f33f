"""Images in tar files, as WebDataset packs them.

They are not streamed. Within a tar that is not compressed an image lies at a fixed offset; with these known, any
image is one read away, so the order is a full shuffle of all shards, not of a buffer, and a run that is resumed
goes on with the very next image. The price is reading every header once; what was found is kept in the user's cache.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import math
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np

from spark.data.sampled_checksum import sampled_checksum
from spark.errors import UserError
from spark.faults import fault
from spark.utils.cache import keep, recall, user_cache
from spark.utils.provenance import content_hash

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
MOST_SHARDS, MOST_DIGITS = 100_000, 18
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
READ_WHOLE = 1 << 30  # bytes of shards that are read for a checksum in seconds; more would delay the first step
_SCAN = 2  # number of the way of scanning, which what is in the cache was found by; 1 did not look for the end


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    offset: int  # of its first byte
    size: int


class TarSource:
    """The images in tar files.

    Args:
        shards: the tar files, in the order of their images' indices.
        suffixes: of the members that are images.

    Raises:
        UserError: a shard cannot be read, or there are no images in them.
    """

    def __init__(self, shards: Sequence[Path], suffixes: tuple[str, ...]) -> None:
        self._shards, self._names = shards, list[str]()
        places = []
        for number, shard in enumerate(shards):
            for member in read_index(shard):
                path = PurePosixPath(member.name)
                if path.suffix.lower() in suffixes and path.name[0] != ".":
                    self._names.append(member.name)
                    places.append((number, member.offset, member.size))
        if not places:
            raise UserError(f"no images found in '{shards[0]}' and {len(shards) - 1} more shards")
        self._places = np.array(places, dtype=np.int64)  # 24 bytes an image, and shared by forked workers

    def __len__(self) -> int:
        return len(self._names)

    def open(self, index: int) -> BinaryIO:
        """Read the member. The shard is opened anew: thousands kept open would be too many for the system."""
        shard, offset, size = self._places[index].tolist()
        with self._shards[shard].open("rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(size))

    def name(self, index: int) -> str:
        """Return the shard's path and the member's."""
        return f"{self._shards[self._places[index, 0]]}/{self._names[index]}"

    def shard(self, index: int) -> Path:
        """Return the shard that an image is in."""
        return self._shards[self._places[index, 0]]

    def member(self, index: int) -> PurePosixPath:
        """Return where the image is within its shard."""
        return PurePosixPath(self._names[index])

    def companions(self, suffix: str) -> list[str]:
        """Return the text of the file beside each image that has its name but for the suffix; [] if there are none.

        Raises:
            UserError: some images have one, and others not.
        """
        found: dict[tuple[int, str], str] = {}
        for number, shard in enumerate(self._shards):
            wanted = [member for member in read_index(shard) if member.name.endswith(suffix)]
            with shard.open("rb") as file:
                for name, offset, size in wanted:
                    file.seek(offset)
                    found[number, _stem(name)] = file.read(size).decode("utf-8", errors="replace")
        if not found:
            return []
        keys = zip(self._places[:, 0].tolist(), map(_stem, self._names), strict=True)
        texts = [found.get(key) for key in keys]
        if None in texts:
            raise UserError(f"'{self.name(texts.index(None))}' has no {suffix} file beside it, as others have")
        return [text for text in texts if text is not None]

    @property
    def identity(self) -> str:
        """A hash of the members' names and sizes, and of their shards' names."""
        sizes, shards = self._places[:, 2].tolist(), self._places[:, 0].tolist()
        members = zip(shards, self._names, sizes, strict=True)
        return content_hash([f"{self._shards[shard].name}/{name}:{size}" for shard, name, size in members])

    @functools.cached_property
    def checksum(self) -> str:
        """A hash of all members' content, as names and sizes tell nothing of a flipped bit; of a sample of large sets.

        Raises:
            UserError: a shard cannot be read.
        """
        if sum(shard.stat().st_size for shard in self._shards) > READ_WHOLE:
            return sampled_checksum(len(self), self.open)
        found = hashlib.sha256()
        for shard in self._shards:
            try:
                with shard.open("rb") as file:
                    for member in read_index(shard):
                        file.seek(member.offset)
                        found.update(f"{member.name}:{member.size}\n".encode(errors="surrogateescape"))
                        found.update(file.read(member.size))
            except OSError as error:
                raise UserError(f"shard '{shard}' cannot be read: {fault(error) or error.strerror}") from None
        return found.hexdigest()[:12]


def _stem(name: str) -> str:
    """Return a member's name up to the first dot behind its folder, as WebDataset takes it."""
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.partition('.')[0]}"


def expand_braces(pattern: str) -> list[Path]:
    """Turn 'a-{000..127}.tar' or '{a,b}.tar' into the shards that it names.

    Raises:
        UserError: one of them is missing.
    """
    return require_shards([Path(name) for name in _expand(pattern)])


def require_shards(shards: list[Path]) -> list[Path]:
    """Return the shards if they are all there.

    Raises:
        UserError: one is not.
    """
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        raise UserError(f"shard '{missing[0]}' does not exist ({len(missing)} of {len(shards)} missing); see data.root")
    return shards


def read_index(shard: Path) -> list[Member]:
    """Return the files in a tar, from the cache if it has been read before and not changed since.

    Raises:
        UserError: it is no tar, compressed, or cut short.
    """
    status = shard.stat()
    key = content_hash([_SCAN, str(shard.resolve()), status.st_size, status.st_mtime_ns])
    file = user_cache("shards") / f"{key}.json"
    known = recall(file)
    if known is None:
        known = list(_scan(shard))
        keep(file, known)
    return [Member(*entry) for entry in known]


def _scan(shard: Path) -> Iterator[Member]:
    """Yield the files in a tar.

    `tarfile` takes whatever it does not understand for the end: that there is one, and nothing behind it, is checked.
    """
    try:
        size = shard.stat().st_size
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if member.size < 0 or (member.isreg() and member.offset_data + member.size > size):
                    raise ValueError(f"'{member.name}' does not lie within the file")
                if member.isreg() and not member.issparse():
                    yield Member(member.name, member.offset_data, member.size)
            end = tar.offset
        with shard.open("rb") as file:
            _check_end(file, end)
    except MemoryError:
        raise
    except Exception as error:  # what is damaged makes `tarfile` stumble in any way
        if (told := fault(error)) is not None:
            raise UserError(f"shard '{shard}' cannot be read: {told}") from None
        why = "a header has a number beyond all files" if isinstance(error, OverflowError) else (
            " ".join(str(error).split()) or type(error).__name__)
        raise UserError(f"shard '{shard}' is damaged, cut short or compressed ({why}); get it anew") from None


def _check_end(file: BinaryIO, end: int) -> None:
    """Check that two blocks of zeros end a tar, and that nothing but zeros follows.

    Raises:
        ValueError: it has another end.
    """
    file.seek(end)
    mark = file.read(2 * tarfile.BLOCKSIZE)
    if mark.strip(b"\0"):
        raise ValueError(f"what stands at byte {end} is neither a file's header nor the end of the tar")
    if len(mark) < 2 * tarfile.BLOCKSIZE:
        raise ValueError("it has no end mark")
    while chunk := file.read(1 << 20):
        if chunk.strip(b"\0"):
            raise ValueError(f"more follows the end mark at byte {end}: a zeroed block, or a tar appended to another")


def _expand(pattern: str) -> list[str]:
    """Expand the braces of a pattern as a shell does."""
    parts = _BRACES.split(pattern)  # text, braces, text, braces, ..., text
    count = math.prod(_count(inside) for inside in parts[1::2])
    if count > MOST_SHARDS:
        raise UserError(f"'{pattern:.200}' stands for more than {MOST_SHARDS:,} shards; see data.root")
    choices = [_choices(part) if place % 2 else [part] for place, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _count(inside: str) -> int:
    """Return how many words braces stand for; MOST_SHARDS + 1 where a number is absurd."""
    bounds = _RANGE.fullmatch(inside)
    if not bounds:
        return inside.count(",") + 1
    if max(map(len, bounds.groups())) > MOST_DIGITS:
        return MOST_SHARDS + 1
    return abs(int(bounds[1]) - int(bounds[2])) + 1


def _choices(inside: str) -> list[str]:
    """Return what '000..127' or 'a,b' stands for."""
    if bounds := _RANGE.fullmatch(inside):
        first, last = bounds.groups()
        step = 1 if int(first) <= int(last) else -1
        return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + step, step)]
    return inside.split(",")
