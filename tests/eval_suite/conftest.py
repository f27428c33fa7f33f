"""One thread: the networks here are tiny, and threads that wait for each other cost more than they bring.

Studies whose nodes take no time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from study_folder import StudyFolder


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def study(tmp_path: Path) -> StudyFolder:
    """A study whose nodes take no time."""
    return StudyFolder(tmp_path)
