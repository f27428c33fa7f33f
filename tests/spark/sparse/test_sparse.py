"""Dense networks become sparse layer by layer, by exact type, and keep their names."""

from __future__ import annotations

import copy

import pytest
import timm.layers
import torch
from torch import Tensor, nn

from spark.backbones.timm_pyramid import TimmPyramid
from spark.errors import UserError
from spark.sparse import ENGINES, VisiblePatches, sparsify

MASK = torch.tensor([[[[True, False], [False, True]]], [[[False, True], [True, True]]]])


def sparse(layer: nn.Module, channels: int = 4) -> tuple[nn.Module, VisiblePatches]:
    """Return a layer inside a network, made sparse in the masked engine, and the state."""
    network = nn.Sequential(layer)
    return network, sparsify(network, torch.zeros(1, channels, 8, 8), "masked")


def picture(channels: int = 4) -> Tensor:
    return torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(0))


def holes(size: int) -> Tensor:
    return ~MASK.repeat_interleave(size // 2, 2).repeat_interleave(size // 2, 3)


# The state


def test_a_mask_is_seen_at_every_resolution() -> None:
    visible = VisiblePatches()
    with visible.use_mask(MASK):
        assert visible.at(2, 2).equal(MASK)
        assert visible.at(8, 4).equal(MASK.repeat_interleave(4, 2).repeat_interleave(2, 3))
        with pytest.raises(ValueError, match="does not align"):
            visible.at(3, 4)


def test_a_mask_ends_with_its_block_even_after_an_error() -> None:
    visible = VisiblePatches()

    def fail() -> None:
        with visible.use_mask(MASK):
            assert visible.active
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not visible.active
    with pytest.raises(RuntimeError, match="no mask is set"):
        visible.at(2, 2)


def test_hidden_pixels_become_zero_whatever_they_were() -> None:
    visible = VisiblePatches()
    with visible.use_mask(MASK):
        shown = visible.hide(torch.full((2, 3, 4, 4), torch.nan).where(holes(4), torch.tensor(1.0)))
    assert shown.equal((~holes(4)).float().expand(2, 3, 4, 4))


# The masked engine's rules


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, padding=1),
        nn.MaxPool2d(3, 2, 1),
        nn.BatchNorm2d(4),
        timm.layers.BatchNormAct2d(4),
        timm.layers.LayerNorm2d(4),
        timm.layers.FrozenBatchNormAct2d(4),
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        nn.ReLU(),
        nn.GELU(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_holes_stay_zero(layer: nn.Module) -> None:
    network, visible = sparse(layer)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    with visible.use_mask(MASK):
        result = network(visible.hide(picture()))
    hidden = holes(result.shape[-1]).expand_as(result)
    assert (result[hidden] == 0).all()
    assert (result[~hidden] != 0).any()


def test_batch_norm_counts_visible_positions_only() -> None:
    norm = nn.BatchNorm2d(4)
    network, visible = sparse(norm)
    x = picture() + 3
    with visible.use_mask(MASK):
        result = network(visible.hide(x))
    shown = x.permute(0, 2, 3, 1)[~holes(8)[:, 0]]
    torch.testing.assert_close(norm.running_mean, 0.1 * shown.mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * shown.var(0))
    expected = (shown - shown.mean(0)) / (shown.var(0, unbiased=False) + norm.eps).sqrt()
    torch.testing.assert_close(result.permute(0, 2, 3, 1)[~holes(8)[:, 0]], expected, atol=1e-5, rtol=1e-5)


def test_max_pooling_does_not_take_the_zero_of_a_hole() -> None:
    network, visible = sparse(nn.MaxPool2d(3, 2, 1))
    with visible.use_mask(MASK):
        result = network(visible.hide(-picture().abs() - 1))
    assert (result[~holes(4).expand_as(result)] <= -1).all()


# Conversion


class DoublingConv(nn.Conv2d):
    """A subclass that nobody looked at."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_subclass_of_a_known_layer_is_refused_by_path() -> None:
    network = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1), DoublingConv(4, 4, 1)))
    with pytest.raises(UserError, match=r"0\.1: DoublingConv"):
        sparsify(network, torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize(
    ("model", "path", "layer"),
    [
        ("ghostnetv2_100", r"blocks\.2\.0\.ghost1", "GhostModuleV2"),
        ("edgenext_xx_small", r"stages\.1\.blocks\.1\.xca", "CrossCovarianceAttn"),
    ],
)
def test_networks_with_unknown_layers_are_refused_by_path(model: str, path: str, layer: str) -> None:
    pyramid = TimmPyramid(model)
    with pytest.raises(UserError, match=rf"\b{path}: {layer}\b"):
        sparsify(pyramid, pyramid.example())


def test_a_refused_network_is_left_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), DoublingConv(4, 4, 1))
    with pytest.raises(UserError):
        sparsify(network, torch.zeros(1, 4, 8, 8))
    assert type(network[0]) is nn.Conv2d


def test_a_transformer_is_refused_in_one_line() -> None:
    pyramid = TimmPyramid("vit_tiny_patch16_224")
    with pytest.raises(UserError, match="does not run on an input of 1x3x32x32"):
        sparsify(pyramid, pyramid.example())


def test_a_model_without_drop_path_says_so() -> None:
    with pytest.raises(UserError, match=r"set model\.drop_path=0"):
        TimmPyramid("vgg11", drop_path=0.1)


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(UserError, match=r"'maskd'.*Did you mean masked"):
        sparsify(nn.Sequential(nn.ReLU()), torch.zeros(1, 1, 2, 2), engine="maskd")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model", ["resnet18", "convnext_atto"])
def test_without_a_mask_a_sparse_network_is_the_dense_one(model: str, engine: str) -> None:
    dense = TimmPyramid(model).eval()
    converted = copy.deepcopy(dense)
    sparsify(converted, converted.example(), engine)
    assert list(converted.state_dict()) == list(dense.state_dict())
    assert [n for n, _ in converted.named_modules()] == [n for n, _ in dense.named_modules()]
    images = torch.randn(1, 3, 96, 64)
    for found, wanted in zip(converted(images), dense(images), strict=True):
        assert found.equal(wanted)


def test_a_copy_has_a_mask_of_its_own() -> None:
    network = nn.ModuleDict({"net": nn.Sequential(nn.Conv2d(4, 4, 3, padding=1))})
    visible = sparsify(network["net"], torch.zeros(1, 4, 8, 8), "masked")
    twin = copy.deepcopy(network)
    x = picture()
    with visible.use_mask(MASK):
        masked, dense = network["net"](x), twin["net"](x)
    assert (masked[holes(8).expand_as(masked)] == 0).all()
    assert not (dense[holes(8).expand_as(dense)] == 0).any()


@pytest.mark.parametrize(("model", "frozen_at"), [
    ("convnext_atto", "network.head."), ("ghostnet_050", "network.conv_head."), ("rexnet_100", None), ("dpn48b", None),
])  # the last three go on behind the map that timm calls their last
def test_parameters_that_the_features_do_not_need_are_frozen(model: str, frozen_at: str | None) -> None:
    pyramid = TimmPyramid(model)
    sparsify(pyramid, pyramid.example())
    frozen = {name for name, p in pyramid.named_parameters() if not p.requires_grad}
    assert bool(frozen) == (frozen_at is not None)
    assert all(name.startswith(str(frozen_at)) for name in frozen)
    sum(m.sum() for m in pyramid(torch.randn(2, 3, 64, 64))).backward()
    assert {name for name, p in pyramid.named_parameters() if p.grad is None} == frozen


def test_a_layer_that_runs_for_nothing_is_frozen() -> None:
    """DDP would wait for its gradient for ever."""

    class Wasteful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            self.second(x)
            return x

    network = Wasteful()
    sparsify(network, torch.zeros(1, 3, 8, 8))
    assert [name for name, p in network.named_parameters() if not p.requires_grad] == ["second.weight", "second.bias"]
