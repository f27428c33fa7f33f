"""The numbers of a model summary are those that can be known otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from spark.checks.model_summary import ModelSummary, describe
from spark.errors import UserError
from spark.methods.registry import default_config
from spark.utils.memory import kept_for_backward


def summary(**changes: Any) -> ModelSummary:
    settings = {"data.input_size": [64, 96], "mask.ratio": 0.5, "decoder.width": 32}
    return describe(default_config("spark", "resnet18", settings | changes))


@pytest.fixture(scope="module")
def resnet18() -> ModelSummary:
    return summary()


def test_a_summary_has_the_stages_and_parameters_of_the_network(resnet18: ModelSummary) -> None:
    network = timm.create_model("resnet18", num_classes=0)
    assert (resnet18.channels, resnet18.strides) == ([64, 128, 256, 512], [4, 8, 16, 32])
    assert resnet18.encoder_parameters == sum(parameter.numel() for parameter in network.parameters())
    assert resnet18.fixed_memory == 16 * (resnet18.encoder_parameters + resnet18.decoder_parameters)


def test_the_dense_flops_are_those_of_timms_model(resnet18: ModelSummary) -> None:
    network = timm.create_model("resnet18", num_classes=0)
    with FlopCounterMode(display=False) as counter:
        network.forward_features(torch.zeros(1, 3, 64, 96))
    assert resnet18.dense_flops == counter.get_total_flops()


def test_the_compact_engine_computes_and_keeps_less_than_the_masked_one(resnet18: ModelSummary) -> None:
    masked = summary(engine="masked")
    assert masked.encoder_flops == masked.dense_flops == resnet18.dense_flops
    assert 0.4 < resnet18.encoder_flops / resnet18.dense_flops < 0.7  # half of the patches, and their borders
    assert resnet18.activations < masked.activations


def test_a_summary_tells_what_layers_became(resnet18: ModelSummary) -> None:
    assert ("Conv2d", 20, "sparse convolution") in resnet18.converted
    assert ("BatchNorm2d", 20, "statistics over the batch's visible positions") in resnet18.converted
    assert not [layer for layer, _, _ in resnet18.converted if layer in ("ResNet", "BasicBlock", "Sequential")]


def test_an_input_size_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="input size 64x100 is not divisible by the encoder's stride 32"):
        summary(**{"data.input_size": [64, 100]})


def test_what_is_kept_for_the_backward_pass_leaves_out_weights_and_counts_once() -> None:
    layers = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.zeros(3, 8)
    with kept_for_backward(layers) as kept:
        _y = layers(x)
    assert sum(kept.values()) == 4 * (x.numel() + 3 * 4)  # the input, and the ReLU's output for it and what follows
