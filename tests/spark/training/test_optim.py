"""Optimizers decay what they should, and schedules go through the paper's points."""

from __future__ import annotations

import math

import pytest
import timm.layers
import torch

from spark.config import choices
from spark.errors import UserError
from spark.methods.spark.model import SparK
from spark.training.optim import (
    COURSES,
    build_optimizer,
    learning_rate_at,
    parameter_groups,
    set_schedule,
    weight_decay_at,
)
from spark.utils.weight_decay import decayed, decayed_by_shape


@pytest.mark.parametrize("model", ["resnet18", "convnext_atto"])
def test_only_weights_of_two_dimensions_and_more_decay(model: str) -> None:
    spark = SparK(model, decoder_width=32)
    names = {parameter: name for name, parameter in spark.named_parameters()}
    decays, spared = parameter_groups(spark)
    assert (decays["decays"], spared["decays"]) == (True, False)
    assert all(p.ndim > 1 for p in decays["params"])
    spared_names = [names[p] for p in spared["params"]]
    assert sum(name.endswith("mask_token") for name in spared_names) == 4
    assert all(p.ndim == 1 or names[p].endswith("mask_token") for p in spared["params"])
    trainable = [p for p in spark.parameters() if p.requires_grad]
    assert {*decays["params"], *spared["params"]} == set(trainable)


@pytest.mark.parametrize(("layer", "decaying"), [
    (timm.layers.LayerScale2d(4), set()),  # gamma [4, 1, 1]
    (timm.layers.ScaledStdConv2d(4, 4, 1), {"weight"}),  # not gain [4, 1, 1, 1]
    (torch.nn.Conv2d(4, 4, 1, groups=4), {"weight"}),  # [4, 1, 1, 1], too
    (timm.layers.EcaModule(4), {"conv.weight"}),
])
def test_scales_of_channels_do_not_decay_whatever_their_shape(layer: torch.nn.Module, decaying: set[str]) -> None:
    """LAMB would also move a small one by its own norm only, so that layer scales never opened."""
    assert {name for name, parameter in layer.named_parameters() if decayed(name, parameter)} == decaying


def test_by_shape_tokens_decay_and_biases_of_any_shape_do_not() -> None:
    shapes = {"token": (1, 8, 1, 1), "norm.weight": (8,), "fc.bias": (1, 8), "fc.weight": (8, 1), "scale": (8,)}
    decaying = {name for name, shape in shapes.items()
                if decayed_by_shape(name, torch.nn.Parameter(torch.zeros(shape)))}
    assert decaying == {"token", "fc.weight"}


@pytest.mark.parametrize("name", ["lamb", "adamw"])
def test_the_schedule_sets_decay_only_where_a_group_decays(name: str) -> None:
    spark = SparK("resnet18", decoder_width=32)
    optimizer = build_optimizer(name, parameter_groups(spark), (0.9, 0.95))
    set_schedule(optimizer, 0.3, 0.07)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.3, 0.07), (0.3, 0.0)]


@pytest.mark.parametrize("name", ["lamb", "adamw"])
def test_decay_without_gradient_shrinks_weights_but_not_biases(name: str) -> None:
    layer = torch.nn.Linear(8, 8)
    optimizer = build_optimizer(name, parameter_groups(layer), (0.9, 0.95))
    before = {n: p.detach().clone() for n, p in layer.named_parameters()}
    set_schedule(optimizer, 0.1, 0.5)
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert layer.weight.norm() < before["weight"].norm()
    assert layer.bias.equal(before["bias"])


def test_lamb_moves_a_weight_by_lr_times_its_norm() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 8, bias=False)
    optimizer = build_optimizer("lamb", parameter_groups(layer), (0.9, 0.95))
    set_schedule(optimizer, 0.01, 0.04)
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.randn(8, 8)
    optimizer.step()
    moved = (layer.weight - before).norm() / before.norm()
    assert moved.item() == pytest.approx(0.01, rel=1e-4)


def test_an_unknown_optimizer_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"'adamv'. Did you mean adamw"):
        build_optimizer("adamv", [], (0.9, 0.95))


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.005), (5, 0.5025), (10, 1.0), (109, 0.001), (10 + 99 / 2, (1 + 0.001) / 2)]
)
def test_the_learning_rate_warms_up_and_falls_along_a_cosine(step: float, rate: float) -> None:
    assert learning_rate_at(step, total=110, warmup=10, peak=1.0) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.0), (5, 0.5), (10, 1.0), (60, 0.5), (109, 0.5 + 0.5 * math.cos(math.pi * 99 / 100))]
)
def test_maes_learning_rate_begins_at_zero_and_would_be_zero_after_the_last_step(step: int, rate: float) -> None:
    assert learning_rate_at(step, 110, 10, 1.0, "mae") == pytest.approx(rate)
    assert set(COURSES) == set(choices.COURSES)


@pytest.mark.parametrize(("step", "decay"), [(0, 0.04), (50, 0.12), (100, 0.2)])
def test_the_weight_decay_rises_along_a_cosine(step: int, decay: float) -> None:
    assert weight_decay_at(step, total=101, start=0.04, end=0.2) == pytest.approx(decay)


def test_schedules_of_a_single_step_exist() -> None:
    assert learning_rate_at(0, 1, 0, 1.0) == pytest.approx(1.0)
    assert weight_decay_at(0, 1, 0.04, 0.2) == pytest.approx(0.04)
