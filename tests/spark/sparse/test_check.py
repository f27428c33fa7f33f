"""The equivalence check accepts right conversions and catches wrong rules."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import timm.layers
import torch
from torch import Tensor, nn

from spark.backbones.timm_pyramid import TimmPyramid
from spark.errors import UserError
from spark.sparse import ENGINES, LayerRule, VisiblePatches
from spark.sparse.check import TOLERANCE, check_equivalence
from spark.sparse.layers import BATCH_NORM, CONVOLUTION, OVER_IMAGE, POINTWISE_CHANNELS_LAST
from spark.sparse.masked import zero_masked
from spark.sparse.rule import Dense, unchanged


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model", ["resnet18", "convnext_atto"])
def test_supported_networks_are_converted_exactly(model: str, engine: str) -> None:
    result = check_equivalence(model, engine)
    assert result.engine == engine
    assert result.holds


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("seresnet50", {"layers": (1, 1, 1, 1)}),
        ("resnet50_gn", {"layers": (1, 1, 1, 1)}),
        ("convnextv2_tiny", {"depths": (1, 1, 1, 1), "dims": (32, 64, 128, 256)}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_layers_that_reduce_over_an_image_are_converted_exactly(model: str, options: dict[str, Any]) -> None:
    """More networks are in test_families.py, and in test_compact.py both engines side by side."""
    assert check_equivalence(lambda: TimmPyramid(model, options=options), "masked", patches=2).holds


def doubled(layer: nn.Module, dense: Dense, visible: VisiblePatches, x: Tensor) -> Tensor:
    return 2 * dense(x)


@pytest.mark.parametrize(
    ("model", "layer", "rule", "engine", "caught_by"),
    [
        # statistics over holes too
        ("resnet18", nn.BatchNorm2d, dataclasses.replace(BATCH_NORM, masked=zero_masked), "masked", "crop"),
        # a hole's bias comes back at the next convolution
        ("convnext_atto", nn.Conv2d, dataclasses.replace(CONVOLUTION, masked=unchanged), "masked", "crop"),
        ("resnet18", nn.ReLU, LayerRule(doubled, doubled), "masked", "all_visible"),
        ("resnet18", nn.ReLU, LayerRule(doubled, doubled), "compact", "all_visible"),
        # forgets that an image's patches belong together
        ("seresnet50", timm.layers.SEModule, dataclasses.replace(OVER_IMAGE, compact=unchanged), "compact", "crop"),
    ],
    ids=["norm", "bias", "activation masked", "activation compact", "gate"],
)
def test_a_wrong_rule_is_caught(
    model: str, layer: type[nn.Module], rule: LayerRule, engine: str, caught_by: str
) -> None:
    result = check_equivalence(model, engine, {layer: rule}, patches=2)
    assert not result.holds
    assert getattr(result.errors, caught_by) > 1e-3


def test_an_input_that_is_not_hidden_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VisiblePatches, "hide", lambda self, images: images)
    assert check_equivalence("resnet18", "masked").errors.leakage > 1e-3


def test_a_patch_of_the_wrong_place_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compact engine hides nothing: it takes what is visible, here the patches in reverse order."""
    taken = VisiblePatches.take
    monkeypatch.setattr(VisiblePatches, "take", lambda self, x: taken(self, x).flip(0))
    assert check_equivalence("resnet18", "compact").errors.crop > 1e-3


def test_an_unknown_model_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(UserError, match=r"unknown model 'resnet5O'. Did you mean .*resnet50"):
        check_equivalence("resnet5O")


def something_everywhere(layer: nn.Module, dense: Dense, visible: VisiblePatches, x: Tensor) -> Tensor:
    return dense(x)


@pytest.mark.parametrize(
    ("model", "layer", "rule"),
    [
        # In a ResNet the next batch norm would clear it away, so that the features alone do not show it.
        ("resnet18", nn.Conv2d, dataclasses.replace(CONVOLUTION, masked=something_everywhere)),
        # In an MLP the next linear layer does; its maps are channels last.
        ("test_convnext", nn.Linear, dataclasses.replace(POINTWISE_CHANNELS_LAST, masked=something_everywhere)),
    ],
)
def test_a_layer_that_leaves_something_in_the_holes_is_caught(
    model: str, layer: type[nn.Module], rule: LayerRule
) -> None:
    result = check_equivalence(model, "masked", {layer: rule}, patches=2)
    assert result.errors.leakage > TOLERANCE
    assert not result.holds


def test_the_reason_of_an_engine_that_stands_back_is_told() -> None:
    result = check_equivalence("resnet18", "auto", {nn.ReLU: LayerRule(unchanged, None)}, patches=2)
    assert result.engine == "masked"
    assert "no rule for network.act1: ReLU" in result.stood_back
    assert result.holds


def test_errors_that_are_no_numbers_do_not_hold() -> None:
    def broken(layer: nn.Module, dense: Dense, visible: VisiblePatches, x: Tensor) -> Tensor:
        return torch.full_like(dense(x), torch.nan)

    assert not check_equivalence("resnet18", "compact", {nn.ReLU: LayerRule(broken, broken)}, patches=2).holds
