"""From uint8 pixels to a network's input, and back to what can be looked at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float], device: torch.device) -> Tensor:
    """Move uint8 images [B, C, H, W] to the device and return (x / 255 - mean) / std as float32."""
    images = images.to(device, non_blocking=True).float()
    shape = (1, -1, 1, 1)
    mean_255 = torch.tensor(mean, device=device).view(shape) * 255
    std_255 = torch.tensor(std, device=device).view(shape) * 255
    return (images - mean_255) / std_255


def denormalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undo `normalize`, clamped to values in 0..1: [B, C, H, W], to be looked at."""
    scale, shift = (torch.tensor(values, device=images.device).view(1, -1, 1, 1) for values in (std, mean))
    return (images * scale + shift).clamp(0, 1)
