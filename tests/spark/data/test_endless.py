"""Data that would be waited for, or counted, without end is refused at once."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from spark.data.center_crop import read_center
from spark.data.file_list import FileSource
from spark.data.shards import expand_braces
from spark.errors import UserError


@pytest.mark.parametrize("braces", [
    "{0..99999999}", "{99999999..0}", f"{{0..{'9' * 5000}}}", "{0..999}{0..999}", "{a,b}" * 40,
])  # fmt: skip
def test_braces_that_stand_for_too_much(braces: str) -> None:
    begun = time.monotonic()
    with pytest.raises(UserError, match="stands for more than 100,000 shards"):
        expand_braces(f"train-{braces}.tar")
    assert time.monotonic() - begun < 1


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(OSError, match="pipe"):
        FileSource(tmp_path, ["x.png"]).open(0)
    with pytest.raises(UserError, match="pipe"):
        read_center(tmp_path / "x.png", 3, 32, 32)
