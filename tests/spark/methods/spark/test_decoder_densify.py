"""Densify layers fill holes, the decoder draws; both start as in the original."""

from __future__ import annotations

import pytest
import timm.layers
import torch
from torch import nn

from spark.backbones.timm_pyramid import TimmPyramid
from spark.errors import UserError
from spark.methods.spark.decoder import UNetDecoder
from spark.methods.spark.densify import Densify, norm_like
from spark.sparse import VisiblePatches

MASK = torch.tensor([[[[True, False], [False, True]]]])


def test_the_decoder_doubles_the_resolution_once_per_block() -> None:
    decoder = UNetDecoder(32, width=64)
    assert decoder.widths == [64, 32, 16, 8, 4]
    maps = [torch.randn(2, 64, 2, 3), torch.randn(2, 32, 4, 6), None, None, None]
    assert decoder(maps).shape == (2, 3, 64, 96)


@pytest.mark.parametrize(("stride", "width", "complaint"), [(24, 64, "power of two"), (32, 48, "divisible by 32")])
def test_impossible_decoders_are_refused(stride: int, width: int, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        UNetDecoder(stride, width)


def test_the_decoder_starts_as_in_the_original() -> None:
    torch.manual_seed(0)
    decoder = UNetDecoder(32, width=256)
    for name, parameter in decoder.named_parameters():
        if parameter.ndim == 1:
            expected = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            assert (parameter == expected).all(), name
    conv, transposed = decoder.blocks[0].conv1.weight, decoder.blocks[0].upsample.weight
    assert conv.std().item() == pytest.approx(0.02, rel=0.02)
    # Kaiming normal, fan_out: of a transposed convolution, the first dimension times the kernel's area is the
    # second one's here, as both widths are equal.
    assert transposed.std().item() == pytest.approx((2 / (256 * 16)) ** 0.5, rel=0.02)


def test_mask_tokens_are_cut_at_one_standard_deviation() -> None:
    torch.manual_seed(0)
    token = Densify(4096, 32, 3, nn.BatchNorm2d).mask_token
    assert token.shape == (1, 4096, 1, 1)
    assert token.abs().max() <= 0.02
    # A normal of .02 cut at +-1 sigma has deviation .5396 * .02.
    assert token.std().item() == pytest.approx(0.02 * 0.5396, rel=0.03)


def test_projections_start_at_torchs_default() -> None:
    torch.manual_seed(0)
    weight = Densify(64, 32, 3, nn.BatchNorm2d).project.weight
    bound = (64 * 9) ** -0.5
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)


@pytest.mark.parametrize(
    ("channels", "width", "kernel", "identity"), [(64, 64, 1, True), (64, 32, 1, False), (64, 64, 3, False)]
)
def test_the_projection_is_the_identity_only_at_the_deepest_scale_of_equal_width(
    channels: int, width: int, kernel: int, identity: bool
) -> None:
    project = Densify(channels, width, kernel, nn.BatchNorm2d).project
    assert isinstance(project, nn.Identity) == identity
    if not identity:
        assert project.weight.shape == (width, channels, kernel, kernel)
        assert project.bias is not None


def test_holes_are_filled_with_the_token_and_nothing_else_is() -> None:
    visible = VisiblePatches()
    densify = Densify(8, 8, 1, KeepAll)
    x = torch.randn(1, 8, 4, 4)
    with visible.use_mask(MASK):
        filled = densify(x, visible)
        shown = visible.at(4, 4).expand_as(x)
    assert filled[shown].equal(x[shown])
    assert filled[~shown].equal(densify.mask_token.expand_as(x)[~shown])


class KeepAll(nn.Module):
    """A norm that does nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize(("model", "norm"), [("resnet18", nn.BatchNorm2d), ("convnext_atto", timm.layers.LayerNorm2d)])
def test_densify_takes_the_networks_own_kind_of_norm(model: str, norm: type[nn.Module]) -> None:
    assert norm_like(TimmPyramid(model)) is norm
