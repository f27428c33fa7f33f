"""What a node's result depends on, as a hash: neither where it runs nor where its files lie."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from spark.data.listing import walk
from spark.data.shards import expand_braces
from spark.errors import UserError
from spark.utils.files import sha256

ABSENT = "absent"
MANY = (".tar", ".arrow")  # files of many images


class DataIdentities:
    """The content of data as far as names tell; each path is looked at once.

    A folder is known by the names of the files in it, a file by its content, shards ('train-{000..127}.tar') by their
    names and sizes. (To read a million images only to say what a run would do is out of the question; results record
    the identity of their data, too.)
    """

    def __init__(self) -> None:
        self._known: dict[Path, tuple[str, int | None]] = {}

    def of(self, path: Path) -> str:
        """Return a short hash, or ABSENT if there is nothing yet."""
        return self._look(path)[0]

    def images(self, path: Path) -> int | None:
        """Return the number of files of a folder; None if it is none, not there, or of files that hold many."""
        return self._look(path)[1]

    def _look(self, path: Path) -> tuple[str, int | None]:
        if path not in self._known:
            if path.is_dir():
                names = sorted(_files(path))
                holds_many = any(name.endswith(MANY) for name in names)
                self._known[path] = _digest(names), None if holds_many else len(names)
            elif path.is_file():
                self._known[path] = sha256(path)[:12], None
            else:
                shards = data_paths(path)
                names = [f"{shard.name}:{shard.stat().st_size}" for shard in shards]
                self._known[path] = _digest(names) if shards else ABSENT, None
        return self._known[path]


def data_paths(path: Path) -> list[Path]:
    """Return the path, or the shards that it names with braces; [] if that, or one of those, is not there."""
    if path.exists():
        return [path]
    try:
        return expand_braces(str(path)) if path.suffix == ".tar" else []
    except UserError:
        return []


def checkpoint_identity(checkpoint: str) -> str:
    """Return what tells a checkpoint from another: its content, or its name where that is of a hub."""
    path = Path(checkpoint)
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        return sha256(files[0])[:12] if files else ABSENT
    if path.is_file():
        return sha256(path)[:12]
    return checkpoint if ":" in checkpoint else ABSENT  # such as timm:resnet50.a1_in1k


def _digest(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]


def _files(folder: Path) -> Iterator[str]:
    """Yield the relative names of all files of data below a folder, hidden ones left out."""
    for prefix, names in walk(folder):
        yield from (f"{prefix}{name}" for name in names if name[0] != ".")
