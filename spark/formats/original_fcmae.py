"""Checkpoints of the original FCMAE (facebookresearch/ConvNeXt-V2), in the names of its sparse layers.

Its sparse library keeps a convolution's weight as [k * k, in, out] ([k * k, C] if depthwise), rows running fastest, and
biases as [1, C]. What was fine-tuned has dense layers and other names (`official_convnext`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from spark.formats.encoder import EncoderInfo
from spark.formats.naming import Conversion, Rule, Table, rename
from spark.formats.official_convnext import linear_layers
from spark.formats.whole_model import LACKING, OURS, SAME, keep_encoder, side_by_side, split
from spark.formats.writer import save_tensors

TITLE = "original FCMAE format"
USAGE = "the original's main_finetune.py takes it as --finetune"
CAUTION = ""

WHOLE = "original FCMAE, whole model"
METHOD = "fcmae"  # whose checkpoints these are
ENCODER = "encoder."

TABLE = Table(
    Rule("downsample_layers.0.{part}.{leaf}", "stem.{part}.{leaf}"),
    Rule("downsample_layers.{stage}.0.ln.{leaf}", "stages.{stage}.downsample.0.{leaf}"),
    Rule("downsample_layers.{stage}.1.kernel", "stages.{stage}.downsample.1.weight"),
    Rule("downsample_layers.{stage}.1.bias", "stages.{stage}.downsample.1.bias", (1, -1)),
    Rule("stages.{stage}.{block}.dwconv.kernel", "stages.{stage}.blocks.{block}.conv_dw.weight"),
    Rule("stages.{stage}.{block}.dwconv.bias", "stages.{stage}.blocks.{block}.conv_dw.bias", (1, -1)),
    Rule("stages.{stage}.{block}.norm.ln.{leaf}", "stages.{stage}.blocks.{block}.norm.{leaf}"),
    Rule("stages.{stage}.{block}.pwconv{conv}.linear.{leaf}", "stages.{stage}.blocks.{block}.mlp.fc{conv}.{leaf}"),
    Rule("stages.{stage}.{block}.grn.gamma", "stages.{stage}.blocks.{block}.mlp.grn.weight", (1, -1)),
    Rule("stages.{stage}.{block}.grn.beta", "stages.{stage}.blocks.{block}.mlp.grn.bias", (1, -1)),
    example="stages.0.blocks.0.conv_dw.weight",
)
AROUND = Table(
    Rule("mask_token", "decoder.mask_token"),
    Rule("proj.{leaf}", "decoder.project.{leaf}"),
    Rule("decoder.{block}.dwconv.{leaf}", "decoder.blocks.{block}.conv_dw.{leaf}"),
    Rule("decoder.{block}.norm.{leaf}", "decoder.blocks.{block}.norm.{leaf}"),
    Rule("decoder.{block}.pwconv{conv}.{leaf}", "decoder.blocks.{block}.mlp.fc{conv}.{leaf}"),
    Rule("decoder.{block}.grn.gamma", "decoder.blocks.{block}.mlp.grn.weight", (1, 1, 1, -1)),
    Rule("decoder.{block}.grn.beta", "decoder.blocks.{block}.mlp.grn.bias", (1, 1, 1, -1)),
    Rule("pred.{leaf}", "decoder.to_pixels.{leaf}"),
    example="decoder.project.weight",
)


def recognized(state: Mapping[str, Tensor]) -> bool:
    """Whether an encoder has the names of sparse layers, with or without a decoder."""
    return TABLE.recognized(split(state, ENCODER)[0])


def holds(state: Mapping[str, Tensor]) -> bool:
    """Whether one of our pre-training models is of the kind that this format is for."""
    return AROUND.example in state


def to_ours(state: Mapping[str, Tensor]) -> Conversion:
    """Map the whole pre-training model to the names of `spark.methods.fcmae`."""
    inside, outside = split(state, ENCODER)
    encoder = TABLE.to_timm(inside, source=TITLE)
    for key, name in encoder.mapped.items():
        if key.endswith(".kernel"):
            encoder.state[name] = weight_of(inside[key])
    return side_by_side(encoder, ENCODER, OURS, AROUND.to_timm(outside, source=TITLE))


def from_ours(state: Mapping[str, Tensor]) -> Conversion:
    """Map the state of our pre-training model to the original's."""
    inside, outside = split(state, OURS)
    body = rename(inside, SAME, LACKING)
    encoder = TABLE.from_timm(linear_layers(body.state), source=TITLE)
    for name, key in encoder.mapped.items():
        if key.endswith(".kernel"):
            encoder.state[key] = kernel_of(body.state[name], depthwise=key.endswith(".dwconv.kernel"))
    return side_by_side(
        body.then(encoder), OURS, ENCODER, AROUND.from_timm(outside, source="pre-training model")
    )


def to_timm(state: Mapping[str, Tensor]) -> Conversion:
    """Map an encoder, with or without the rest of the pre-training model, which is dropped."""
    return keep_encoder(to_ours(state))


def from_timm(state: Mapping[str, Tensor]) -> Conversion:
    """Map an encoder in timm's naming."""
    prefixed = {OURS + key: tensor for key, tensor in state.items()}
    return Conversion(prefixed, {key: OURS + key for key in state}).then(from_ours(prefixed))


def save(destination: Path, state: Mapping[str, Tensor], info: EncoderInfo) -> list[Path]:
    """Write the state dict as the original's checkpoints hold it."""
    return save_tensors(destination, state, {"model": dict(state)})


def weight_of(kernel: Tensor) -> Tensor:
    """Return a convolution's weight [out, in, rows, columns], of a depthwise one [C, 1, rows, columns]."""
    side = math.isqrt(len(kernel))
    grid = kernel.reshape(side, side, *kernel.shape[1:]).transpose(0, 1)  # [rows, columns, …]
    weight = grid.permute(2, 0, 1).unsqueeze(1) if kernel.ndim == 2 else grid.permute(3, 2, 0, 1)
    return weight.contiguous()


def kernel_of(weight: Tensor, depthwise: bool) -> Tensor:
    """Return a weight as the original's sparse library keeps it."""
    grid = weight.squeeze(1).permute(1, 2, 0) if depthwise else weight.permute(2, 3, 1, 0)
    return grid.transpose(0, 1).flatten(0, 1).contiguous()
