"""The proof accepts a right conversion and rejects every wrong one."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from torch import Tensor

from d2_projects.modeling.equivalence import largest_feature_difference
from spark.errors import UserError
from spark.formats.encoder import EncoderInfo


def randomized_state(model: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = timm.create_model(model, num_classes=0).state_dict()
    for name, tensor in state.items():
        if name.endswith(("running_mean", "bias")):
            tensor.normal_(std=0.2)
        elif tensor.ndim == 1:  # timm starts the last norm of a block at zero, which would hide its errors
            tensor.uniform_(0.5, 1.5)
    return state


def info(model: str) -> EncoderInfo:
    return EncoderInfo(model, 3, (64, 64), (0.5,) * 3, (0.2,) * 3, "imported", None, None, "test")


def by_hand(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename timm's ResNet-18 to Detectron2's, independently of the project's converter."""
    renamed = {}
    for old, tensor in state.items():
        name = re.sub(r"layer(\d)", lambda match: f"res{int(match[1]) + 1}", old)
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        name = re.sub(r"\bbn(\d)", r"conv\1.norm", name)
        renamed[name if name.startswith("res") else f"stem.{name}"] = tensor
    return renamed


def test_right_weights_agree() -> None:
    state = randomized_state("resnet18")
    assert largest_feature_difference(state, by_hand(state), info("resnet18")).relative < 1e-5


@pytest.mark.parametrize("name", ["res5.1.conv2.norm.running_mean", "stem.conv1.weight"])
def test_one_wrong_tensor_shows(name: str) -> None:
    state = randomized_state("resnet18")
    converted = by_hand(state)
    converted[name] = converted[name] + 0.05
    assert largest_feature_difference(state, converted, info("resnet18")).relative > 1e-3


def test_a_forgotten_tensor_is_named() -> None:
    state = randomized_state("resnet18")
    converted = by_hand(state)
    del converted["res3.0.shortcut.norm.running_var"]
    with pytest.raises(UserError, match=r"'res3\.0\.shortcut\.norm\.running_var' is missing"):
        largest_feature_difference(state, converted, info("resnet18"))


def test_a_network_that_detectron2_lacks_is_refused() -> None:
    with pytest.raises(UserError, match="Detectron2's native ResNet cannot hold 'resnet26'"):
        largest_feature_difference({}, {}, info("resnet26"))
