"""What instance segmentation says of its data and numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_coco import RECIPE, TINY

from d2_projects.engine.run import run
from d2_projects.instance_segmentation import InstanceSegmentation
from spark.errors import UserError


def test_a_number_of_classes_that_is_not_the_datas_is_refused(coco: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"num_classes=7, but .* has 2 categories; leave it out"):
        run(RECIPE, [*TINY, f"out={tmp_path / 'run'}", f"data.root={coco}", "model.roi_heads.num_classes=7"])
    assert not (tmp_path / "run").exists()


def test_a_detector_that_finds_nothing_has_an_ap_of_zero() -> None:
    names = [f"{task}/{name}" for task in ("bbox", "segm") for name in ("AP", "AP50", "AP75")]
    nothing = dict.fromkeys([*names, "bbox/APl"], float("nan"))  # no large objects: not a number of this data
    known = InstanceSegmentation().known({**nothing, "bbox/AP50": 12.5})
    assert known == {**dict.fromkeys(names, 0.0), "bbox/AP50": 12.5}
    assert InstanceSegmentation().headline({**known, "bbox/APs": 1.0}) == known
