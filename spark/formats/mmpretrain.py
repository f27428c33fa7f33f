"""OpenMMLab's naming: mmpretrain (once mmcls) and the detectors and segmenters that have its networks inside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from spark.formats import torchvision
from spark.formats.encoder import EncoderInfo
from spark.formats.naming import Conversion, Drops, Renaming, Rule, Table, table_of, unwrapped
from spark.formats.official_convnext import linear_layers
from spark.formats.writer import save_tensors

TITLE = "OpenMMLab naming (mmpretrain, mmdet)"
USAGE = "in mmpretrain, mmdet or mmseg: backbone.init_cfg=dict(type='Pretrained', checkpoint=FILE, prefix='backbone.')"
CAUTION = (
    "OpenMMLab's files do not tell a ResNet's style: taken as style='pytorch' (stride in the 3x3 convolution) and RGB, "
    "which 'caffe' weights are not"
)

# Inside the backbone, ResNets are named as torchvision's.
RESNET = Table(
    *(
        Rule(f"backbone.{rule.theirs}", rule.timm)
        for rule in torchvision.RESNET.rules
        if not rule.theirs.startswith("fc.")
    ),
    Rule("head.fc.{leaf}", "fc.{leaf}"),
    example=torchvision.RESNET.example,
)
CONVNEXT = Table(
    Rule("backbone.downsample_layers.0.{part}.{leaf}", "stem.{part}.{leaf}"),
    Rule("backbone.downsample_layers.{stage}.{part}.{leaf}", "stages.{stage}.downsample.{part}.{leaf}"),
    Rule("backbone.stages.{stage}.{block}.depthwise_conv.{leaf}", "stages.{stage}.blocks.{block}.conv_dw.{leaf}"),
    Rule("backbone.stages.{stage}.{block}.norm.{leaf}", "stages.{stage}.blocks.{block}.norm.{leaf}"),
    Rule("backbone.stages.{stage}.{block}.pointwise_conv{conv}.{leaf}",
         "stages.{stage}.blocks.{block}.mlp.fc{conv}.{leaf}"),
    Rule("backbone.stages.{stage}.{block}.gamma", "stages.{stage}.blocks.{block}.gamma"),
    Rule("backbone.stages.{stage}.{block}.grn.gamma", "stages.{stage}.blocks.{block}.mlp.grn.weight"),
    Rule("backbone.stages.{stage}.{block}.grn.beta", "stages.{stage}.blocks.{block}.mlp.grn.bias"),
    Rule("backbone.norm3.{leaf}", "head.norm.{leaf}"),
    Rule("head.fc.{leaf}", "head.fc.{leaf}"),
    example="stages.0.blocks.0.conv_dw.weight",
)  # fmt: skip
BARE: Renaming = ((r"((?:downsample_layers|stages|norm[0-3])\..*)", r"backbone.\1"),)
OUTSIDE: Drops = (
    (r"(neck|rpn_head|roi_head|bbox_head|mask_head|decode_head|auxiliary_head)\..*", "detector's or segmenter's own"),
    (r"data_preprocessor\..*", "mean and deviation of the pixels"),
)
LEVEL_NORMS: Drops = (
    # With one norm for each level, they are a detector's; alone, norm3 is the one before the classifier.
    (r"backbone\.norm[0-3]\..*", "norm of a detector's input"),
)


def recognized(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys are in OpenMMLab's naming; a bare ResNet of theirs has torchvision's."""
    return any(table.recognized(unwrapped(state, BARE).state) for table in (RESNET, CONVNEXT))


def to_timm(state: Mapping[str, Tensor]) -> Conversion:
    """Map OpenMMLab's names, of a classifier or of a detector, to timm's."""
    named = unwrapped(state, BARE)
    table = CONVNEXT if CONVNEXT.recognized(named.state) else RESNET
    drops = [*OUTSIDE, *(LEVEL_NORMS if "backbone.norm0.weight" in named.state else ())]
    return named.then(table.to_timm(named.state, drops, source=TITLE))


def from_timm(state: Mapping[str, Tensor]) -> Conversion:
    """Map a ResNet or ConvNeXt of timm to mmpretrain's names.

    Raises:
        UserError: mmpretrain's networks cannot hold it.
    """
    return table_of((RESNET, CONVNEXT), state, TITLE).from_timm(linear_layers(state), source=TITLE)


def save(destination: Path, state: Mapping[str, Tensor], info: EncoderInfo) -> list[Path]:
    """Write the state dict as OpenMMLab's checkpoints hold it."""
    return save_tensors(destination, state, {"meta": {}, "state_dict": dict(state)})
