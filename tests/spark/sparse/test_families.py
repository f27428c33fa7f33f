"""One member of each family of timm's convolutional networks, on both engines; and what is refused, and why."""

from __future__ import annotations

import copy
import importlib

import pytest
import timm.layers
import torch
from timm.layers import cbam
from timm.layers.pool2d_same import MaxPool2dSame
from timm.layers.std_conv import StdConv2dSame
from torch import Tensor, nn

from spark.backbones.timm_pyramid import TimmPyramid
from spark.errors import UserError
from spark.masking import random_mask
from spark.sparse import ENGINES, sparsify
from spark.sparse.check import check_equivalence
from spark.sparse.compositions import COMPOSITIONS, REFUSED

QUICK = (
    *("resnet18d", "resnet26t", "ecaresnet26t", "legacy_seresnet18", "resnest14d", "skresnet18", "resnetv2_18"),
    *("regnetx_002", "regnety_002", "tf_efficientnet_b0", "test_efficientnet_gn", "mobilenetv2_050"),
    *("mobilenetv3_small_050", "mobilenetv4_conv_small_035", "mnasnet_small", "ghostnet_050", "repghostnet_050"),
    *("test_convnext", "test_convnext3", "convnext_zepto_rms", "test_nfnet", "darknet17", "dla46_c", "gernet_s"),
    *("hrnet_w18_small", "repvgg_a0", "inception_next_atto", "hgnetv2_b0", "ese_vovnet19b_dw", "fastvit_t8"),
    *("starnet_s1", "fasternet_t0", "poolformer_s12", "cspnext_s", "resnetblur18"),
)
SLOW = (
    *("resnext50_32x4d", "seresnet50", "gcresnet50t", "resnet50_clip", "resnetv2_50x1_bit", "resnetv2_50d_gn"),
    *("res2net50_26w_4s", "dla60_res2net", "regnetz_b16", "rexnet_100", "efficientnet_b0", "efficientnet_lite0"),
    *("efficientnetv2_rw_t", "tf_efficientnetv2_b0", "efficientnet_cc_b0_4e", "mixnet_s", "mobileone_s0"),
    *("mobilenetv4_conv_aa_medium", "mobilenetv4_conv_blur_medium", "convnextv2_atto", "densenet121", "vgg11_bn"),
    *("vgg11", "cspresnet50", "nfnet_l0", "dm_nfnet_f0", "hgnet_tiny", "vovnet39a", "repvit_m0_9", "selecsls42b"),
    *("xception41", "xception41p", "rdnet_tiny", "mambaout_femto", "convformer_s18", "lcnetv2_base", "dpn48b"),
    *("focalnet_tiny_srf", "tresnet_m", "densenetblur121d"),
)
FAMILIES = (*QUICK, *(pytest.param(model, marks=pytest.mark.slow) for model in SLOW))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model", FAMILIES)
def test_a_family_is_converted_exactly(model: str, engine: str) -> None:
    found = check_equivalence(model, engine, patches=2)
    assert found.engine == engine
    assert found.holds, found.errors


@pytest.mark.parametrize(
    "model",
    [
        *("test_nfnet", "skresnet18", "resnest14d", "hgnetv2_b0", "hrnet_w18_small"),
        *(pytest.param(model, marks=pytest.mark.slow) for model in ("vgg11", "resnetv2_50x1_bit", "focalnet_tiny_srf")),
    ],
)
def test_both_engines_have_the_same_gradients(model: str) -> None:
    """Also that networks with in-place activations right behind a convolution train at all."""
    gradients = {}
    mask = random_mask(2, (3, 3), 0.5, torch.Generator().manual_seed(0))
    network = TimmPyramid(model).double()
    for layer in network.modules():
        if isinstance(layer, timm.layers.DropPath):
            layer.drop_prob = 0.0  # FocalNet drops paths by default
    for engine in ENGINES:
        sparse = copy.deepcopy(network)
        visible = sparsify(sparse, sparse.example().double(), engine)
        generator = torch.Generator().manual_seed(1)
        side = 3 * sparse.strides[-1]
        images = torch.randn(2, 3, side, side, dtype=torch.float64, generator=generator)
        with visible.use_mask(mask):
            maps = [visible.leave(map_) for map_ in sparse.train()(visible.enter(images))]
        torch.stack([(m * torch.randn(m.shape, generator=generator)).sum() for m in maps]).sum().backward()
        gradients[engine] = {name: p.grad for name, p in sparse.named_parameters() if p.grad is not None}
    assert gradients["masked"].keys() == gradients["compact"].keys()
    scale = torch.stack([gradient.norm() for gradient in gradients["masked"].values()]).max().item()
    for name, wanted in gradients["masked"].items():
        torch.testing.assert_close(gradients["compact"][name], wanted, rtol=1e-7, atol=1e-9 * scale, msg=name)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("legacy_xception", r"conv1: Conv2d with a kernel of 3, stride 2 and padding 0 does not map patches"),
        ("inception_v3", r"does not run on an input of 1x3x64x64"),
        ("ghostnetv2_100", r"ghost1: GhostModuleV2 pools a map by two, even where a patch is one position"),
        ("edgenext_xx_small", r"xca: CrossCovarianceAttn mixes all positions of an image by attention"),
        ("fastvit_sa12", r"token_mixer: Attention mixes all positions"),
        ("mobilenetv4_hybrid_medium", r"attn: MultiQueryAttention2d mixes all positions"),
        ("lambda_resnet26t", r"self_attn: LambdaLayer mixes all positions"),
        ("sequencer2d_s", r"rnn_tokens: LSTM2d runs a recurrent network along rows and columns"),
    ],
)
def test_what_has_no_sparse_meaning_is_refused_with_the_reason(model: str, reason: str) -> None:
    with torch.device("meta"):
        pyramid = TimmPyramid(model)
        with pytest.raises(UserError, match=reason):
            sparsify(pyramid, pyramid.example())


# Layers that no model has by default


def with_parameters_at_random(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer.double()


def ceil_average(count_include_pad: bool) -> nn.Module:
    return nn.AvgPool2d(3, 2, ceil_mode=True, count_include_pad=count_include_pad)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "layer",
    [
        cbam.CbamModule(8),
        cbam.LightCbamModule(8),
        timm.layers.CecaModule(8),
        timm.layers.GlobalContext(8, fuse_add=True),
        timm.layers.EvoNorm2dB0(8),
        timm.layers.EvoNorm2dS1(8, groups=2),
        timm.layers.FilterResponseNormAct2d(8),
        timm.layers.SplitAttn(8, radix=1, norm_layer=nn.BatchNorm2d),
        timm.layers.SelectiveKernel(8, split_input=False),
        nn.InstanceNorm2d(8, affine=True),
        StdConv2dSame(8, 8, 3, stride=2),
        timm.layers.AvgPool2dSame(2, 1, count_include_pad=False),
        timm.layers.AvgPool2dSame(3, 2),
        ceil_average(count_include_pad=False),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        MaxPool2dSame(3, 2),
        timm.layers.BlurPool2d(8),
        nn.Sequential(nn.ZeroPad2d((0, 1, 1, 0)), nn.Conv2d(8, 8, 2)),
        nn.Sequential(nn.ConstantPad2d(1, 0.0), nn.MaxPool2d(3, 2)),
        nn.Sequential(nn.Hardsigmoid(), nn.Conv2d(8, 8, 3, padding=1)),
        nn.PixelUnshuffle(2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_picture_among_masked_patches_passes_a_layer_as_if_alone(layer: nn.Module, engine: str) -> None:
    layer = with_parameters_at_random(copy.deepcopy(layer)).train()
    picture = torch.randn(2, 8, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = copy.deepcopy(layer)(picture)
        network = nn.Sequential(layer)
        visible = sparsify(network, picture[:1], engine)
        mask = torch.zeros(2, 1, 4, 5, dtype=torch.bool)
        mask[..., 1:3, 2:4] = True
        canvas = torch.randn(2, 8, 16, 20, dtype=torch.float64)
        canvas[..., 4:12, 8:16] = picture
        with visible.use_mask(mask):
            found = visible.leave(network(visible.enter(canvas)))
    size = wanted.shape[-1]
    inside = (..., slice(size // 2, size // 2 + size), slice(size, 2 * size))
    torch.testing.assert_close(found[inside], wanted, rtol=1e-6, atol=1e-6)  # some norms compute in float32
    found[inside] = 0
    assert not found.any()


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (ceil_average(count_include_pad=True), "reach over the border"),
        (nn.AvgPool2d(2, divisor_override=3), "divides by a number of its own"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "pads with reflect values"),
        (timm.layers.BlurPool2d(4, filt_size=5), "reflects more positions than a patch may have"),
        (timm.layers.BlurPool2d(4, pad_mode="replicate"), "pads with replicated values"),
        (nn.Upsample(scale_factor=2, mode="bilinear"), "interpolates between positions"),
        (nn.Dropout2d(0.1), "drops whole regions"),
        (timm.layers.DropBlock2d(0.1), "drops whole regions"),
        (nn.LayerNorm((4, 8, 8)), "fixed size"),
        (nn.Sequential(nn.ZeroPad2d(1), nn.ReLU()), "pads a map otherwise"),
        (nn.Sequential(nn.ConstantPad2d(1, 1.0), nn.Conv2d(4, 4, 3)), "pads a map otherwise"),
        (nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(4, 4, 5)), "does not map patches to patches"),
        (nn.AdaptiveAvgPool2d(1), "pools an image"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_a_layer_is_refused_with_the_reason(layer: nn.Module, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        sparsify(nn.Sequential(layer), torch.zeros(1, 4, 8, 8))


class Wrapper(nn.Module):
    """Calls what is inside of it by another method than forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, 4, 1))

    def features(self, x: Tensor) -> Tensor:
        return self.layers(x).flip(2)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wrapper = Wrapper()

    def forward(self, x: Tensor) -> Tensor:
        return self.wrapper.features(x)


def test_a_module_that_is_run_by_another_method_must_be_known_too() -> None:
    with pytest.raises(UserError, match="wrapper: Wrapper"):
        sparsify(Outer(), torch.zeros(1, 4, 8, 8))


def test_every_named_class_of_timm_exists() -> None:
    models = [f"models.{module}.{name}" for module, names in COMPOSITIONS.items() for name in names]
    for path in (*models, *REFUSED):
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(f"timm.{module}"), name), path
