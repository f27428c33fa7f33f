"""What the originals of UM-MAE, SimMIM and MAE call the parameters of our methods."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

Rules = tuple[tuple[str, str], ...]
"""Pairs: how an original's name begins, and ours; the first one that fits."""

_DECODER = (
    ("decoder_embed.", "decoder.embed."), ("decoder_blocks.", "decoder.blocks."), ("decoder_norm.", "decoder.norm."),
    ("decoder_pred.", "decoder.pred."), ("mask_token", "decoder.mask_token"), ("vis_mask_token", "vis_mask_token"),
    ("decoder_pos_embed", "decoder.positions"), ("", "encoder.network."),
)  # fmt: skip
FROM_ORIGINAL: Mapping[str, Rules] = MappingProxyType({
    "um_mae": _DECODER,
    "mae_official": _DECODER,
    "simmim": (("mask_token", "mask_token"), ("decoder_pred.", "head."), ("", "encoder.network.")),
    "simmim_official": (
        ("encoder.mask_token", "mask_token"), ("decoder.0.", "head."), ("encoder.", "encoder.network."),
    ),
})  # fmt: skip
_MERGE = re.compile(r"layers\.(\d+)\.downsample\.")


def to_ours(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """Return a state in our names."""
    return {_renamed(name, rules, by=1): _head(name, tensor, inverse=False) for name, tensor in state.items()}


def to_original(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """Return a state in the original's names."""
    back = tuple((ours, theirs) for theirs, ours in rules)
    renamed = {_renamed(name, back, by=-1): tensor for name, tensor in state.items()}
    return {name: _head(name, tensor, inverse=True) for name, tensor in renamed.items()}


def _renamed(name: str, rules: Rules, by: int) -> str:
    """Rename, and let a merge belong to the next stage (`by` = 1), as timm has it, or to the one before (-1)."""
    start, other = next(rule for rule in rules if name.startswith(rule[0]))
    return _MERGE.sub(lambda found: f"layers.{int(found[1]) + by}.downsample.", other + name[len(start) :])


def _head(name: str, tensor: Tensor, inverse: bool) -> Tensor:
    """Reorder the outputs of SimMIM's last layer: UM-MAE's reading of it has them in patches of 16 pixels."""
    if name.startswith("decoder.0.weight"):
        return tensor[:, :, None, None] if inverse else tensor.flatten(1)
    if not name.startswith("decoder_pred.") or len(tensor) != 3 * 32 * 32:
        return tensor
    c, y, x = torch.meshgrid(torch.arange(3), torch.arange(32), torch.arange(32), indexing="ij")
    index = (4 * (48 * (y % 16) + 3 * (x % 16) + c) + 2 * (y // 16) + x // 16).flatten()
    return tensor[index.argsort() if inverse else index]
