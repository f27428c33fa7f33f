"""The images of the runs in this folder, drawn anew wherever a test needs them, always alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 40


def make_class_folders(root: Path, train: int = 6, val: int = 3) -> Path:
    """Write `train/<class>/` and `val/<class>/` with so many smooth images of each of two classes; return `root`."""
    random = np.random.RandomState(0)
    for split, count in (("train", train), ("val", val)):
        for label in ("dark", "light"):
            folder = root / split / label
            folder.mkdir(parents=True, exist_ok=True)
            low = 0 if label == "dark" else 96
            for number in range(count):
                coarse = Image.fromarray(random.randint(low, low + 160, (4, 4, 3)).astype(np.uint8))
                coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{number:02d}.png")
    return root
