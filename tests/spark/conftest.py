"""Fixtures of the pre-training tests: small pictures made on the fly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PICTURES = 12


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Return a folder with two sub-folders of smooth random pictures, of several sizes."""
    folder = tmp_path / "pictures"
    random = np.random.RandomState(0)
    for number in range(PICTURES):
        coarse = random.randint(0, 256, (4, 4, 3), dtype=np.uint8)
        destination = folder / "ab"[number % 2] / f"{number:02d}.png"
        destination.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((72 + number, 80), Image.Resampling.BICUBIC).save(destination)
    return folder
