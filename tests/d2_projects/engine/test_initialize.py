"""`init=`: what a detector starts from, and clear refusals of what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from paths import ROOT

from d2_projects.engine.config import DetectConfig, load
from d2_projects.engine.initialize import Backbone, backbone_of, start_of
from spark.errors import UserError
from spark.formats.detectron2 import from_timm
from spark.formats.encoder import Encoder, EncoderInfo, save_encoder

RECIPES = ROOT / "d2_projects" / "mask_rcnn"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEMO, TIMM_FPN, C4 = "mask_rcnn_r18_demo", "mask_rcnn_timm_fpn", "mask_rcnn_r50_c4"


def config(recipe: str, *overrides: str) -> DetectConfig:
    return load(str(RECIPES / f"{recipe}.py"), overrides)


def export(folder: Path, model: str, **changes: Any) -> Path:
    torch.manual_seed(1)
    state = timm.create_model(model, num_classes=0, **changes.get("options", {})).state_dict()
    fields = {"in_chans": 3, "input_size": (64, 64), "mean": MEAN, "std": STD, "method": "spark", "epochs": 7,
              "config_hash": "abc", "code_version": "test", **changes}
    save_encoder(folder, Encoder(state, EncoderInfo(model, **fields)))
    return folder


@pytest.mark.parametrize(("recipe", "overrides", "expected"), [
    (DEMO, (), Backbone("resnet18", {}, True)),
    (C4, (), Backbone("resnet50", {}, True)),
    ("mask_rcnn_r101_fpn", ("model.backbone.bottom_up.stages.depth=152",), Backbone("resnet152", {}, True)),
    (TIMM_FPN, (), Backbone("resnet50d", {}, False)),
    (TIMM_FPN, ("model.backbone.bottom_up.options={stem_type: deep}",),
     Backbone("resnet50d", {"stem_type": "deep"}, False)),
])
def test_a_recipes_network_is_known(recipe: str, overrides: tuple[str, ...], expected: Backbone) -> None:
    assert backbone_of(config(recipe, *overrides).cfg) == expected


def test_scratch_is_what_pretraining_starts_from() -> None:
    """Branches are closed: the last norm of each block is zero, which Detectron2's own weights do not have."""
    start = start_of(config(DEMO, "seed=4"))
    assert start.weights is not None
    torch.manual_seed(4)
    expected = from_timm(timm.create_model("resnet18", num_classes=0).state_dict()).state
    assert start.weights.keys() == expected.keys()
    assert all(torch.equal(start.weights[name], expected[name]) for name in expected)
    assert not start.weights["res2.0.conv2.norm.weight"].any()
    assert start.record.kind == "scratch"


def test_scratch_leaves_the_random_numbers_of_the_run_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    start_of(config(DEMO))
    assert torch.equal(torch.rand(1), expected)


def test_a_timm_backbone_is_random_as_it_is_built() -> None:
    start = start_of(config(TIMM_FPN))
    assert (start.weights, start.record.kind) == (None, "scratch")


def test_detectrons_own_random_weights_are_a_kind_of_their_own() -> None:
    start = start_of(config(DEMO, "init=detectron2"))
    assert (start.weights, start.record.kind) == (None, "detectron2")


@pytest.mark.parametrize(("recipe", "model", "name"), [
    (DEMO, "resnet18", "stem.conv1.weight"), (TIMM_FPN, "resnet18d", "conv1.0.weight"),
])
def test_an_encoder_comes_in_the_recipes_naming(tmp_path: Path, recipe: str, model: str, name: str) -> None:
    overrides = [f"init={export(tmp_path, model)}"]
    if recipe == TIMM_FPN:
        overrides.append(f"model.backbone.bottom_up.name={model}")
    start = start_of(config(recipe, *overrides))
    assert start.weights is not None
    assert name in start.weights
    assert (start.record.kind, start.record.pretrained_epochs) == ("spark", 7)
    assert start.record.checkpoint_sha256


def test_an_empty_text_is_a_text() -> None:
    """As the message about networks without batch norms asks for."""
    chosen = config(TIMM_FPN, "model.backbone.bottom_up.norm=")
    assert chosen.cfg.model.backbone.bottom_up.norm == ""


def test_a_checkpoint_of_another_format_is_read(tmp_path: Path) -> None:
    network = timm.create_model("resnet18", num_classes=10)
    torch.save(network.state_dict(), tmp_path / "theirs.pth")
    start = start_of(config(DEMO, f"init={tmp_path / 'theirs.pth'}"))
    assert start.weights is not None
    assert start.weights["res2.0.conv1.weight"].equal(network.state_dict()["layer1.0.conv1.weight"])


@pytest.mark.parametrize(("recipe", "model", "changes", "message"), [
    (DEMO, "resnet34", {}, "is a resnet34, but .* has a resnet18: choose a recipe with that network"),
    (DEMO, "resnet18d", {}, "cannot hold a resnet18d: use .*mask_rcnn_timm_fpn.py with .*bottom_up.name=resnet18d"),
    (DEMO, "convnext_atto", {}, "cannot hold a convnext_atto: use .*mask_rcnn_timm_fpn.py"),
    (DEMO, "resnet18", {"options": {"stem_type": "deep"}}, "which Detectron2's own ResNet does not have"),
    (DEMO, "resnet18", {"mean": (0.5, 0.5, 0.5)}, r"was trained with model.pixel_mean=\[127.5, 127.5, 127.5\]"),
    (TIMM_FPN, "resnet18d", {}, "has a resnet50d: pass model.backbone.bottom_up.name=resnet18d"),
])
def test_an_encoder_that_does_not_fit_is_refused(
    tmp_path: Path, recipe: str, model: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        start_of(config(recipe, f"init={export(tmp_path, model, **changes)}"))
    assert "\n" not in str(raised.value)


def test_options_that_differ_are_told(tmp_path: Path) -> None:
    encoder = export(tmp_path, "resnet18d", options={"stem_type": "deep"})
    with pytest.raises(UserError, match=r"pass model\.backbone\.bottom_up\.options='\{'stem_type': 'deep'\}'"):
        start_of(config(TIMM_FPN, f"init={encoder}", "model.backbone.bottom_up.name=resnet18d"))


@pytest.mark.parametrize(("recipe", "init", "message"), [
    (TIMM_FPN, "detectron2", "has timm's resnet50d; pass init=scratch"),
    (DEMO, "timm:resnet1888", "unknown model. Did you mean"),
    (DEMO, "timm:resnet34", "is a resnet34, but"),
    (DEMO, "scratchh", "Did you mean scratch"),
    (DEMO, "nowhere", "does not exist: give scratch, timm:NAME"),
])
def test_an_init_that_is_none_is_refused(recipe: str, init: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        start_of(config(recipe, f"init={init}"))


def test_timms_weights_are_supervised(monkeypatch: pytest.MonkeyPatch) -> None:
    state = timm.create_model("resnet18", num_classes=0).state_dict()
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **options: create(name, **options))
    start = start_of(config(DEMO, "init=timm:resnet18"))
    assert start.weights is not None
    assert start.weights.keys() == from_timm(state).state.keys()
    assert (start.record.kind, start.record.checkpoint) == ("supervised", "timm:resnet18")
