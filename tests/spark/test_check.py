"""The equivalence check accepts right conversions and catches wrong rules."""

from __future__ import annotations

from types import MappingProxyType

import pytest
from torch import Tensor, nn

from spark.errors import UserError
from spark.sparse import ENGINES, convert
from spark.sparse.check import TOLERANCE, check_equivalence
from spark.sparse.masked import RULES, Dense, Rule, unchanged, zero_masked
from spark.sparse.state import VisiblePatches


@pytest.mark.parametrize("model", ["resnet18", "convnext_atto", "resnext50_32x4d"])
def test_supported_networks_are_converted_exactly(model: str) -> None:
    assert check_equivalence(model, "masked").holds


def doubled(dense: Dense, visible: VisiblePatches, x: Tensor) -> Tensor:
    return 2 * dense(x)


@pytest.mark.parametrize(
    ("model", "layer", "rule", "caught_by"),
    [
        ("resnet18", nn.BatchNorm2d, zero_masked, "crop"),  # statistics over holes too
        ("convnext_atto", nn.Conv2d, unchanged, "crop"),  # a hole's bias comes back at the next convolution
        ("resnet18", nn.ReLU, doubled, "all_visible"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_wrong_rule_is_caught(
    model: str, layer: type[nn.Module], rule: Rule, caught_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = MappingProxyType({**RULES, layer: rule})
    monkeypatch.setattr(convert, "ENGINES", MappingProxyType({"masked": rules}))
    result = check_equivalence(model, "masked")
    assert not result.holds
    assert getattr(result, caught_by) > 1e-3


def test_an_input_that_is_not_hidden_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VisiblePatches, "hide", lambda self, images: images)
    assert check_equivalence("resnet18", "masked").leakage > 1e-3


def test_an_unknown_model_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(UserError, match=r"unknown model 'resnet5O'. Did you mean .*resnet50"):
        check_equivalence("resnet5O")


def test_a_layer_that_leaves_something_in_the_holes_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a ResNet the next batch norm would clear it away, so that the features alone do not show it."""
    rules = dict(ENGINES["masked"])
    rules[nn.Conv2d] = lambda dense, visible, x: dense(x)
    monkeypatch.setattr(convert, "ENGINES", {"masked": rules})
    result = check_equivalence("resnet18", "masked", patches=2)
    assert result.leakage > TOLERANCE
    assert not result.holds
