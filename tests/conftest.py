"""Fixtures that tests of several packages share."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_coco


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A fresh tiny data set in COCO's layout, which a test may damage."""
    return tiny_coco.make(tmp_path / "coco")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let files that start processes of their own come first: they take longest, and nobody should wait for them."""
    starts_processes = {
        path: "import subprocess" in path.read_text(encoding="utf-8") for path in {item.path for item in items}
    }
    items.sort(key=lambda item: not starts_processes[item.path])
