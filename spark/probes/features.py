"""Pooled image features of a dense encoder: its coarsest feature map, averaged over positions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and restore the mode of each of its modules afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def pooled_features(encoder: Any, images_BCHW: Tensor) -> Tensor:
    """Return the features [B, channels] of normalized images, float32, on their device.

    Args:
        encoder: a Pyramid. One that was made sparse computes densely here, as no mask is set. Its batch norms
            normalize by the running statistics, which pre-training takes over visible positions only.
        images_BCHW: at least one stride of the encoder high and wide.
    """
    with evaluating(encoder):
        return encoder(images_BCHW)[-1].float().mean((2, 3))
