"""The fifth stage of a ResNet as the region head of a C4 detector."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.layers import CNNBlockBase, get_norm
from torch import nn


def with_norm(stage: Sequence[CNNBlockBase], norm: str) -> nn.Sequential:
    """Return the blocks of a stage, named by their numbers, and a fresh norm named "norm" after them."""
    network = nn.Sequential(*stage)
    network.add_module("norm", get_norm(norm, stage[-1].out_channels))
    return network
