"""ConvNeXt's official naming (facebookresearch/ConvNeXt and ConvNeXt-V2), which the original SparK uses too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from spark.formats.encoder import EncoderInfo
from spark.formats.naming import Conversion, Drops, Renaming, Rule, Table, unwrapped
from spark.formats.writer import save_tensors

TITLE = "official ConvNeXt naming"
USAGE = "it has no classifier: load_state_dict(torch.load(FILE)['model'], strict=False)"
CAUTION = ""

TABLE = Table(
    Rule("downsample_layers.0.{part}.{leaf}", "stem.{part}.{leaf}"),
    Rule("downsample_layers.{stage}.{part}.{leaf}", "stages.{stage}.downsample.{part}.{leaf}"),
    Rule("stages.{stage}.{block}.dwconv.{leaf}", "stages.{stage}.blocks.{block}.conv_dw.{leaf}"),
    Rule("stages.{stage}.{block}.norm.{leaf}", "stages.{stage}.blocks.{block}.norm.{leaf}"),
    Rule("stages.{stage}.{block}.pwconv{conv}.{leaf}", "stages.{stage}.blocks.{block}.mlp.fc{conv}.{leaf}"),
    Rule("stages.{stage}.{block}.gamma", "stages.{stage}.blocks.{block}.gamma"),
    Rule("stages.{stage}.{block}.grn.gamma", "stages.{stage}.blocks.{block}.mlp.grn.weight", (1, 1, 1, -1)),
    Rule("stages.{stage}.{block}.grn.beta", "stages.{stage}.blocks.{block}.mlp.grn.bias", (1, 1, 1, -1)),
    Rule("norm.{leaf}", "head.norm.{leaf}"),
    Rule("head.{leaf}", "head.fc.{leaf}"),
    example="stages.0.blocks.0.conv_dw.weight",
)
IN_DETECTOR: Renaming = ((r"backbone\.(.*)", r"\1"),)
DETECTOR: Drops = (
    (r"norm[0-3]\..*", "norm of a detector's input"),
    (r"(neck|rpn_head|roi_head|bbox_head|mask_head|decode_head|auxiliary_head)\..*", "detector's or segmenter's own"),
)


def recognized(state: Mapping[str, Tensor]) -> bool:
    """Whether the keys are in the official ConvNeXt naming, alone or in a detector."""
    return TABLE.recognized(unwrapped(state, IN_DETECTOR).state)


def to_timm(state: Mapping[str, Tensor]) -> Conversion:
    """Map official names to timm's."""
    inside = unwrapped(state, IN_DETECTOR)
    return inside.then(TABLE.to_timm(inside.state, DETECTOR, source=TITLE))


def from_timm(state: Mapping[str, Tensor]) -> Conversion:
    """Map a ConvNeXt of timm to the official names.

    Raises:
        UserError: the official ConvNeXt cannot hold the network.
    """
    return TABLE.from_timm(linear_layers(state), source=TITLE)


def linear_layers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state with the 1x1 convolutions that are timm's pointwise layers in small ConvNeXts as linear layers.

    The numbers are the same; the reader gives them the shape that the model wants.
    """
    return {
        key: tensor.flatten(1) if ".mlp.fc" in key and tensor.shape[2:] == (1, 1) else tensor
        for key, tensor in state.items()
    }


def save(destination: Path, state: Mapping[str, Tensor], info: EncoderInfo) -> list[Path]:
    """Write the state dict as the official code's checkpoints hold it."""
    return save_tensors(destination, state, {"model": dict(state)})
