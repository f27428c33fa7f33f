"""Fixtures that tests of several packages share."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_coco


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A fresh tiny data set in COCO's layout, which a test may damage."""
    return tiny_coco.make(tmp_path / "coco")
