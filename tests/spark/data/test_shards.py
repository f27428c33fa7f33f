"""A damaged shard is refused, whatever is damaged: fewer images than there were would be trained on without a word."""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from spark.data.shards import read_index
from spark.data.source import open_source
from spark.errors import UserError
from spark.utils.provenance import content_hash

BLOCK = tarfile.BLOCKSIZE
IMAGES = 12


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Return a tar of 12 files of 700 bytes, which start with zeros as some formats do."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(IMAGES):
            member = tarfile.TarInfo(f"{number:03d}.png")
            member.size = 700
            tar.addfile(member, io.BytesIO(bytes(4) + bytes([number + 1]) * 696))
    return path


def header(name: str, kind: bytes, size: bytes) -> bytes:
    """Return a header with a right checksum whose size field (12 bytes) is as given."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157], block[148:156] = size, kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def octal(size: int) -> bytes:
    return b"%011o\0" % size


PAX = b"9" * 30 + b" size=1\n"
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a bit of a header": lambda tar: tar[: 5 * 3 * BLOCK] + bytes([tar[5 * 3 * BLOCK] ^ 1]) + tar[5 * 3 * BLOCK + 1 :],
    "cut between members": lambda tar: tar[: 5 * 3 * BLOCK],
    "cut in a header": lambda tar: tar[: 5 * 3 * BLOCK + 100],
    "cut in an image": lambda tar: tar[: 5 * 3 * BLOCK + BLOCK + 100],
    "cut in the end mark": lambda tar: tar[: IMAGES * 3 * BLOCK + BLOCK],
    "a zeroed header": lambda tar: tar[: 5 * 3 * BLOCK] + bytes(BLOCK) + tar[5 * 3 * BLOCK + BLOCK :],
    "a zeroed page": lambda tar: tar[: 4 * BLOCK * 3] + bytes(4096) + tar[4 * BLOCK * 3 + 4096 :],
    "another tar behind it": lambda tar: tar + tar,
    "a negative size": lambda tar: header("x.png", b"0", b"\xff" * 11 + b"\0") + tar,
    "a size beyond all": lambda tar: header("x.png", b"0", b"\x80" + b"\x7f" * 11) + tar,
    "a pax record of any length": lambda tar: header("pax", b"x", octal(len(PAX))) + PAX.ljust(BLOCK, b"\0") + tar,
    "long names without end": lambda tar: header("x", b"L", octal(0)) * 3000 + tar,
    "nothing": lambda tar: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_refused(damage: str, shard: Path) -> None:
    assert len(open_source(shard)) == IMAGES
    shard.write_bytes(DAMAGES[damage](shard.read_bytes()))
    with pytest.raises(UserError, match=r"a\.tar' is damaged, cut short or compressed \(.+\); get it anew"):
        open_source(shard)


def test_a_number_beyond_all_is_told_in_words(shard: Path) -> None:
    shard.write_bytes(DAMAGES["a pax record of any length"](shard.read_bytes()))
    with pytest.raises(UserError, match="a header has a number beyond all files"):
        open_source(shard)


@pytest.mark.parametrize("damage", [b"", b"[]", b"\xff", b"[[true,1,2]]", b'["a"]', b"[" * 100_000])
def test_a_damaged_cache_is_as_good_as_none(damage: bytes, shard: Path, tmp_path: Path) -> None:
    known = read_index(shard)
    (cache,) = (tmp_path / "cache").rglob("*.json")
    whole = cache.read_bytes()
    cache.write_bytes(damage)
    assert read_index(shard) == known
    assert cache.read_bytes() == whole
    cache.write_bytes(whole.replace(b"000.png", b"00x.png"))  # a bit or two, and JSON still
    assert read_index(shard) == known
    cache.unlink()
    os.mkfifo(cache)
    assert read_index(shard) == known


def test_no_flipped_bit_makes_images_vanish(shard: Path) -> None:
    whole, members, rng = shard.read_bytes(), read_index(shard), random.Random(0)
    refused = 0
    for _ in range(300):
        place = rng.randrange(IMAGES) * 3 * BLOCK + rng.randrange(BLOCK)
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        shard.write_bytes(damaged)
        try:
            assert read_index(shard) == members  # a bit behind the checksum's digits means nothing
        except UserError:
            refused += 1
    assert refused > 290


def test_what_a_lenient_version_left_in_the_cache_is_not_used(shard: Path, tmp_path: Path) -> None:
    status = shard.stat()
    key = content_hash([str(shard.resolve()), status.st_size, status.st_mtime_ns])
    known = tmp_path / "cache" / "spark-transfer" / "shards" / f"{key}.json"
    known.parent.mkdir(parents=True)
    known.write_text(json.dumps([["000.png", 512, 700]]))
    assert len(open_source(shard)) == IMAGES
