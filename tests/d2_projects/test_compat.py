"""Detectron2 is kept quiet, and nothing else."""

from __future__ import annotations

import logging
import warnings

import pytest

from d2_projects.compat import quiet_detectron2


def test_what_detectron2_provokes_is_kept_off_the_terminal(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("torch.fx._symbolic_trace")
    with warnings.catch_warnings(record=True) as seen, quiet_detectron2():
        warnings.warn("The given NumPy array is not writable, and …", stacklevel=1)
        warnings.warn("another", stacklevel=1)
        logger.warning("is_fx_tracing will return true for both …")
    assert [str(warning.message) for warning in seen] == ["another"]
    logger.warning("heard again")
    assert caplog.messages == ["heard again"]
