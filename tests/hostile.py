"""What happens to files, by accident or on purpose: bits flip, disks fill, downloads fail, and strangers write them."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

EXECUTED = "executed"  # the file that whatever is executed leaves, where the test said
Damage = Callable[[random.Random, Path], None]


class Payload:
    """Runs a command where it is unpickled."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self._command,)


def payload() -> Payload:
    return Payload(f"touch {os.environ[EXECUTED]}")


# Accidents, to files of all kinds.


def cut(rng: random.Random, path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def flip(rng: random.Random, path: Path) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 8, 200])):
        content[rng.randrange(min(len(content), rng.choice([64, 2000, len(content)])))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def blank(rng: random.Random, path: Path) -> None:
    """Zero a page, as lost blocks of a disk read."""
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content))
    content[start : start + 4096] = bytes(len(content[start : start + 4096]))
    path.write_bytes(content)


def shuffle(rng: random.Random, path: Path) -> None:
    """Put a part of the file in another place."""
    content = path.read_bytes()
    a, b, c = sorted(rng.randrange(len(content) + 1) for _ in range(3))
    path.write_bytes(content[:a] + content[b:c] + content[a:b] + content[c:])


def append(rng: random.Random, path: Path) -> None:
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.choice([1, 100, 5000])))


def noise(rng: random.Random, path: Path) -> None:
    path.write_bytes(rng.randbytes(rng.choice([0, 1, 7, 600, 70_000])))


def other_kind(rng: random.Random, path: Path) -> None:
    """Put something else under the name."""
    path.write_bytes(rng.choice([
        b"<!DOCTYPE html><html><body>404 Not Found</body></html>", b"null\n", b"[" * 100_000, b"{}", b"9" * 5000,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a: 1\n".encode("utf-16"),
        b'{"a": "\xff"}\n', b"\0" * 5000, b"PK\x03\x04", pickle.dumps(payload()), pickle.dumps({"model": 1}),
    ]))  # fmt: skip


def no_file(rng: random.Random, path: Path) -> None:
    """Put what is no file under the name."""
    path.unlink()
    rng.choice([
        lambda: os.mkfifo(path), path.mkdir, lambda: path.symlink_to(path.name), lambda: path.symlink_to("nowhere"),
        lambda: path.symlink_to("/dev/zero"),
    ])()  # fmt: skip


ACCIDENTS: tuple[Damage, ...] = (cut, cut, flip, flip, flip, blank, shuffle, append, noise, other_kind, no_file)


# Strangers, who know what is read.


VALUES = (None, True, -1, 0, 1.5, 2**63, -(2**70), 1e308, float("nan"), float("inf"), "", "x" * 5000, "\0", "\ud800",
          "../../../etc/passwd", "<script>alert(1)</script>", "subprocess:Popen", "os:system", "$(touch x)", [], {},
          [[]], {"a": {"b": [1]}}, [None], "nan", "https://example.invalid/x.pth")  # fmt: skip


def leaves(tree: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to everything in a tree, the tree itself left out."""
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield (*way, key)
            yield from leaves(value, (*way, key))


def replaced(rng: random.Random, tree: Any) -> Any:
    """Return a tree with something in it replaced, removed or renamed."""
    *way, last = rng.choice(list(leaves(tree)))
    node = tree
    for key in way:
        node = node[key]
    fate = rng.random()
    if fate < 0.15:
        del node[last]
    elif fate < 0.25 and isinstance(node, dict):
        node[rng.choice(["__class__", "", "x" * 300, "\ud800", "3"])] = node.pop(last)
    else:
        node[last] = rng.choice(VALUES)
    return tree


def of_json(rng: random.Random, path: Path) -> None:
    path.write_text(json.dumps(replaced(rng, json.loads(path.read_text()))))


def of_json_lines(rng: random.Random, path: Path) -> None:
    lines = path.read_text().splitlines()
    place = rng.randrange(len(lines))
    lines[place] = json.dumps(replaced(rng, json.loads(lines[place])))
    path.write_text("\n".join(lines))


def of_yaml(rng: random.Random, path: Path) -> None:
    command = f"!!python/object/apply:os.system ['touch {os.environ[EXECUTED]}']"
    line = rng.choice([
        f"more: {command}", f"out: {command}", "a: &a [*a]",
        "model: {name: 'subprocess:Popen', options: {args: [touch]}}",
        "x: " + "[" * 2000, "base: /dev/zero", f"base: {path.name}", "model: {name: 'os:system'}", "? [a, b]\n: c",
        "train: {epochs: 9" + "9" * 5000 + "}", "b: &b [1,1,1]\n" + "".join(
            f"k{n}: &k{n} [*{'b' if not n else f'k{n - 1}'},*{'b' if not n else f'k{n - 1}'}]\n" for n in range(40)),
    ])  # fmt: skip
    path.write_text(f"{path.read_text()}\n{line}\n")


def of_checkpoint(rng: random.Random, path: Path) -> None:
    """Write a valid `torch.save` file with other content, or one that would run something."""
    content: Any = torch.load(path, weights_only=True)
    rng.choice(CHECKPOINTS)(rng, content, path)


def _more_objects(rng: random.Random, content: Any, path: Path) -> None:
    content[rng.choice(["args", "config", "model"])] = payload()
    torch.save(content, path, _use_new_zipfile_serialization=rng.random() < 0.5)


def _other_values(rng: random.Random, content: Any, path: Path) -> None:
    torch.save(replaced(rng, content), path)


def _other_tensors(rng: random.Random, content: Any, path: Path) -> None:
    key = rng.choice([key for key, value in content.items() if isinstance(value, dict) and value])
    inner = content[key]
    name = rng.choice(sorted(inner, key=str))
    inner[name] = rng.choice([
        torch.zeros(0), torch.zeros(1).expand(10**6), torch.eye(3).to_sparse(), torch.ones(2, dtype=torch.complex64),
        torch.ones(3, dtype=torch.float64), torch.zeros(1, device="meta"), torch.full((2, 2), float("nan")),
    ])  # fmt: skip
    torch.save(content, path)


def _another_root(rng: random.Random, content: Any, path: Path) -> None:
    torch.save(rng.choice([[content], None, 3, "x", {}, {"model": {}}, {"state_dict": [1]}, torch.ones(3)]), path)


def _deep(rng: random.Random, content: Any, path: Path) -> None:
    tree: Any = []
    for _ in range(2000):
        tree = [tree]
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        torch.save({**content, "config": tree}, path)
    finally:
        sys.setrecursionlimit(limit)


CHECKPOINTS = (_more_objects, _more_objects, _other_values, _other_values, _other_tensors, _other_tensors,
               _another_root, _deep)  # fmt: skip


def of_safetensors(rng: random.Random, path: Path) -> None:
    """Write a header that does not fit."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = rng.choice(sorted(key for key in header if key != "__metadata__"))
    size = rng.choice([0, 1, 2**40, 2**63, 2**64 - 1, length + 10**9])
    entry = header[name]
    change = rng.choice(["shape", "offsets", "dtype", "length", "twice", "huge"])
    if change == "shape":
        entry["shape"] = rng.choice([[2**62, 4], [-1], [], [0], [10**6]])
    elif change == "offsets":
        entry["data_offsets"] = rng.choice([[0, 2**63], [5, 1], [-1, 3], [len(data), len(data) + 8]])
    elif change == "dtype":
        entry["dtype"] = rng.choice(["F64", "BOOL", "O", "", 3])
    elif change == "twice":
        header["again"] = entry
    elif change == "huge":
        header["again"] = {"dtype": "F32", "shape": [0, 2**40], "data_offsets": [len(data)] * 2}
    text = json.dumps(header).encode()
    path.write_bytes((size if change == "length" else len(text)).to_bytes(8, "little") + text + data)


def of_pickle(rng: random.Random, path: Path) -> None:
    """Write a pickle as Detectron2's that is none."""
    command = payload()
    array = np.array([command, command], dtype=object)
    written = rng.choice([
        pickle.dumps({"model": {"a": command}}), pickle.dumps({"model": {"a": array}}),
        pickle.dumps(command, protocol=0), b"cos\nsystem\n(S'touch x'\ntR.", b"\x80\x02]q\x00j\xff\xff\xff\x7f.",
        b"\x80\x04\x8e" + (2**40).to_bytes(8, "little"), b"(" * 100_000 + b".", b"\x80\x02r\xff\xff\xff\xffN.",
        b"cnumpy\nndarray\n(I-1\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I1000000000000\ntS'b'\ntR.",
        pickle.dumps({"model": {"a": np.zeros(3, "datetime64[s]")}}), pickle.dumps({"model": {"stem": "text"}}),
    ])  # fmt: skip
    path.write_bytes(written)


def of_arrays(rng: random.Random, path: Path) -> None:
    """Write a `.npz` whose arrays are objects, or larger than can be."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("conv1.weight.npy", rng.choice([_array_of_objects(), _array_of_size("(1000000000000,)")]))


def _array_of_objects() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([payload()], dtype=object), allow_pickle=True)
    return file.getvalue()


def _array_of_size(shape: str) -> bytes:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


def of_image(rng: random.Random, path: Path) -> None:
    """Write a picture that is larger than memory, or is no picture."""
    size = struct.pack(">II", *rng.choice([(60_000, 60_000), (2**31 - 1, 1), (0, 0), (40, 2**31 - 1)]))
    chunk = b"IHDR" + size + b"\x08\x02\0\0\0"
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data = b"IDAT" + zlib.compress(bytes(10**6))
    huge_gif = b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\x02\x16\x8c-\0;"
    path.write_bytes(rng.choice([
        bomb + struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data)), huge_gif,
        _array_of_objects(), _array_of_size("(60000, 60000, 3)"), b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"II*\0\x08\0\0\0\x01\0\x00\x01\x04\0\x01\0\0\0\xff\xff\xff\x7f\0\0\0\0", b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch x) system\n", _odd_mode("I"), _odd_mode("F"),
        _odd_mode("CMYK"), _odd_mode("1"),
    ]))  # fmt: skip


def _odd_mode(mode: str) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (40, 40)).save(file, "TIFF")
    return file.getvalue()


def of_shard(rng: random.Random, path: Path) -> None:
    """Write a tar whose members lead elsewhere, or are no pictures."""
    with tarfile.open(path, "w") as tar:
        for number in range(3):
            names = f"{number}.png", "../../out.png", "/etc/x.png", "a\nb.png", "\udcff.png"
            member = tarfile.TarInfo(rng.choice(names))
            kinds = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.REGTYPE
            member.type = rng.choice(kinds)
            member.linkname = "/etc/passwd"
            member.pax_headers = rng.choice([{}, {"path": "x" * 5000 + ".png"}, {"comment": "\n"}])
            content = rng.choice([b"", b"no picture", bytes(100)])
            member.size = len(content) if member.type == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(content))


def of_list(rng: random.Random, path: Path) -> None:
    """Write a list of what cannot be read."""
    path.write_text("path,x\n" * (path.suffix == ".csv") + "\n".join([
        rng.choice(["/dev/zero", "/proc/self/mem", "../../etc/passwd", "x" * 300 + ".png", "\0.png", "photos", "-", '"',
                    "https://example.invalid/a.png", "photos/0.png,,,", "~/a.png", "x\0" * 70_000])
        for _ in range(rng.choice([1, 30]))
    ]))  # fmt: skip
