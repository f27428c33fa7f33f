"""Has the encoder collapsed? Told, without labels, by how different the features of different images are.

Two numbers of the features of some images, each scaled to length one:

- *feature similarity*: the mean cosine of two different images. It is 1 if all features are the same.
- *effective rank* (Roy & Vetterli, "The effective rank", 2007): exp of the entropy of the normalized singular values
  of the features around their mean: how many directions they spread over, from 1 to one less than there are images.

Neither suffices alone: features that are equal up to rounding have a high rank, and those on a line a low similarity.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# Measured with 64 images; untrained networks must not raise a false alarm. 13 of timm's families on photos: similarity
# .15 to .993, rank 21 to 49. Five of them on noise, digits, pale photos, or crops of a single photo: similarity up to
# .9998, rank down to 4.5. Trained networks: similarity .80 to .84, rank 13 to 42.
TOO_SIMILAR = 0.9999
TOO_FEW = 2.0


class FeatureSpread(NamedTuple):
    """Feature similarity and effective rank; both NaN if features are non-finite or some are all zero."""

    feature_similarity: float
    effective_rank: float

    @property
    def collapsed(self) -> bool:
        """Whether the features hardly distinguish images."""
        return not (self.feature_similarity <= TOO_SIMILAR and self.effective_rank >= TOO_FEW)

    def warning(self) -> str:
        """Return a one-line warning with advice; "" if nothing is wrong."""
        if not self.collapsed:
            return ""
        return (
            f"warning: the encoder's features hardly differ between images (mean cosine {self.feature_similarity:.5f}, "
            f"effective rank {self.effective_rank:.1f}): it may have collapsed; lower optimizer.base_lr, or lengthen "
            "train.warmup_epochs. Harmless if the images themselves are nearly the same"
        )


def spread_of(features_ND: Tensor) -> FeatureSpread:
    """Measure the features of two or more images."""
    x_ND = features_ND.double().cpu()
    if not (x_ND.isfinite().all() and x_ND.norm(dim=1).all()):
        return FeatureSpread(float("nan"), float("nan"))
    x_ND = functional.normalize(x_ND, dim=1)
    count = len(x_ND)
    similarity = (x_ND.sum(0).square().sum().item() - count) / (count * (count - 1))
    singular = torch.linalg.svdvals(x_ND - x_ND.mean(0))
    share = singular / singular.sum().clamp_min(torch.finfo(torch.double).tiny)
    return FeatureSpread(similarity, torch.special.entr(share).sum().exp().item())
