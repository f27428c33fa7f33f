"""What a study knows of a detection recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import toy_project
from tiny_coco import RECIPE

from d2_projects.engine import config
from d2_projects.instance_segmentation import InstanceSegmentation
from eval_suite.task import Work
from eval_suite.tasks.coco_mask_rcnn import CocoMaskRcnn
from spark.errors import UserError


def test_the_number_of_gpus_decides_where_it_scales_the_recipe(tmp_path: Path) -> None:
    recipe = str(Path(RECIPE).with_name("mask_rcnn_r50_fpn.py"))
    of = {gpus: CocoMaskRcnn().prepare(Work(recipe, tmp_path, gpus=gpus)) for gpus in (0, 1, 8)}
    assert of[0].settings == of[8].settings != of[1].settings
    assert of[1].length == 8 * of[8].length


def test_the_task_is_its_projects(tmp_path: Path) -> None:
    assert (CocoMaskRcnn.name, CocoMaskRcnn.version) == (InstanceSegmentation.name, InstanceSegmentation.version)
    recipe = tmp_path / "recipe.py"
    recipe.write_text(toy_project.RECIPE)
    with pytest.raises(UserError, match="is of the task toy_brightness, not of coco_mask_rcnn"):
        CocoMaskRcnn().prepare(Work(str(recipe), tmp_path))


def test_runs_that_differ_in_seed_and_weights_share_one_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study of hundreds of runs is planned in seconds; what each is does not depend on which was read first."""
    read: list[str] = []

    def counting(recipe: str, overrides: Sequence[str]) -> config.DetectConfig:
        read.append(recipe)
        return load(recipe, overrides)

    load = config.load
    works = [Work(RECIPE, tmp_path / f"run{seed}", {"train.max_iter": iterations}, seed, init)
             for iterations in (3, 4) for seed in (0, 1) for init in ("scratch", "runs/encoder")]
    alone = [CocoMaskRcnn().prepare(work) for work in works]
    monkeypatch.setattr(config, "load", counting)
    task = CocoMaskRcnn()
    assert [task.prepare(work) for work in works] == alone
    assert len(read) == 2
    assert [prepared.settings["seed"] for prepared in alone] == [0, 0, 1, 1] * 2
    with pytest.raises(UserError, match=r"init=.* is too long"):
        task.prepare(dataclasses.replace(works[0], init="x" * 300))
