"""What hangs on the batch follows it to fewer GPUs, and nothing else does."""

from __future__ import annotations

from typing import Any

import pytest
from detectron2.config import LazyConfig, instantiate
from omegaconf import DictConfig, OmegaConf
from paths import ROOT

from d2_projects.data.coco import DataOptions
from d2_projects.options import complete
from d2_projects.solver.scaling import scaled, set_by_hand

RECIPES = ROOT / "d2_projects" / "mask_rcnn"


def recipe(name: str, **values: Any) -> DictConfig:
    cfg = complete(LazyConfig.load(str(RECIPES / f"{name}.py")), DataOptions)
    for key, value in values.items():
        OmegaConf.update(cfg, key.replace("__", "."), value)
    return cfg


@pytest.mark.parametrize(("name", "gpus", "batch", "rate"), [
    ("mask_rcnn_r50_fpn", 1, 2, 2.5e-4 / 8**0.5),  # AdamW: the square root
    ("mask_rcnn_r50_fpn_sgd_1x", 1, 2, 0.02 / 8),  # SGD: linear
    ("mask_rcnn_r50_fpn_sgd_1x", 3, 6, 0.02 * 3 / 8),
])
def test_fewer_gpus_see_as_many_images(name: str, gpus: int, batch: int, rate: float) -> None:
    before = recipe(name)
    after, changes = scaled(before, gpus)
    longer = 16 / batch
    assert after.dataloader.train.total_batch_size == batch
    assert after.optimizer.lr == pytest.approx(rate, rel=1e-5)
    assert after.train.max_iter == round(90_000 * longer)
    assert after.train.eval_period == round(5000 * longer)
    assert after.train.checkpointer.period == 5000  # a kill costs no more
    assert after.train.precise_bn_iter == round(before.train.precise_bn_iter * longer)
    old, new = instantiate(before.lr_multiplier), instantiate(after.lr_multiplier)
    for where in (0.0, 0.005, 0.1, 0.66, 0.67, 0.88, 0.9):  # the same shape: warm-up and steps at the same shares
        assert new(where) == pytest.approx(old(where))
    told = {change.key: (change.old, change.new) for change in changes}
    assert told["warm-up iterations"] == (1000, round(1000 * longer))
    assert told["lr_multiplier.scheduler.milestones.0"] == (60_000, round(60_000 * longer))
    assert before == recipe(name)  # the given one is left as it is
    assert scaled(after, gpus)[1] == []  # and the new one is meant for what is there


def test_changes_are_told_with_reason() -> None:
    told = [str(change) for change in scaled(recipe("mask_rcnn_r50_fpn"), 1)[1]]
    assert told[0] == "dataloader.train.total_batch_size: 16 -> 2 (2 images for each GPU at a time, with 1 GPU " \
                      "instead of 8)"
    assert told[1] == "optimizer.lr: 0.00025 -> 8.83883e-05 (with the square root of the batch, as for Adam)"
    assert told[2] == "train.max_iter: 90000 -> 720000 (as many images in all)"


@pytest.mark.parametrize(("gpus", "values", "by_hand"), [
    (8, {}, ()),
    (16, {}, ()),
    (0, {}, ()),  # CPUs
    (1, {"train__auto_scale": False}, ()),
    (1, {"train__reference_world_size": 0}, ()),
    (2, {"train__accumulate": 4}, ()),  # the whole batch, in parts
    (1, {}, ("optimizer.lr",)),
    (1, {}, ("lr_multiplier.scheduler.num_updates",)),
])
def test_nothing_is_scaled(gpus: int, values: dict[str, Any], by_hand: tuple[str, ...]) -> None:
    cfg = recipe("mask_rcnn_r50_fpn", **values)
    after, changes = scaled(cfg, gpus, by_hand)
    assert changes == []
    assert after == cfg


def test_what_was_set_by_hand_stays() -> None:
    cfg = recipe("mask_rcnn_r50_fpn", train__eval_period=700)
    after, changes = scaled(cfg, 1, ("train.eval_period", "train.checkpointer.period"))
    assert after.train.eval_period == 700
    assert after.dataloader.train.total_batch_size == 2
    assert "train.eval_period" not in {change.key for change in changes}


def test_whoever_sets_the_schedule_is_told_that_nothing_was_scaled() -> None:
    cfg = recipe("mask_rcnn_r50_fpn")
    assert set_by_hand(cfg, 1, ("train.max_iter", "optimizer.lr", "train.seed")) == ["optimizer.lr", "train.max_iter"]
    assert set_by_hand(cfg, 8, ("optimizer.lr",)) == []


def test_what_follows_another_key_is_not_scaled_twice() -> None:
    cfg = recipe("mask_rcnn_r50_fpn_sgd_1x", lr_multiplier__scheduler__num_updates="${train.max_iter}")
    after, changes = scaled(cfg, 4)
    assert after.lr_multiplier.scheduler.num_updates == after.train.max_iter == 180_000
    assert "lr_multiplier.scheduler.num_updates" not in {change.key for change in changes}
