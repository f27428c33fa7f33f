"""What tells runs apart, and their repetitions from others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spark.config.pretrain import PretrainConfig
from spark.config.recipe import with_values
from spark.errors import UserError
from spark.runs.folder import CHECKPOINTS, check_run_folder, protocol_hash, recipe_hash

CONFIG = with_values(PretrainConfig(), {"out": "runs/a", "data.root": "photos"})


def test_a_run_of_another_kind_is_not_compared_setting_by_setting(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINTS).mkdir()
    (tmp_path / "config.yaml").write_text("{out: x, seed: 0, labels: {fraction: null}}")
    with pytest.raises(UserError, match=r"another kind \(its config.yaml has out, seed, labels\)") as told:
        check_run_folder(tmp_path, CONFIG, fresh=False, yields=())
    assert "was" not in str(told.value)


@pytest.mark.parametrize(("change", "same_run", "same_recipe"), [
    ({"out": "elsewhere", "data.workers": 3}, True, True),
    ({"seed": 7}, False, True),
    ({"train.epochs": 7}, False, False),
])
def test_a_recipe_is_what_repetitions_by_other_seeds_share(
    change: dict[str, Any], same_run: bool, same_recipe: bool
) -> None:
    other = with_values(CONFIG, change)
    assert (protocol_hash(other) == protocol_hash(CONFIG)) == same_run
    assert (recipe_hash(other, "images") == recipe_hash(CONFIG, "images")) == same_recipe
    assert recipe_hash(CONFIG, "other images") != recipe_hash(CONFIG, "images")
