"""What tells runs apart, and their repetitions from others."""

from __future__ import annotations

from pathlib import Path

import pytest

from spark.config.recipe import with_values
from spark.errors import UserError
from spark.methods.spark.config import SparKConfig
from spark.runs.folder import CHECKPOINTS, check_run_folder, told_if_gone

CONFIG = with_values(SparKConfig(), {"out": "runs/a", "data.root": "photos"})


def test_a_run_of_another_kind_is_not_compared_setting_by_setting(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINTS).mkdir()
    (tmp_path / "config.yaml").write_text("{out: x, seed: 0, labels: {fraction: null}}")
    with pytest.raises(UserError, match=r"another kind \(its config.yaml has out, seed, labels\)") as told:
        check_run_folder(tmp_path, CONFIG, fresh=False, yields=())
    assert "was" not in str(told.value)


@pytest.mark.parametrize(("vanishes", "told"), [(True, "is gone: it was removed or renamed"), (False, "cannot write")])
def test_what_cannot_be_written_into_a_folder_that_is_gone_is_told_as_such(
    vanishes: bool, told: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()

    @told_if_gone(run)
    def write() -> None:
        if vanishes:
            run.rmdir()
        raise UserError(f"cannot write '{run}/checkpoints/last.pt': No such file or directory")

    with pytest.raises(UserError, match=told):
        write()
