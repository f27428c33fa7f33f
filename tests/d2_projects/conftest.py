"""Fixtures for tests of detection."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from d2_projects.data.demo import demo_detection


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """The networks here are tiny, and threads that wait for each other cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's detection data, made once; look at it, do not touch it."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder / demo_detection()
