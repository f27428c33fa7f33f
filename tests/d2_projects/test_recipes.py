"""Every recipe builds the model that it names, and its schedule has the published numbers."""

from __future__ import annotations

import ast
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data.transforms import AugInput
from detectron2.modeling.backbone import ResNet
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from paths import ROOT
from torch import nn

from d2_projects.modeling.timm_backbone import TimmBackbone
from d2_projects.solver.schedule import iterations_of_epochs, iterations_of_times

FOLDER = ROOT / "d2_projects"
RECIPES = {path.stem: path for path in sorted(FOLDER.glob("*mask_rcnn/*mask_rcnn_*.py"))}


def recipe(name: str) -> DictConfig:
    return LazyConfig.load(str(RECIPES[name]))


def on_meta(cfg: DictConfig) -> Any:
    with torch.device("meta"):
        return instantiate(cfg.model)


# Iterations, where the rate falls, and its factors; all of it as published, see the recipes.
SPARK_R50 = [1, 0.25, 0.0625]
SPARK_CONVNEXT, TENTHS = [1, 0.2, 0.04], [1, 0.1, 0.01]
SCHEDULES = {
    "mask_rcnn_r50_fpn": (90_000, [60_000, 80_000], SPARK_R50, 1000, 0.01),
    "mask_rcnn_r50_fpn_2x": (180_000, [120_000, 160_000], SPARK_R50, 1000, 0.01),
    "mask_rcnn_r101_fpn": (90_000, [60_000, 80_000], SPARK_R50, 1000, 0.01),
    "mask_rcnn_timm_fpn": (90_000, [60_000, 80_000], SPARK_R50, 1000, 0.01),
    "mask_rcnn_r50_fpn_sgd_1x": (90_000, [60_000, 80_000], TENTHS, 1000, 0.001),
    "mask_rcnn_r50_fpn_sgd_3x": (270_000, [210_000, 250_000], TENTHS, 1000, 0.001),
    "mask_rcnn_r50_c4": (90_000, [60_000, 80_000], TENTHS, 1000, 0.001),
    # 36 and 12 epochs of 117,266 images, in 7330 batches of 16
    **{f"mask_rcnn_convnext_{size}_fpn_3x": (263_880, [197_910, 241_890], gammas, 500, 0.001)
       for size, gammas in (("t", TENTHS), ("s", SPARK_CONVNEXT), ("b", SPARK_CONVNEXT))},
    **{f"mask_rcnn_convnext_{size}_fpn_1x": (87_960, [65_970, 80_630], gammas, 500, 0.001)
       for size, gammas in (("t", TENTHS), ("s", SPARK_CONVNEXT), ("b", SPARK_CONVNEXT))},
    "cascade_mask_rcnn_convnext_b_fpn_3x": (263_880, [197_910, 241_890], TENTHS, 500, 0.001),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_the_published_ones(name: str) -> None:
    cfg = recipe(name)
    iterations, milestones, factors, warmup, warmup_factor = SCHEDULES[name]
    assert cfg.train.max_iter == iterations
    rate = instantiate(cfg.lr_multiplier)
    for milestone, before, after in zip(milestones, factors[:-1], factors[1:], strict=True):
        assert rate((milestone - 1) / iterations) == pytest.approx(before)
        assert rate((milestone + 1) / iterations) == pytest.approx(after)
    assert rate(0) == pytest.approx(warmup_factor)
    assert rate(warmup / 2 / iterations) == pytest.approx((1 + warmup_factor) / 2, rel=1e-3)
    assert rate((warmup + 1) / iterations) == 1


def test_every_recipe_but_the_demo_is_checked_here() -> None:
    assert RECIPES.keys() - SCHEDULES.keys() == {"mask_rcnn_r18_demo"}


@pytest.mark.parametrize(("epochs", "batch", "images", "iterations"), [
    (1, 16, 117_266, 7330), (12, 16, 117_266, 87_960), (0.5, 2, 80, 20), (3, 64, 100, 6),
])
def test_epochs_become_whole_batches(epochs: float, batch: int, images: int, iterations: int) -> None:
    assert iterations_of_epochs(epochs, batch, images) == iterations


def test_detectrons_1x_counts_images() -> None:
    assert [iterations_of_times(times, batch) for times, batch in ((1, 16), (3, 16), (1, 64))] == [
        90_000, 270_000, 22_500]


# Network, learning rate, weight decay, layer decay (None: the rate is one for all), drop path.
SETTINGS: dict[str, tuple[str, float, float, float | None, float]] = {
    "mask_rcnn_r50_fpn": ("resnet50", 2.5e-4, 1e-4, 0.6**6, 0),
    "mask_rcnn_r101_fpn": ("resnet101", 2.5e-4, 1e-4, 0.6**12, 0),
    "mask_rcnn_timm_fpn": ("resnet50d", 2.5e-4, 1e-4, 0.6**6, 0),
    "mask_rcnn_r50_fpn_sgd_1x": ("resnet50", 0.02, 1e-4, None, 0),
    "mask_rcnn_r50_c4": ("resnet50", 0.02, 1e-4, None, 0),
    "mask_rcnn_convnext_t_fpn_3x": ("convnext_tiny", 1e-4, 0.05, 0.95**7, 0.4),
    "mask_rcnn_convnext_b_fpn_3x": ("convnext_base", 2e-4, 0.05, 0.65**13, 0.5),
    "cascade_mask_rcnn_convnext_b_fpn_3x": ("convnext_base", 2e-4, 0.05, 0.8**13, 0.7),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_models_and_optimizers_are_the_published_ones(name: str) -> None:
    network, rate, weight_decay, smallest, drop_path = SETTINGS[name]
    cfg = recipe(name)
    model = on_meta(cfg)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert max(rates) == pytest.approx(rate)
    assert min(rates) == pytest.approx(rate * (smallest or 1))
    # The standard settings have frozen norms only, and decay biases.
    decays = {weight_decay} if name == "mask_rcnn_r50_fpn_sgd_1x" else {0, weight_decay}
    assert {group["weight_decay"] for group in optimizer.param_groups} == decays
    assert sum(len(group["params"]) for group in optimizer.param_groups) == sum(
        parameter.requires_grad for parameter in model.parameters())

    bottom_up = getattr(model.backbone, "bottom_up", model.backbone)
    if isinstance(bottom_up, TimmBackbone):
        assert cfg.model.backbone.bottom_up.name == network
        rates = [module.drop_prob for module in bottom_up.modules() if hasattr(module, "drop_prob")]
        assert max(rates, default=0) == pytest.approx(drop_path)
    else:
        assert isinstance(bottom_up, ResNet)
        assert f"resnet{(cfg.model.backbone.get('bottom_up') or cfg.model.backbone).stages.depth}" == network
    assert model.input_format == cfg.dataloader.train.mapper.image_format == "RGB"
    assert cfg.model.pixel_mean == [123.675, 116.280, 103.530]


def norms(module: nn.Module) -> set[str]:
    return {type(child).__name__ for child in module.modules() if "Norm" in type(child).__name__}


def test_norms_are_the_published_ones() -> None:
    convnext = on_meta(recipe("mask_rcnn_convnext_t_fpn_3x"))
    assert norms(convnext.backbone.bottom_up.out_norms) == {"LayerNorm2d"}
    assert not norms(convnext.roi_heads)
    standard = on_meta(recipe("mask_rcnn_r50_fpn_sgd_1x"))
    assert norms(standard) == {"FrozenBatchNorm2d"}
    frozen = {name for name, parameter in standard.backbone.bottom_up.named_parameters()
              if not parameter.requires_grad}
    assert {name.partition(".")[0] for name in frozen} == {"stem", "res2"}
    c4 = on_meta(recipe("mask_rcnn_r50_c4"))
    assert norms(c4) == {"SyncBatchNorm"}
    assert [type(module).__name__ for module in c4.roi_heads.res5] == [*["BottleneckBlock"] * 3, "SyncBatchNorm"]
    cascade = on_meta(recipe("cascade_mask_rcnn_convnext_b_fpn_3x"))
    assert [norms(head) for head in cascade.roi_heads.box_head] == [{"SyncBatchNorm"}] * 3


def test_the_crop_of_detr_is_taken_of_every_other_image() -> None:
    augmentations = instantiate(recipe("mask_rcnn_convnext_b_fpn_3x").dataloader.train.mapper.augmentations)
    np.random.seed(0)  # which Detectron2 draws from
    image = np.zeros((480, 640, 3), np.uint8)
    kinds, sizes = [], set()
    for _ in range(60):
        sample = AugInput(image)
        transforms = [augmentation(sample) for augmentation in augmentations]
        kinds.append(type(transforms[0]).__name__)
        sizes.add(min(sample.image.shape[:2]))
    assert 15 < kinds.count("TransformList") < 45
    assert sizes <= set(range(480, 801, 32))
    assert len(sizes) > 6


HEADING = ["Reproduces", "Command", "Expected", "Cost"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_it_reproduces_and_how(name: str) -> None:
    heading = ast.get_docstring(ast.parse(RECIPES[name].read_text(encoding="utf-8"))) or ""
    parts = [line.partition(":")[0] for line in heading.splitlines()]
    assert [part for part in parts if part in HEADING] == HEADING
    assert str(RECIPES[name].relative_to(FOLDER.parent)) in heading.replace("\\\n", "")


def tiny(cfg: DictConfig) -> DictConfig:
    """Give the model little to do for each image."""
    cfg.model.proposal_generator.batch_size_per_image = 16
    cfg.model.proposal_generator.post_nms_topk = (20, 20)
    cfg.model.roi_heads.batch_size_per_image = 8
    cfg.model.roi_heads.num_classes = 2
    return cfg


def objects() -> dict[str, Any]:
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[0, 10:40, 10:50] = True
    instances = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[10.0, 10, 50, 40]])),
                          gt_classes=torch.tensor([1]), gt_masks=BitMasks(masks))
    return {"image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), "instances": instances, "height": 64,
            "width": 64}


@pytest.mark.parametrize(("name", "network"), [
    ("mask_rcnn_convnext_t_fpn_3x", "convnext_atto"),
    ("cascade_mask_rcnn_convnext_b_fpn_3x", "convnext_atto"),
    ("mask_rcnn_r50_c4", None),
])
def test_a_step_of_training_reaches_every_layer(name: str, network: str | None) -> None:
    torch.manual_seed(0)
    cfg = tiny(recipe(name))
    if network:
        cfg.model.backbone.bottom_up.name = network
        cfg.model.backbone.bottom_up.drop_path_rate = 0.0
    model = instantiate(cfg.model).train()
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    with EventStorage():
        losses = model([objects(), objects()])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert not [name for name, parameter in model.named_parameters()
                if parameter.requires_grad and parameter.grad is None]
    optimizer.step()
    with torch.no_grad():
        found = model.eval()([{key: value for key, value in objects().items() if key != "instances"}])
    assert len(found) == 1
