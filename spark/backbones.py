"""Any timm network as a feature pyramid."""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

from spark.errors import UserError, nearest

FINEST_STRIDE = 4  # SparK decodes from strides 4, 8, 16, 32; a ResNet's stride-2 stem map is not used


class TimmPyramid(nn.Module):
    """The feature maps of a timm network, the finest first.

    `network` is the timm model with its own parameter names and without a classifier.

    Attributes:
        channels: of each map.
        strides: of each map, relative to the image; the last one is the patch size.
        name: the timm name.
    """

    def __init__(self, name: str, in_chans: int = 3, drop_path: float = 0.0) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise UserError(f"unknown model '{name}'.{nearest(name, timm.list_models())}")
        self.name = name
        self._in_chans = in_chans
        self.network = _build(name, in_chans, drop_path)
        if not hasattr(self.network, "forward_intermediates"):
            raise UserError(f"model '{name}' has no feature pyramid in this timm version")
        levels = _deepest_per_stride(self.network.feature_info)
        self._indices = [index for index, _ in levels]
        self.channels: list[int] = [level["num_chs"] for _, level in levels]
        self.strides: list[int] = [level["reduction"] for _, level in levels]

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        """Return the maps [B, channels[i], H / strides[i], W / strides[i]]."""
        return self.network.forward_intermediates(x_BCHW, indices=self._indices, intermediates_only=True)

    def example(self) -> Tensor:
        """Return a small input of zeros that runs through every level."""
        side = 2 * self.strides[-1]
        return torch.zeros(1, self._in_chans, side, side)


def _build(name: str, in_chans: int, drop_path: float) -> Any:
    """Build a timm model without its classifier.

    Raises:
        UserError: it has no drop path and some is asked for, or timm cannot build it.
    """
    build = partial(timm.create_model, name, num_classes=0, in_chans=in_chans)
    try:
        return build(drop_path_rate=drop_path)  # zero too: some models' own default is not
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        if drop_path:
            raise UserError(f"model '{name}' has no drop path; set model.drop_path=0") from None
        return build()
    except RuntimeError as error:  # timm: a pretrained tag that it does not know
        raise UserError(f"timm cannot build '{name}': {error}") from None


def _deepest_per_stride(feature_info: Any) -> list[tuple[int, dict[str, Any]]]:
    """Keep the deepest map of each stride: [(index, {num_chs, reduction, module})]."""
    infos = feature_info.info if hasattr(feature_info, "info") else feature_info
    deepest = {info["reduction"]: (index, info) for index, info in enumerate(infos)}
    return [deepest[stride] for stride in sorted(deepest) if stride >= FINEST_STRIDE]
