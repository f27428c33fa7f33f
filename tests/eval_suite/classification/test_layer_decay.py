"""Layer-wise learning-rate decay against the original's, parameter by parameter."""

from __future__ import annotations

import json
import re

import pytest
import timm
import torch
from paths import ROOT

from eval_suite.classification.finetune_config import FinetuneConfig, OptimizerConfig
from eval_suite.classification.layer_decay import layer_ids, parameter_groups
from spark.backbones.timm_model import create_timm
from spark.errors import UserError

GOLDEN = json.loads((ROOT / "tests/golden/finetune_layer_ids.json").read_text())

UM_GOLDEN = json.loads((ROOT / "tests/golden/um/um_finetune_layer_ids.json").read_text())
UM_MODELS = {
    "pvt_small_256": "um_pvt_small", "swin_tiny_256": "um_swin_tiny", "swin_large_256": "um_swin_large",
    "vit_base_patch16": "vit_base_patch16_224",
}


def official_to_timm(name: str) -> str:
    """Return timm's name of a parameter that is named as in the official ConvNeXt."""
    rules = [
        (r"^downsample_layers\.0\.", "stem."),
        (r"^downsample_layers\.(\d)\.", r"stages.\1.downsample."),
        (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.dwconv\.", ".conv_dw."),
        (r"\.pwconv(\d)\.", r".mlp.fc\1."),
        (r"^norm\.", "head.norm."),
        (r"^head\.(weight|bias)$", r"head.fc.\1"),
    ]
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_layers_equal_the_originals(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    rename = official_to_timm if name.startswith("convnext") else str
    expected = {rename(parameter): layer for parameter, (layer, _) in GOLDEN[name].items()}
    assert layer_ids(model) == expected

    exponents = {rename(parameter): exponent for parameter, (_, exponent) in GOLDEN[name].items()}
    scale_of = {
        id(parameter): group["lr_scale"]
        for group in parameter_groups(model, 0.02, 0.7) for parameter in group["params"]
    }
    for parameter_name, parameter in model.named_parameters():
        assert scale_of[id(parameter)] == pytest.approx(0.7 ** exponents[parameter_name])


def test_only_weights_of_more_than_one_dimension_decay() -> None:
    with torch.device("meta"):
        model = timm.create_model("convnext_atto")
    groups = parameter_groups(model, weight_decay=0.05, layer_decay=0.7)
    for group in groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.05 if parameter.ndim > 1 else 0.0)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@pytest.mark.parametrize(("name", "stem", "head", "layers"), [
    ("efficientnet_b0", "conv_stem.weight", "classifier.weight", 9),
    ("regnety_002", "stem.conv.weight", "head.fc.weight", 7),
    ("convnextv2_atto", "stem.0.weight", "head.fc.weight", 7),
    ("densenet121", "features.conv0.weight", "classifier.weight", 7),
])
def test_other_models_use_timms_grouping_from_stem_to_head(name: str, stem: str, head: str, layers: int) -> None:
    with torch.device("meta"):
        ids = layer_ids(timm.create_model(name))
    assert sorted(set(ids.values())) == list(range(layers))
    assert ids[stem] == 0
    assert ids[head.replace("weight", "bias")] == ids[head]
    assert ids[head] == layers - 1


def test_a_model_without_layers_is_refused_unless_there_is_no_decay() -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"optimizer\.layer_decay=1"):
        parameter_groups(model, 0.05, 0.7)
    assert {group["lr_scale"] for group in parameter_groups(model, 0.05, 1.0)} == {1.0}


@pytest.mark.parametrize("original", sorted(UM_GOLDEN))
def test_blocks_are_the_layers_of_um_maes_recipes(original: str) -> None:
    expected, name = UM_GOLDEN[original], UM_MODELS[original]
    options = {"global_pool": "avg"} if name.startswith("vit") else {}
    model = create_timm(name, classes=1000, drop_path=0.0, options=options)
    names = {id(parameter): parameter_name for parameter_name, parameter in model.named_parameters()}
    ids = layer_ids(model, "blocks")
    found = {
        names[id(parameter)]: [ids[names[id(parameter)]], group["lr_scale"], group["weight_decay"]]
        for group in parameter_groups(model, expected["weight_decay"], expected["layer_decay"], "blocks")
        for parameter in group["params"]
    }
    assert found == {parameter: pytest.approx(row, rel=1e-12) for parameter, row in expected["params"].items()}


def test_the_way_to_make_layers_is_one_of_those_known() -> None:
    (problem,) = [
        problem for problem in FinetuneConfig(optimizer=OptimizerConfig(layers="block")).problems()
        if problem.startswith("optimizer.layers")
    ]
    assert problem == "optimizer.layers='block' is not one of stages, blocks. Did you mean blocks?"
