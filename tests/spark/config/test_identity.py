"""An id changes exactly when numbers may change."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import pytest

from spark.config.identity import acting, added, deciding, deciding_hash, first_names, flat, without
from spark.config.recipe import with_values
from spark.methods.spark.config import SparKConfig

CONFIG = with_values(SparKConfig(), {"out": "runs/a", "data.root": "photos"})


@dataclass
class Inner:
    rate: float = 0.1
    late: dict[str, int] = added(dict)


@dataclass
class Settings:
    out: str = "run"
    inner: Inner = field(default_factory=Inner)
    later: str = added("as before")


def repeated(config: SparKConfig, images: str = "images") -> str:
    return deciding_hash(config, config.FREE | {"seed"}, images=images)


@pytest.mark.parametrize(("change", "same_run", "same_recipe"), [
    ({"out": "elsewhere", "data.workers": 3, "engine": "masked", "probe.epochs": 3}, True, True),
    ({"seed": 7}, False, True),
    ({"train.epochs": 7}, False, False),
    ({"model.name": "resnet18"}, False, False),
])
def test_a_recipe_is_what_repetitions_by_other_seeds_share(
    change: dict[str, Any], same_run: bool, same_recipe: bool
) -> None:
    other = with_values(CONFIG, change)
    assert (deciding_hash(other, other.FREE) == deciding_hash(CONFIG, CONFIG.FREE)) == same_run
    assert (repeated(other) == repeated(CONFIG)) == same_recipe
    assert repeated(CONFIG, "other images") != repeated(CONFIG)


def test_a_setting_that_came_later_enters_only_with_another_value() -> None:
    assert deciding(Settings()) == {"out": "run", "inner": {"rate": 0.1}}
    changed = Settings(inner=Inner(late={"a": 1}), later="new")
    assert deciding(changed) == {"out": "run", "inner": {"rate": 0.1, "late": {"a": 1}}, "later": "new"}


def test_free_settings_and_groups_are_left_out() -> None:
    assert deciding(Settings(later="new"), {"out", "inner.rate"}) == {"inner": {}, "later": "new"}
    assert deciding({"a": {"b": {"c": 1, "d": 2}}, "e": 3}, {"a.b.c", "e"}) == {"a": {"b": {"d": 2}}}
    assert without({"a": {"b": 1}, "ab": 2}, {"a"}) == {"ab": 2}


def test_flat_names_are_dotted_and_empty_groups_have_none() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}]}) == {"a.b": 1, "d": [1, {"e": 2}]}


def test_callables_keep_their_first_name() -> None:
    moved = {"collections.OrderedDict": "old.place.Ordered"}
    tree = {"params": {"_target_": OrderedDict, "n": 1}, "hooks": [{"_target_": "collections.OrderedDict"}]}
    assert first_names(tree, moved) == {
        "params": {"_target_": "old.place.Ordered", "n": 1}, "hooks": [{"_target_": "old.place.Ordered"}]}
    assert first_names({"_target_": OrderedDict}, {}) == {"_target_": OrderedDict}


@pytest.mark.parametrize(("resolved", "entering"), [
    ({}, {}), ({"precision": "float32", "engine": "compact"}, {}),
    ({"precision": "bfloat16", "engine": "masked"}, {"precision": "bfloat16"}),
])
def test_what_auto_came_to_enters_where_it_acts(resolved: dict[str, str], entering: dict[str, str]) -> None:
    assert acting(resolved) == entering
