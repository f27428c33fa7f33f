"""The numbers of a model card are those that can be known otherwise."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from spark.checks.model_summary import ModelSummary, describe
from spark.errors import UserError
from spark.utils.memory import kept_for_backward


@pytest.fixture(scope="module")
def card() -> ModelSummary:
    return describe("resnet18", input_size=(64, 96), mask_ratio=0.5, decoder_width=32)


def test_a_card_has_the_stages_and_parameters_of_the_network(card: ModelSummary) -> None:
    network = timm.create_model("resnet18", num_classes=0)
    assert (card.channels, card.strides) == ([64, 128, 256, 512], [4, 8, 16, 32])
    assert card.encoder_parameters == sum(parameter.numel() for parameter in network.parameters())
    assert card.fixed_memory == 16 * (card.encoder_parameters + card.decoder_parameters)


def test_the_dense_flops_are_those_of_timms_model(card: ModelSummary) -> None:
    network = timm.create_model("resnet18", num_classes=0)
    with FlopCounterMode(display=False) as counter:
        network.forward_features(torch.zeros(1, 3, 64, 96))
    assert card.dense_flops == counter.get_total_flops()


def test_the_compact_engine_computes_and_keeps_less_than_the_masked_one(card: ModelSummary) -> None:
    masked = describe("resnet18", "masked", (64, 96), mask_ratio=0.5, decoder_width=32)
    assert masked.encoder_flops == masked.dense_flops == card.dense_flops
    assert 0.4 < card.encoder_flops / card.dense_flops < 0.7  # half of the patches, and their borders
    assert card.activations < masked.activations


def test_a_card_tells_what_layers_became(card: ModelSummary) -> None:
    assert ("Conv2d", 20, "sparse convolution") in card.converted
    assert ("BatchNorm2d", 20, "statistics over the batch's visible positions") in card.converted
    assert not [layer for layer, _, _ in card.converted if layer in ("ResNet", "BasicBlock", "Sequential")]


def test_an_input_size_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="input size 64x100 is not divisible by the encoder's stride 32"):
        describe("resnet18", input_size=(64, 100))


def test_what_is_kept_for_the_backward_pass_leaves_out_weights_and_counts_once() -> None:
    layers = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.zeros(3, 8)
    with kept_for_backward(layers) as kept:
        _y = layers(x)
    assert sum(kept.values()) == 4 * (x.numel() + 3 * 4)  # the input, and the ReLU's output for it and what follows
