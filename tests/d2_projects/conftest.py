"""Fixtures for tests of detection."""

from __future__ import annotations

from pathlib import Path

import pytest

from d2_projects.demo import demo_detection


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's detection data, made once; look at it, do not touch it."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder / demo_detection()
