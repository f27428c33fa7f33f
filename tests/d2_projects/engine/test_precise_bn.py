"""Short runs are evaluated with precise statistics, though their recipe does not ask for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_coco import RECIPE, TINY

from d2_projects.engine.config import DetectConfig, load
from d2_projects.engine.precise_bn import BATCHES, with_precise_bn
from d2_projects.engine.record import protocol_of
from d2_projects.engine.run import run
from d2_projects.engine.run_folder import finished
from spark.runs.record import load_record
from spark.utils.provenance import content_hash

UNASKED = """import copy
from d2_projects.mask_rcnn.mask_rcnn_r18_demo import (
    data, dataloader, lr_multiplier, model, optimizer, project, train)
model, train = copy.deepcopy(model), copy.deepcopy(train)  # the module's own are other recipes', too
train.precise_bn_iter = 0
"""
FROZEN = """
model.backbone.bottom_up.stem.norm = model.backbone.bottom_up.stages.norm = model.backbone.norm = "FrozenBN"
model.roi_heads.box_head.conv_norm = model.roi_heads.mask_head.conv_norm = "GN"
"""
FEW = [word for word in TINY if "precise_bn_iter" not in word]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "unasked.py"
    file.write_text(UNASKED)
    return file


def resolved(recipe: str | Path, coco: Path, *changes: str) -> tuple[DetectConfig, DetectConfig, str]:
    """Return a configuration as it is read, as it runs, and the protocol of what it runs as."""
    before = load(str(recipe), [*FEW, f"data.root={coco}", *changes])
    data = before.project.check(before.cfg.data)
    after, notes = with_precise_bn(before, data)
    assert len(notes) == (after is not before)
    return before, after, content_hash(protocol_of(after, data))


def test_short_runs_have_them_and_another_protocol(recipe: Path, coco: Path, tmp_path: Path) -> None:
    out = [f"out={tmp_path / 'run'}"]
    before, after, protocol = resolved(recipe, coco, *out)
    assert (before.cfg.train.precise_bn_iter, after.cfg.train.precise_bn_iter) == (0, BATCHES)
    never, kept, other = resolved(recipe, coco, *out, "train.precise_bn_iter=0")  # who says so has the say
    assert kept is never
    assert other != protocol


@pytest.mark.parametrize("change", ["train.max_iter=66", "train.precise_bn_iter=3"])
def test_others_stay_as_they_are(recipe: Path, coco: Path, change: str) -> None:
    before, after, _ = resolved(recipe, coco, change)
    assert after is before


def test_norms_that_do_not_learn_need_none(recipe: Path, coco: Path) -> None:
    recipe.write_text(UNASKED + FROZEN)
    before, after, _ = resolved(recipe, coco)
    assert after is before


def test_a_run_that_an_earlier_version_began_goes_on_as_it_began(recipe: Path, coco: Path, tmp_path: Path) -> None:
    out = [f"out={tmp_path / 'run'}"]
    before, _, _ = resolved(recipe, coco, *out)
    old = content_hash(protocol_of(before, before.project.check(before.cfg.data)))
    finished(before, {"protocol": old, "seed": 0, "init": None})
    assert resolved(recipe, coco, *out)[2] == old
    assert resolved(recipe, coco, *out, "resume=never")[2] != old


def test_such_a_run_is_evaluated_with_them(recipe: Path, coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("d2_projects.engine.precise_bn.BATCHES", 2)
    overrides = [*FEW, f"data.root={coco}", f"out={tmp_path / 'run'}"]
    path = run(str(recipe), overrides)
    assert path is not None
    record = load_record(path)
    assert "train.precise_bn_iter=2" in capsys.readouterr().err
    assert "precise_bn_iter: 2" in (tmp_path / "run/config.yaml").read_text()
    assert run(str(recipe), overrides) == path  # finished
    assert load_record(path) == record


def test_the_demos_recipe_asks_for_them_itself(coco: Path) -> None:
    before, after, _ = resolved(RECIPE, coco)
    assert after is before
