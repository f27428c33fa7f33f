"""Layer decay equals the original's where that is sound, and stays sound where it is not."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from paths import ROOT
from torch import nn

from d2_projects.modeling.timm_backbone import TimmBackbone
from d2_projects.solver.layer_decay import resnet_layer_decay, timm_parameter_groups
from spark.backbones.layer_groups import timm_layers
from spark.errors import UserError
from spark.formats.detectron2 import from_timm

GOLDEN = ROOT / "tests/golden/detectron2_lr_factors_decay0.6.json"


@pytest.mark.parametrize(("network", "depth"), [("R50-FPN", 50), ("R101-FPN", 101)])
def test_factors_equal_the_originals(network: str, depth: int) -> None:
    golden = json.loads(GOLDEN.read_text())[network]
    factor = resnet_layer_decay(depth, 0.6)
    assert {name: factor(name) for name in golden} == pytest.approx(golden, rel=1e-12)


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_factors_grow_towards_the_heads_and_never_exceed_one(depth: int) -> None:
    res4_blocks = {18: 2, 34: 6, 50: 6, 101: 23, 152: 36}[depth]
    names = ["stem.conv1", "res2.0.conv1", "res3.0.conv1", *(f"res4.{i}.conv1" for i in range(res4_blocks)),
             "res5.0.conv1"]
    factor = resnet_layer_decay(depth, 0.6)
    factors = [factor(f"backbone.bottom_up.{name}.weight") for name in names]
    assert factors == sorted(factors)
    assert factors[-1] == pytest.approx(0.6)
    assert all(0 <= value <= 1 for value in factors)
    assert factor("roi_heads.box_head.fc1.weight") == 1


def test_a_c4s_backbone_is_also_in_its_heads() -> None:
    c4, fpn = resnet_layer_decay(50, 0.6), resnet_layer_decay(50, 0.6)
    assert c4("backbone.res3.1.conv2.weight") == fpn("backbone.bottom_up.res3.1.conv2.weight")
    assert c4("roi_heads.res5.2.conv1.weight") == fpn("backbone.bottom_up.res5.2.conv1.weight") == 0.6
    assert c4("roi_heads.res5.norm.weight") == 1  # the additional norm is no part of the pre-trained network


def test_no_decay_is_one_everywhere() -> None:
    assert resnet_layer_decay(50, 1.0)("backbone.bottom_up.stem.conv1.weight") == 1


@pytest.mark.parametrize(("depth", "decay"), [(26, 0.6), (50, 1.5), (50, -0.1)])
def test_unsound_arguments_are_refused(depth: int, decay: float) -> None:
    with pytest.raises(ValueError, match=r"is not one of|is outside"):
        resnet_layer_decay(depth, decay)


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return TimmBackbone(name).net


@pytest.mark.parametrize(("network", "name"), [("R50-FPN", "resnet50"), ("R101-FPN", "resnet101")])
def test_timms_resnet_learns_as_detectrons(network: str, name: str) -> None:
    golden = json.loads(GOLDEN.read_text())[network]
    with torch.device("meta"):
        resnet = timm.create_model(name, num_classes=0)
    names, layers = from_timm(resnet.state_dict()).mapped, timm_layers(resnet)
    after = max(layers.values()) + 1
    expected = {key: golden[f"backbone.bottom_up.{names[key]}"] for key in layers}
    assert {key: 0.6 ** (after - layer) for key, layer in layers.items()} == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("name", "third_stage", "last"), [
    ("convnext_tiny", [3, 4, 5], 6), ("convnext_base", list(range(3, 12)), 12),
])
def test_convnext_has_the_layers_of_its_paper(name: str, third_stage: list[int], last: int) -> None:
    layers = timm_layers(on_meta(name))
    of = {
        key: {layer for other, layer in layers.items() if other.startswith(key)}
        for key in ("stem.", "stages.0.", "stages.1.", "stages.2.", "stages.3.", "stages.2.downsample.")
    }
    assert of == {"stem.": {0}, "stages.0.": {1}, "stages.1.": {2}, "stages.2.": set(third_stage), "stages.3.": {last},
                  "stages.2.downsample.": {3}}
    blocks = [layers[f"stages.2.blocks.{index}.conv_dw.weight"] for index in range(3 * len(third_stage))]
    assert blocks == [layer for layer in third_stage for _ in range(3)]


@pytest.mark.parametrize(("name", "layers"), [
    ("regnety_002", 6), ("efficientnet_b0", 8), ("resnet18d", 5), ("convnextv2_atto", 6), ("densenet121", 6),
])
def test_other_networks_have_the_layers_that_timm_groups(name: str, layers: int) -> None:
    ids = list(timm_layers(on_meta(name)).values())
    assert sorted(set(ids)) == list(range(layers))
    assert ids == sorted(ids)


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.bottom_up = TimmBackbone("convnext_atto", frozen_stages=1, out_norm="LN")
        self.head = nn.Linear(2, 2)


def test_groups_have_rates_by_layer_and_no_decay_of_vectors() -> None:
    model = Detector()
    groups = timm_parameter_groups(model, base_lr=0.1, decay=0.5)
    group_of = {id(parameter): group for group in groups for parameter in group["params"]}
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(group_of) == len(trained)
    assert all(0 < group["lr"] <= 0.1 for group in groups)
    last = 5  # stem, two stages, two layers of the third, the fourth stage; then the rest
    prefix = "backbone.bottom_up."
    for name, rate, decays in (
        (f"{prefix}net.stages.0.blocks.0.conv_dw.weight", 0.1 * 0.5**last, True),
        (f"{prefix}net.stages.2.blocks.5.mlp.fc1.weight", 0.1 * 0.5**2, True),
        (f"{prefix}net.stages.3.blocks.0.gamma", 0.1 * 0.5, False),
        (f"{prefix}out_norms.res5.weight", 0.1, False), ("head.weight", 0.1, True), ("head.bias", 0.1, False),
    ):
        group = group_of[id(trained[name])]
        assert group["lr"] == pytest.approx(rate), name
        assert ("weight_decay" not in group) == decays, name
    assert not any(name.startswith(f"{prefix}net.stem.") for name in trained)


def test_without_decay_all_learn_at_one_rate() -> None:
    assert {group["lr"] for group in timm_parameter_groups(Detector(), base_lr=0.1)} == {0.1}


def test_impossible_groups_are_refused() -> None:
    with pytest.raises(UserError, match="needs a model with a TimmBackbone"):
        timm_parameter_groups(nn.Linear(2, 2), base_lr=0.1)
    with pytest.raises(UserError, match=r"optimizer\.params\.decay=1\.5 is outside"):
        timm_parameter_groups(Detector(), base_lr=0.1, decay=1.5)
    with pytest.raises(UserError, match=r"which layers Linear has"):
        timm_layers(nn.Linear(2, 2))
