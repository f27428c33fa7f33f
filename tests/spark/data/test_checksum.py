"""What images hold has a checksum, however many there are: names and sizes tell nothing of a flipped bit."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import BinaryIO

import pytest

from spark.data import shards
from spark.data.sampled_checksum import IMAGES, sampled_checksum
from spark.data.source import open_source


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with two images, a list of them, and a shard."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("a.png", "b.png"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(name.encode() * 300)
    (tmp_path / "list.txt").write_text("photos/a.png\nphotos/b.png\n")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "photos", "photos")
    return tmp_path


def flip_a_bit(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("root", ["photos", "list.txt"])
def test_a_flipped_bit_in_a_file_is_another_checksum(root: str, folder: Path) -> None:
    before = open_source(folder / root)
    assert before.checksum == open_source(folder / root).checksum
    flip_a_bit(folder / "photos" / "b.png", 900)
    after = open_source(folder / root)
    assert after.checksum != before.checksum
    assert after.identity == before.identity  # by which finished runs are known


def test_large_shards_are_sampled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "READ_WHOLE", 0)
    before = open_source(folder / "a.tar").checksum
    assert before is not None
    flip_a_bit(folder / "a.tar", shards.read_index(folder / "a.tar")[1].offset + 900)
    assert open_source(folder / "a.tar").checksum not in (None, before)


def test_a_sample_is_from_all_over_the_set() -> None:
    opened = []

    def image(index: int) -> BinaryIO:
        opened.append(index)
        return io.BytesIO(b"image")

    sampled_checksum(50 * IMAGES, image)
    assert opened == list(range(0, 50 * IMAGES, 50))


def test_what_cannot_be_read_has_a_checksum_too(folder: Path) -> None:
    before = open_source(folder / "list.txt").checksum
    (folder / "photos" / "a.png").unlink()
    gone = open_source(folder / "list.txt").checksum
    os.mkfifo(folder / "photos" / "a.png")  # nobody waits for its end
    assert open_source(folder / "list.txt").checksum == gone != before
