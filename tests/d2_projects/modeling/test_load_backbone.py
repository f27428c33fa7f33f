"""An encoder's weights go into a detector completely, or not at all."""

from __future__ import annotations

import pytest
import timm
import torch
from detectron2.config import LazyConfig, instantiate
from paths import ROOT
from torch import Tensor, nn

from d2_projects.modeling.load_backbone import load_backbone
from spark.errors import UserError
from spark.formats.detectron2 import from_timm

RECIPES = ROOT / "d2_projects" / "mask_rcnn"


def timm_state(name: str) -> dict[str, Tensor]:
    torch.manual_seed(3)
    return timm.create_model(name, num_classes=0).state_dict()


def detector(recipe: str, **bottom_up: object) -> nn.Module:
    cfg = LazyConfig.load(str(RECIPES / f"{recipe}.py"))
    cfg.model.backbone.get("bottom_up", cfg.model.backbone).update(**bottom_up)
    return instantiate(cfg.model)


@pytest.mark.parametrize(("recipe", "changes", "place"), [
    ("mask_rcnn_timm_fpn", {"name": "resnet18d"}, "backbone.bottom_up.net."),
    ("mask_rcnn_timm_fpn", {"name": "regnety_002", "norm": "FrozenBN", "frozen_stages": 2}, "backbone.bottom_up.net."),
    ("mask_rcnn_convnext_b_fpn_3x", {"name": "convnext_atto"}, "backbone.bottom_up.net."),
])
def test_a_timm_backbone_takes_timms_names(recipe: str, changes: dict[str, object], place: str) -> None:
    model, state = detector(recipe, **changes), timm_state(str(changes["name"]))
    load_backbone(model, state)
    loaded = {key.removeprefix(place): tensor for key, tensor in model.state_dict().items() if key.startswith(place)}
    assert {key for key in state if key not in loaded and not key.endswith("num_batches_tracked")} == {
        key for key in state if key.startswith("head.")}
    for key, tensor in loaded.items():
        torch.testing.assert_close(tensor, state[key], rtol=0, atol=0)


def test_a_c4_detector_has_its_last_stage_in_the_heads() -> None:
    model, state = detector("mask_rcnn_r50_c4"), from_timm(timm_state("resnet50")).state
    load_backbone(model, state)
    own = model.state_dict()
    torch.testing.assert_close(own["backbone.res4.5.conv2.weight"], state["res4.5.conv2.weight"])
    torch.testing.assert_close(own["roi_heads.res5.2.conv2.weight"], state["res5.2.conv2.weight"])
    assert isinstance(model.roi_heads.res5.norm, nn.SyncBatchNorm)  # type: ignore[union-attr]
    assert sum(key.startswith(("backbone.", "roi_heads.res5.")) for key in own) == len(state) + 5


def test_frozen_batch_norms_take_the_statistics() -> None:
    model, state = detector("mask_rcnn_r50_fpn_sgd_1x"), from_timm(timm_state("resnet50")).state
    state["res3.0.conv1.norm.running_var"].fill_(2)
    load_backbone(model, state)
    assert model.state_dict()["backbone.bottom_up.res3.0.conv1.norm.running_var"][0] == 2


@pytest.mark.parametrize(("change", "message"), [
    (lambda state: state.pop("layer4.1.conv2.weight"), r"'layer4\.1\.conv2\.weight' is missing"),
    (lambda state: state.update(extra=torch.zeros(1)), "'extra' has no place in the model"),
    (lambda state: state.update({"bn1.weight": torch.zeros(3)}), r"'bn1\.weight' is .* instead of"),
])
def test_what_does_not_fit_is_named_and_nothing_loaded(change: object, message: str) -> None:
    model, state = detector("mask_rcnn_timm_fpn", name="resnet18"), timm_state("resnet18")
    before = model.state_dict()["backbone.bottom_up.net.conv1.weight"].clone()
    change(state)  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        load_backbone(model, state)
    torch.testing.assert_close(model.state_dict()["backbone.bottom_up.net.conv1.weight"], before, rtol=0, atol=0)
