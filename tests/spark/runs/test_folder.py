"""What tells runs apart, and their repetitions from others."""

from __future__ import annotations

from pathlib import Path

import pytest

from spark.config.recipe import with_values
from spark.errors import UserError
from spark.methods.spark.config import SparKConfig
from spark.runs.folder import CHECKPOINTS, check_run_folder

CONFIG = with_values(SparKConfig(), {"out": "runs/a", "data.root": "photos"})


def test_a_run_of_another_kind_is_not_compared_setting_by_setting(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINTS).mkdir()
    (tmp_path / "config.yaml").write_text("{out: x, seed: 0, labels: {fraction: null}}")
    with pytest.raises(UserError, match=r"another kind \(its config.yaml has out, seed, labels\)") as told:
        check_run_folder(tmp_path, CONFIG, fresh=False, yields=())
    assert "was" not in str(told.value)
