"""Checkpoints of the original SparK implementation (keyu-tian/SparK).

Two kinds are published: "spark_style" holds the whole pre-training model, "timm_style" the encoder alone
(ResNets in timm's naming, ConvNeXts in the official one).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from spark.formats import official_convnext
from spark.formats.naming import Conversion, Drops, Renaming, rename

ENCODER = "sparse_encoder.sp_cnn."
OURS = "encoder.network."

# Sparse layers were submodules of the dense ones' classes there, so names inside the encoder are the network's.
RENAMING: Renaming = (
    (r"dense_decoder\.dec\.(\d)\.up_sample\.(\w+)", r"decoder.blocks.\1.upsample.\2"),
    (r"dense_decoder\.dec\.(\d)\.conv\.0\.(\w+)", r"decoder.blocks.\1.conv1.\2"),
    (r"dense_decoder\.dec\.(\d)\.conv\.1\.(\w+)", r"decoder.blocks.\1.norm1.\2"),
    (r"dense_decoder\.dec\.(\d)\.conv\.3\.(\w+)", r"decoder.blocks.\1.conv2.\2"),
    (r"dense_decoder\.dec\.(\d)\.conv\.4\.(\w+)", r"decoder.blocks.\1.norm2.\2"),
    (r"dense_decoder\.proj\.(\w+)", r"decoder.to_pixels.\1"),
    (r"densify_norms\.(\d)\.(\w+)", r"densify.\1.norm.\2"),
    (r"densify_projs\.(\d)\.(\w+)", r"densify.\1.project.\2"),
    (r"mask_tokens\.(\d)", r"densify.\1.mask_token"),
)
DROPS: Drops = ((r"imn_m|imn_s|norm_black", "unused buffer of the original"),)


def recognised(state: Mapping[str, Tensor]) -> bool:
    """Whether this is the whole pre-training model ("spark_style")."""
    return any(key.startswith(ENCODER) for key in state)


def to_spark(state: Mapping[str, Tensor]) -> Conversion:
    """Map the whole pre-training model to the names of `spark.model.SparK`."""
    inside = {key.removeprefix(ENCODER): tensor for key, tensor in state.items() if key.startswith(ENCODER)}
    encoder = _encoder_to_timm(inside)
    outside = {key: tensor for key, tensor in state.items() if not key.startswith(ENCODER)}
    rest = rename(outside, RENAMING, DROPS, source="original SparK format")
    return Conversion(
        {OURS + key: tensor for key, tensor in encoder.state.items()} | rest.state,
        {ENCODER + old: OURS + new for old, new in encoder.mapped.items()} | rest.mapped,
        {ENCODER + old: why for old, why in encoder.dropped.items()} | rest.dropped,
    )


def to_timm(state: Mapping[str, Tensor]) -> Conversion:
    """Keep the encoder in timm's naming and drop the rest of the pre-training model."""
    return keep_encoder(to_spark(state))


def keep_encoder(conversion: Conversion) -> Conversion:
    """Reduce a conversion to our pre-training model to its encoder, in timm's naming."""
    decoding: Drops = (
        (r"decoder\..*", "decoder, used in pre-training only"),
        (r"densify\..*", "densify layer, used in pre-training only"),
    )
    return conversion.then(rename(conversion.state, ((r"encoder\.network\.(.*)", r"\1"),), decoding))


def _encoder_to_timm(state: Mapping[str, Tensor]) -> Conversion:
    if official_convnext.recognised(state):
        return official_convnext.to_timm(state)
    return rename(state, ((r"(.*)", r"\1"),))
