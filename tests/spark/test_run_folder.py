"""What tells runs apart, and their repetitions from others."""

from __future__ import annotations

from typing import Any

import pytest

from spark.config import with_values
from spark.pretrain_config import PretrainConfig
from spark.run_folder import protocol_hash, recipe_hash

CONFIG = with_values(PretrainConfig(), {"out": "runs/a", "data.root": "photos"})


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
