"""Is a timm network purely convolutional? Decided from its layers, so that a coverage has an honest denominator.

It is not, if among the layers that compute its feature maps there is one that mixes positions in another way than by
convolution or pooling (attention, recurrence, linear layers over positions: told by its class name, MIXERS), or that
holds a position embedding. A gate that reduces over the whole image (squeeze-excite) does not count as mixing, and a
classification head is not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from spark.backbones.timm_pyramid import TimmPyramid
from spark.backbones.tracing import modules_used

MIXERS = re.compile(
    "Attention|Attn|MHSA|MHA|MHCA|SHMA|SHSA|LiteMLA|Transformer|Lambda|LSTM|SSD|SpatialGating|Rope|Affinity|Fourier"
)
GATES = re.compile("SplitAttn|SelectiveKernelAttn|ChannelAttn|SpatialAttn")
"""Class names that match MIXERS, but are gates or convolutions."""

EMBEDDINGS = frozenset({"pos_embed", "cls_token", "relative_position_bias_table"})
MLPS = "timm.models.mlp_mixer"  # its layers are called like others


def mixes_positions(network: nn.Module) -> str:
    """Return what makes a network other than convolutional ("path: class"), or ""; weights on "meta" will do."""
    if not isinstance(network, TimmPyramid):  # nobody knows what computes its maps: every layer counts
        return _mixer(network.named_modules())
    try:
        used = set(modules_used(network, network.example()).values())
    except (AssertionError, RuntimeError, TypeError, ValueError):  # takes inputs of one size only, say
        return _mixer(network.named_modules())
    return _mixer((path, layer) for path, layer in network.named_modules() if not used.isdisjoint(layer.modules()))


def _mixer(layers: Iterable[tuple[str, nn.Module]]) -> str:
    for path, layer in layers:
        sort = type(layer).__name__
        if type(layer).__module__ == MLPS or (MIXERS.search(sort) and not GATES.search(sort)):
            return f"{path}: {sort}"
        for parameter, _ in layer.named_parameters(recurse=False):
            if parameter in EMBEDDINGS:
                return f"{path}.{parameter}"
    return ""
