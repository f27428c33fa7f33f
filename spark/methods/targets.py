"""What a masked image model is to predict: patches, each normalized by its own statistics."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-6  # under the square root that normalizes a patch


def normalize_patches(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize patches [N, C, h, w] each by its own mean and (unbiased) deviation; return both of these too."""
    # A patch is contiguous in memory, which makes its sums both fast and accurate in float32.
    flat = patches.permute(0, 2, 3, 1).flatten(1)
    variance, mean = torch.var_mean(flat, dim=1)
    mean, deviation = mean[:, None, None, None], (variance + EPSILON).sqrt()[:, None, None, None]
    return (patches - mean) / deviation, mean, deviation
