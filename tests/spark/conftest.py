"""Fixtures of the pre-training tests: small pictures made on the fly."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PICTURES = 12


def smooth_pictures() -> Iterator[Image.Image]:
    """Yield random pictures of 4x4 pixels without end, always the same ones: to be enlarged."""
    random = np.random.RandomState(0)
    while True:
        yield Image.fromarray(random.randint(0, 256, (4, 4, 3), dtype=np.uint8))


@pytest.fixture(scope="session")
def drawn_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two sub-folders of smooth random pictures, of several sizes; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("drawn") / "pictures"
    for number, coarse in enumerate(islice(smooth_pictures(), PICTURES)):
        destination = folder / "ab"[number % 2] / f"{number:02d}.png"
        destination.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((72 + number, 80), Image.Resampling.BICUBIC).save(destination)
    return folder


@pytest.fixture
def pictures(drawn_pictures: Path, tmp_path: Path) -> Path:
    """Return a copy of the drawn pictures, in the test's own folder."""
    return shutil.copytree(drawn_pictures, tmp_path / "pictures")


@pytest.fixture(scope="module")
def photos(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a flat folder of smooth random pictures, all of one size; the module's PHOTOS says how many."""
    folder = tmp_path_factory.mktemp("photos")
    for number, coarse in enumerate(islice(smooth_pictures(), request.module.PHOTOS)):
        coarse.resize((80, 80), Image.Resampling.BICUBIC).save(folder / f"{number:02d}.png")
    return folder
