"""Checkpoints of the original SparK implementation (keyu-tian/SparK).

Two kinds are published: "spark_style" holds the whole pre-training model, "timm_style" the encoder alone
(ResNets in timm's naming, ConvNeXts in the official one).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from spark.formats import official_convnext
from spark.formats.encoder import EncoderInfo
from spark.formats.naming import Conversion, Drops, Rule, Table, rename
from spark.formats.whole_model import LACKING, OURS, SAME, keep_encoder, side_by_side, split
from spark.formats.writer import save_tensors

TITLE = "original SparK format"
USAGE = "the original's --init_weight and --resume_from take a whole model, its downstream code an encoder"
CAUTION = ""

ENCODER = "sparse_encoder.sp_cnn."
WHOLE = "original SparK, whole model"
METHOD = "spark"  # whose checkpoints these are

# What is around the encoder. Sparse layers were submodules of the dense ones' classes there, so names inside the
# encoder are the network's.
TABLE = Table(
    Rule("dense_decoder.dec.{block}.up_sample.{leaf}", "decoder.blocks.{block}.upsample.{leaf}"),
    Rule("dense_decoder.dec.{block}.conv.0.{norm}", "decoder.blocks.{block}.conv1.{norm}"),
    Rule("dense_decoder.dec.{block}.conv.1.{norm}", "decoder.blocks.{block}.norm1.{norm}"),
    Rule("dense_decoder.dec.{block}.conv.3.{norm}", "decoder.blocks.{block}.conv2.{norm}"),
    Rule("dense_decoder.dec.{block}.conv.4.{norm}", "decoder.blocks.{block}.norm2.{norm}"),
    Rule("dense_decoder.proj.{leaf}", "decoder.to_pixels.{leaf}"),
    Rule("densify_norms.{block}.{norm}", "densify.{block}.norm.{norm}"),
    Rule("densify_projs.{block}.{leaf}", "densify.{block}.project.{leaf}"),
    Rule("mask_tokens.{block}", "densify.{block}.mask_token"),
    example="decoder.to_pixels.weight",
)
UNUSED: Drops = ((r"imn_m|imn_s|norm_black", "unused buffer of the original"),)


def recognized(state: Mapping[str, Tensor]) -> bool:
    """Whether this is the whole pre-training model ("spark_style")."""
    return any(key.startswith(ENCODER) for key in state)


def holds(state: Mapping[str, Tensor]) -> bool:
    """Whether one of our pre-training models is of the kind that this format is for."""
    return TABLE.example in state


def to_ours(state: Mapping[str, Tensor]) -> Conversion:
    """Map the whole pre-training model to the names of `spark.SparK`."""
    inside, outside = split(state, ENCODER)
    return side_by_side(_encoder_to_timm(inside), ENCODER, OURS, TABLE.to_timm(outside, UNUSED, TITLE))


def from_ours(state: Mapping[str, Tensor]) -> Conversion:
    """Map the state of `spark.SparK` to the original's whole pre-training model."""
    inside, outside = split(state, OURS)
    return side_by_side(from_timm(inside), OURS, ENCODER, TABLE.from_timm(outside, source="pre-training model"))


def to_timm(state: Mapping[str, Tensor]) -> Conversion:
    """Map an encoder, alone or out of the pre-training model, whose rest is dropped."""
    return keep_encoder(to_ours(state)) if recognized(state) else _encoder_to_timm(state)


def from_timm(state: Mapping[str, Tensor]) -> Conversion:
    """Map an encoder in timm's naming to the original's ("timm_style")."""
    body = rename(state, SAME, LACKING)
    is_convnext = official_convnext.TABLE.example in body.state
    return body.then(official_convnext.from_timm(body.state) if is_convnext else rename(body.state, SAME))


def save(destination: Path, state: Mapping[str, Tensor], info: EncoderInfo) -> list[Path]:
    """Write an encoder bare, a whole model with what is needed to build it, as the original's files hold them."""
    if not recognized(state):
        return save_tensors(destination, state, state)
    # The original's images are square.
    content = {"arch": info.model, "input_size": max(info.input_size), "module": dict(state), "is_pretrain": True}
    return save_tensors(destination, state, content)


def _encoder_to_timm(state: Mapping[str, Tensor]) -> Conversion:
    is_convnext = official_convnext.recognized(state)
    return official_convnext.to_timm(state) if is_convnext else rename(state, SAME)
