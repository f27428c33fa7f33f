"""torchvision's naming of ResNets (which is timm's too) and of ConvNeXts, and the proof by torchvision's own models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import timm
import torchvision
from torch import Tensor, nn

from spark.errors import UserError, nearest
from spark.formats.encoder import EncoderInfo
from spark.formats.naming import Conversion, Rule, Table, per_stage, table_of
from spark.formats.proofs import Difference, difference, random_images
from spark.formats.writer import save_tensors
from spark.utils.state_dict import load_strictly

TITLE = "torchvision naming"
USAGE = "it has no classifier: load it with strict=False, or into a model whose fc (classifier[2]) is Identity"
CAUTION = ""


def _same(name: str) -> Rule:
    return Rule(name, name)


RESNET = Table(
    _same("conv1.weight"),
    _same("bn1.{norm}"),
    *per_stage(
        {f"layer{number}": f"layer{number}" for number in range(1, 5)},
        _same("{stage}.{block}.conv{conv}.weight"),
        _same("{stage}.{block}.bn{conv}.{norm}"),
        _same("{stage}.{block}.downsample.0.weight"),
        _same("{stage}.{block}.downsample.1.{norm}"),
    ),
    _same("fc.{leaf}"),
    example="layer1.0.conv1.weight",
)
CONVNEXT = Table(
    Rule("features.0.{part}.{leaf}", "stem.{part}.{leaf}"),
    *per_stage(
        {"features.1": "stages.0", "features.3": "stages.1", "features.5": "stages.2", "features.7": "stages.3"},
        Rule("{stage}.{block}.block.0.{leaf}", "{stage}.blocks.{block}.conv_dw.{leaf}"),
        Rule("{stage}.{block}.block.2.{leaf}", "{stage}.blocks.{block}.norm.{leaf}"),
        Rule("{stage}.{block}.block.3.{leaf}", "{stage}.blocks.{block}.mlp.fc1.{leaf}"),
        Rule("{stage}.{block}.block.5.{leaf}", "{stage}.blocks.{block}.mlp.fc2.{leaf}"),
        Rule("{stage}.{block}.layer_scale", "{stage}.blocks.{block}.gamma", (-1, 1, 1)),
    ),
    *per_stage(
        {"features.2": "stages.1", "features.4": "stages.2", "features.6": "stages.3"},
        Rule("{stage}.{part}.{leaf}", "{stage}.downsample.{part}.{leaf}"),
    ),
    Rule("classifier.0.{leaf}", "head.norm.{leaf}"),
    Rule("classifier.2.{leaf}", "head.fc.{leaf}"),
    example="stages.0.blocks.0.conv_dw.weight",
)


def recognized(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys are in torchvision's naming and not in timm's, which agree for ResNets."""
    return CONVNEXT.recognized(state)


def to_timm(state: Mapping[str, Tensor]) -> Conversion:
    """Map torchvision's names to timm's."""
    return (CONVNEXT if CONVNEXT.recognized(state) else RESNET).to_timm(state, source=TITLE)


def from_timm(state: Mapping[str, Tensor]) -> Conversion:
    """Map a ResNet or ConvNeXt of timm to torchvision's names.

    Raises:
        UserError: torchvision's networks cannot hold it.
    """
    return table_of((RESNET, CONVNEXT), state, TITLE).from_timm(state, source=TITLE)


def save(destination: Path, state: Mapping[str, Tensor], info: EncoderInfo) -> list[Path]:
    """Write the bare state dict."""
    return save_tensors(destination, state, state)


def largest_output_difference(
    timm_state: dict[str, Tensor], their_state: dict[str, Tensor], info: EncoderInfo
) -> Difference:
    """Compare pooled features of timm's and torchvision's model.

    Args:
        timm_state: weights of timm's model without classifier, every key of it.
        their_state: the same weights in torchvision's naming, likewise complete.
        info: which model it is.

    Raises:
        UserError: torchvision has no such network, or a state does not fit exactly.
    """
    name = info.model.partition(".")[0]
    if name not in (names := torchvision.models.list_models(module=torchvision.models)):
        raise UserError(f"torchvision has no model '{name}'.{nearest(name, names)}")
    reference = timm.create_model(info.model, num_classes=0, in_chans=info.in_chans, **info.options)
    converted = torchvision.models.get_model(name, weights=None)
    if hasattr(converted, "fc"):
        converted.fc = nn.Identity()
    else:
        converted.classifier[2] = nn.Identity()
    load_strictly(reference, timm_state, "the state", f"timm's {info.model}")
    load_strictly(converted, their_state, "the state", f"torchvision's {name}")
    return difference(converted.eval(), reference.eval(), random_images(info.in_chans))
