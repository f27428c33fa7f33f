"""Warm-up ends before the training does."""

from __future__ import annotations

import pytest

from eval_suite.classification.finetune_config import FinetuneConfig
from spark.config.recipe import load_recipe
from spark.training.loop import Schedule


@pytest.mark.parametrize(
    ("epochs", "warmup", "steps"), [(10, 2, 20), (10, 0, 0), (10, 9, 90), (10, 10, 10), (1, 40, 1), (1, 0, 0)]
)
def test_warm_up_is_shorter_than_the_training(epochs: int, warmup: int, steps: int) -> None:
    schedule = Schedule(0.1, epochs, warmup, 4, 10, 10.0)
    assert schedule.warmup_steps(10 * epochs) == steps
    assert bool(schedule.notes(10 * epochs)) == (warmup >= epochs)


def test_what_was_shortened_is_told() -> None:
    assert Schedule(0.1, 1, 40, 4, 10, 10.0).notes(10) == [
        "train.warmup_epochs=40 is not less than train.epochs=1: warm-up is shortened to 1 step of 10"
    ]


def test_a_look_at_a_recipe_needs_one_setting() -> None:
    config = load_recipe(FinetuneConfig, None, ["train.epochs=1", "out=run", "data.root=photos"])
    assert (config.train.epochs, config.train.warmup_epochs) == (1, 5)
