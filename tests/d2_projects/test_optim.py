"""Layer decay equals the original's where that is sound, and stays sound where it is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from d2_projects.optim import resnet_layer_decay

GOLDEN = Path(__file__).parents[1] / "golden" / "detectron2_lr_factors_decay0.6.json"


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


def test_no_decay_is_one_everywhere() -> None:
    assert resnet_layer_decay(50, 1.0)("backbone.bottom_up.stem.conv1.weight") == 1


@pytest.mark.parametrize(("depth", "decay"), [(26, 0.6), (50, 1.5), (50, -0.1)])
def test_unsound_arguments_are_refused(depth: int, decay: float) -> None:
    with pytest.raises(ValueError, match=r"is not one of|is outside"):
        resnet_layer_decay(depth, decay)
