"""A timm network in Detectron2 gives timm's features, under timm's names, and nothing that is not used."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from detectron2.modeling.backbone import FPN
from timm.layers import FrozenBatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn

from d2_projects.modeling.timm_backbone import TimmBackbone
from spark.errors import UserError

NETWORKS = ("convnext_atto", "regnety_002", "efficientnet_b0", "resnet18d")


def image() -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def build(name: str, **options: Any) -> TimmBackbone:
    torch.manual_seed(0)
    return TimmBackbone(name, **options)


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_timms_by_name_and_stride(name: str) -> None:
    backbone = build(name).eval()
    reference = timm.create_model(name, num_classes=0).eval()
    state = {key: tensor for key, tensor in reference.state_dict().items() if key not in backbone.pruned}
    backbone.net.load_state_dict(state)  # strict: the names are timm's
    with torch.no_grad():
        found, expected = backbone(image()), reference.forward_intermediates(image(), intermediates_only=True)
    by_stride = {64 // feature.shape[2]: feature for feature in expected}
    assert list(found) == ["res2", "res3", "res4", "res5"]
    for feature, stride in zip(found, (4, 8, 16, 32), strict=True):
        torch.testing.assert_close(found[feature], by_stride[stride])
        shape = backbone.output_shape()[feature]
        assert (shape.channels, shape.stride) == (found[feature].shape[1], stride)
    assert backbone.size_divisibility == backbone.padding_constraints["size_divisibility"] == 32


@pytest.mark.parametrize("name", [*NETWORKS, "convnextv2_atto", "mobilenetv3_small_050"])
def test_every_parameter_gets_a_gradient(name: str) -> None:
    backbone = build(name, out_norm="LN")
    sum(feature.square().sum() for feature in backbone(image()).values()).backward()
    assert not [key for key, parameter in backbone.named_parameters() if parameter.grad is None]


def test_only_what_is_returned_is_kept() -> None:
    backbone = build("resnet18d", out_features=["res4", "res3"])
    assert {name: shape.stride for name, shape in backbone.output_shape().items()} == {"res3": 8, "res4": 16}
    assert any(name.startswith("layer4.") for name in backbone.pruned)
    assert not any(name.startswith("layer4.") for name in backbone.net.state_dict())


@pytest.mark.parametrize("name", ["resnet18d", "efficientnet_b0"])
def test_a_dilated_network_keeps_its_names(name: str) -> None:
    backbone = build(name, output_stride=16)
    assert [shape.stride for shape in backbone.output_shape().values()] == [4, 8, 16, 16]
    assert {feature: tuple(map_.shape[2:]) for feature, map_ in backbone(image()).items()}["res5"] == (4, 6)


@pytest.mark.parametrize(("name", "stages", "trained"), [
    ("convnext_atto", 2, "stages.1."), ("resnet18d", 1, "layer1."), ("efficientnet_b0", 3, "blocks.2."),
])
def test_frozen_stages_do_not_change(name: str, stages: int, trained: str) -> None:
    names = list(dict(build(name).net.named_parameters()))
    first = next(index for index, key in enumerate(names) if key.startswith(trained))
    backbone = build(name, frozen_stages=stages).train()
    before = {key: tensor.clone() for key, tensor in backbone.net.state_dict().items()}
    sum(feature.square().sum() for feature in backbone(image()).values()).backward()
    assert [key for key, parameter in backbone.net.named_parameters() if parameter.grad is not None] == names[first:]
    for key, tensor in backbone.net.state_dict().items():  # statistics: frozen below, moving above
        if key.endswith("running_mean"):
            weight = key.replace("running_mean", "weight")
            assert torch.equal(tensor, before[key]) == (weight in names[:first]), key


@pytest.mark.parametrize(("norm", "kind"), [("SyncBN", SyncBatchNormAct), ("FrozenBN", FrozenBatchNormAct2d)])
def test_converted_norms_keep_their_activation(norm: str, kind: type[nn.Module]) -> None:
    plain, converted = build("regnety_002").eval(), build("regnety_002", norm=norm).eval()
    assert any(isinstance(module, kind) for module in converted.modules())
    assert not any(type(module).__name__ == "BatchNormAct2d" for module in converted.modules())
    with torch.no_grad():
        for feature, expected in plain(image()).items():
            torch.testing.assert_close(converted(image())[feature], expected, rtol=1e-4, atol=1e-5)
    assert bool(list(plain.net.stem.bn.parameters())) is True
    assert bool(list(converted.net.stem.bn.parameters())) == (norm == "SyncBN")


def test_out_norm_normalizes_over_channels() -> None:
    for feature in build("convnext_atto", out_norm="LN")(image()).values():
        torch.testing.assert_close(feature.mean(1), torch.zeros_like(feature[:, 0]), rtol=0, atol=1e-5)


def test_drop_path_reaches_the_network() -> None:
    rates = [module.drop_prob for module in build("convnext_atto", drop_path_rate=0.4).modules()
             if hasattr(module, "drop_prob")]
    assert max(rates) == pytest.approx(0.4)


def test_it_serves_an_fpn() -> None:
    backbone = build("convnext_atto", out_norm="LN")
    fpn = FPN(bottom_up=backbone, in_features=["res2", "res3", "res4", "res5"], out_channels=8)
    assert {name: tuple(map_.shape[1:]) for name, map_ in fpn(image()).items()} == {
        "p2": (8, 16, 24), "p3": (8, 8, 12), "p4": (8, 4, 6), "p5": (8, 2, 3)}
    assert fpn.size_divisibility == 32


@pytest.mark.parametrize(("name", "options", "message"), [
    ("resnet18x", {}, "unknown model 'resnet18x'. Did you mean .*resnet18"),
    ("vit_tiny_patch16_224", {}, "has no feature pyramid: all its maps have one stride"),
    ("swin_tiny_patch4_window7_224", {}, "takes images of one size only"),
    ("resnet18d", {"out_features": ["res2", "res6"]}, "no feature map res6; it has res1, res2, res3, res4, res5"),
    ("convnext_atto", {"norm": "SyncBN"}, "has no batch norm"),
    ("resnet18d", {"norm": "GN"}, "norm='GN'"),
    ("convnext_atto", {"frozen_stages": 6}, "frozen_stages=6: timm's convnext_atto has 5, the stem among them"),
    ("poolformer_s12", {"frozen_stages": 1}, "poolformer_s12 does not tell its stages; set frozen_stages=0"),
    ("vgg11", {"drop_path_rate": 0.1}, r"set model\.backbone\.bottom_up\.drop_path_rate=0"),
])
def test_what_cannot_be_is_one_line(name: str, options: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=message) as raised:
        TimmBackbone(name, **options)
    assert "\n" not in str(raised.value)
