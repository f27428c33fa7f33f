"""What a study knows of a detection recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import toy_project
from tiny_coco import RECIPE

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
