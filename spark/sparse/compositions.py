"""timm modules that only compose layers, by exact type. Read a module's forward pass before adding it.

A composition calls layers and sums, scales, multiplies, splits or concatenates their outputs along the channels:
zero stays zero, and positions do not mix. A module that itself pads, pools, resizes, averages or reshapes a map
does not belong here, nor does one that calls such layers on anything but a map.

For models (the last entries of each line) this refers to `forward_intermediates`. The table holds names, not types,
because timm releases differ in their modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

COMPOSITIONS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        module: frozenset(names.split())
        for module, names in {
            "_efficientnet_blocks": "ConvBnAct DepthwiseSeparableConv InvertedResidual EdgeResidual "
            "UniversalInvertedResidual",
            "byobnet": "BasicBlock BottleneckBlock DarkBlock EdgeBlock RepVggBlock MobileOneBlock DownsampleAvg Stem "
            "ByobNet",
            "convmixer": "Residual ConvMixer",
            "convnext": "Downsample ConvNeXtBlock ConvNeXtStage ConvNeXt",
            "cspnet": "BottleneckBlock DarkBlock EdgeBlock CrossStage CrossStage3 DarkStage CspNet",
            "cspnext": "DepthwiseSeparableConv CspNextBlock CspNextLayer SPPBottleneck CspNext",
            "densenet": "DenseLayer DenseBlock DenseTransition DenseNet",
            "dla": "DlaBasic DlaBottleneck DlaBottle2neck DlaRoot DlaTree DLA",
            "dpn": "BnAct BnActConv2d DualPathBlock DPN",
            "efficientnet": "EfficientNet",
            "fasternet": "Partial_conv3 MLPBlock PatchEmbed PatchMerging Block FasterNet",
            "fastvit": "MobileOneBlock ReparamLargeKernelConv PatchEmbed RepMixer RepMixerBlock RepConditionalPosEnc "
            "ConvMlp FastVitStage FastVit",
            "focalnet": "Downsample FocalNetBlock FocalNetStage FocalNet",
            "ghostnet": "GhostModule GhostBottleneck GhostBottleneckV3 GhostNet",
            "hgnet": "ConvBNAct LightConvBNAct HighPerfGpuBlock HighPerfGpuStage StemV1 HighPerfGpuNet",
            "hrnet": "HighResolutionModule SequentialList HighResolutionNet",
            "inception_next": "InceptionDWConv2d ConvMlp MetaNeXtBlock MetaNeXtStage MetaNeXt",
            "lcnetv2": "RepDepthwiseSeparable LCNetV2",
            "lowformer": "ResidualBlock ConvLayer MBConv FusedMBConv LowFormerBlock LowFormer",
            "mambaout": "Stem Downsample DownsampleNormFirst GatedConvBlock MambaOutStage MambaOut",
            "metaformer": "Stem Downsampling SepConv Pooling MetaFormerBlock MetaFormerStage MetaFormer",
            "mobilenetv3": "MobileNetV3",
            "nfnet": "DownsampleAvg NormFreeBlock NormFreeNet",
            "rdnet": "Block BlockESE DenseBlock DenseStage RDNet",
            "regnet": "Bottleneck PreBottleneck RegStage RegNet",
            "repghost": "RepGhostModule RepGhostBottleneck RepGhostNet",
            "repvit": "ConvNorm RepVggDw RepVitMlp RepViTBlock RepVitDownsample RepVitStage RepVitStem RepVit",
            "res2net": "Bottle2neck",
            "resnest": "ResNestBottleneck",
            "resnet": "BasicBlock Bottleneck ResNet",
            "resnetv2": "PreActBasic PreActBottleneck Bottleneck DownsampleConv DownsampleAvg ResNetStage ResNetV2",
            "rexnet": "LinearBottleneck RexNet",
            "selecsls": "SequentialList SelecSlsBlock SelectSeq SelecSls",
            "senet": "SEBottleneck SEResNetBottleneck SEResNeXtBottleneck SEResNetBlock SENet",
            "sknet": "SelectiveKernelBasic SelectiveKernelBottleneck",
            "starnet": "ConvBN Block StarNet",
            "tresnet": "BasicBlock Bottleneck TResNet",
            "vgg": "VGG",
            "vovnet": "SequentialAppendList OsaBlock OsaStage VovNet",
            "xception": "SeparableConv2d Block Xception",
            "xception_aligned": "SeparableConv2d PreSeparableConv2d XceptionModule PreXceptionModule XceptionAligned",
        }.items()
    }
)
"""By module of timm.models."""

_REFUSED: tuple[tuple[str, str], ...] = (
    (
        "mixes all positions of an image by attention",
        "layers.attention.Attention layers.attention2d.Attention2d layers.attention2d.MultiQueryAttention2d "
        "layers.bottleneck_attn.BottleneckAttn layers.halo_attn.HaloAttn layers.lambda_layer.LambdaLayer "
        "layers.non_local_attn.NonLocalAttn layers.non_local_attn.BatNonLocalAttn models.cpubone.ConvAttention "
        "models.edgenext.CrossCovarianceAttn models.efficientvit_mit.LiteMLA models.fastvit.Attention "
        "models.iformer.SHMA models.lowformer.ConvAttention models.metaformer.Attention "
        "models.mobilevit.LinearSelfAttention models.nextvit.EfficientAttention models.tiny_vit.Attention",
    ),
    (
        "averages along rows and columns",
        "layers.coord_attn.CoordAttn layers.coord_attn.SimpleCoordAttn layers.coord_attn.EfficientLocalAttn "
        "layers.coord_attn.StripAttn",
    ),
    ("runs a recurrent network along rows and columns", "models.sequencer.LSTM2d"),
    (
        "pools a map by two, even where a patch is one position",
        "models.ghostnet.GhostModuleV2 models.ghostnet.GhostModuleV3",
    ),
    ("convolves every image with weights of its own", "layers.cond_conv2d.CondConv2d"),
)

REFUSED: Mapping[str, str] = MappingProxyType({name: reason for reason, names in _REFUSED for name in names.split()})
"""Why some layers, named relative to timm, are none of a sparse network's."""


def reason_against(sort: type) -> str:
    """Return why a type cannot be part of a sparse network; "" if there is no known reason."""
    return REFUSED.get(f"{sort.__module__}.{sort.__qualname__}".removeprefix("timm."), "")


def is_composition(sort: type) -> bool:
    """Whether exactly this type is a known composition."""
    package, _, module = sort.__module__.rpartition(".")
    return package == "timm.models" and sort.__qualname__ in COMPOSITIONS.get(module, ())
