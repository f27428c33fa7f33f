"""The recipes say what they claim to say."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from omegaconf import DictConfig, OmegaConf
from paths import ROOT

RECIPES = ROOT / "d2_projects" / "mask_rcnn"
GOLDEN = ROOT / "tests" / "golden"


def recipe(name: str, **values: Any) -> DictConfig:
    cfg = LazyConfig.load(str(RECIPES / f"{name}.py"))
    for key, value in values.items():
        OmegaConf.update(cfg, key.replace("__", "."), value)
    return cfg


def test_r50_recipe_is_the_published_setting() -> None:
    cfg = recipe("mask_rcnn_r50_fpn")
    model = instantiate(cfg.model)
    golden = json.loads((GOLDEN / "detectron2_lr_factors_decay0.6.json").read_text())["R50-FPN"]
    names = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names.keys() == golden.keys()
    keys = json.loads((GOLDEN / "detectron2_resnet_keys.json").read_text())["resnet50"]
    backbone = {name: list(t.shape) for name, t in model.backbone.bottom_up.state_dict().items()}
    assert backbone == dict(keys)
    strides = [model.backbone.bottom_up.res3[0].conv1.stride, model.backbone.bottom_up.res3[0].conv2.stride]
    assert strides == [(1, 1), (2, 2)]
    norms = sum(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules())
    assert norms == 53 + 8 + 4 + 4  # backbone, FPN, box head, mask head
    assert cfg.dataloader.train.mapper.image_format == model.input_format == "RGB"

    cfg.optimizer.params.model = model
    groups = instantiate(cfg.optimizer).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert {name: rates[id(p)] for name, p in names.items()} == pytest.approx(
        {name: 2.5e-4 * factor for name, factor in golden.items()})
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decays[id(names["backbone.bottom_up.stem.conv1.weight"])] == 1e-4
    assert decays[id(names["backbone.bottom_up.stem.conv1.norm.weight"])] == 0
