"""Labeled images whose classes are colors: nothing is quicker to learn."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

COLORS = {"blue": (30, 30, 200), "green": (30, 200, 30), "red": (200, 30, 30)}


def picture(label: str, rng: np.random.Generator, size: int = 40, noise: float = 40) -> Image.Image:
    """Return a noisy square of a class's color."""
    pixels = COLORS[label] + rng.normal(0, noise, (size, size, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write_folders(root: Path, train: int, val: int, labels: tuple[str, ...] = tuple(COLORS)) -> Path:
    """Write so many images of each class to `train/<class>/` and `val/<class>/`."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label in labels:
            folder = root / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                picture(label, rng).save(folder / f"{index:02d}.png")
    return root


def write_shard(shard: Path, folder: Path, numbers: bool = False) -> None:
    """Pack a folder of class folders into a tar: as they lie, or flat with the number of the class beside each."""
    with tarfile.open(shard, "w") as tar:
        for index, file in enumerate(sorted(folder.rglob("*.png"))):
            label = sorted(COLORS).index(file.parent.name)
            name = f"{index:06d}.png" if numbers else f"{file.parent.name}/{file.name}"
            members = [(name, file.read_bytes())]
            if numbers:
                members.append((f"{index:06d}.cls", f"{label}\n".encode()))
            for member, content in members:
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
