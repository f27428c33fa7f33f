"""Whole pre-training models, ours and others': an encoder and what a method has around it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from spark.formats.naming import Conversion, Drops, Renaming, rename

OURS = "encoder.network."  # before the names of a network in our own models
SAME: Renaming = ((r"(.*)", r"\1"),)
LACKING: Drops = ((r"head\..*", "behind the last feature map, where the original's encoders end"),)
AROUND: Drops = (
    (r"decoder\..*", "decoder, used in pre-training only"),
    (r"densify\..*", "densify layer, used in pre-training only"),
)


def split(state: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what has a prefix, without it, and the rest."""
    inside = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    return inside, {key: tensor for key, tensor in state.items() if not key.startswith(prefix)}


def side_by_side(encoder: Conversion, old: str, new: str, rest: Conversion) -> Conversion:
    """Join the conversion of an encoder, whose names get the prefixes back, to that of what is around it."""
    return Conversion(
        {new + key: tensor for key, tensor in encoder.state.items()} | rest.state,
        {old + source: new + key for source, key in encoder.mapped.items()} | rest.mapped,
        {old + source: why for source, why in encoder.dropped.items()} | rest.dropped,
    )


def keep_encoder(conversion: Conversion) -> Conversion:
    """Reduce a conversion to one of our pre-training models to its encoder, in timm's naming."""
    return conversion.then(rename(conversion.state, ((r"encoder\.network\.(.*)", r"\1"),), AROUND))
