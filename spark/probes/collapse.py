"""Has the encoder collapsed? Told, without labels, by how different the features of different images are.

Two numbers of the features of some images, each scaled to length one:

- *feature similarity*: the mean cosine of two different images. It is 1 if all features are the same.
- *effective rank* (Roy & Vetterli, "The effective rank", 2007): exp of the entropy of the normalised singular values
  of the features around their mean: how many directions they spread over, from 1 to one less than there are images.

Neither is enough: features that are the same but for rounding have a high rank, and those on a line a low similarity.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# Measured with 64 images: an untrained network is no false alarm. 13 of timm's families on photos: similarity .15 to
# .993, rank 21 to 49; five of them on noise, digits, pale photos, or crops of one single photo: up to .9998, and down
# to 4.5. Trained ones: .80 to .84, and 13 to 42.
TOO_SIMILAR = 0.9999
TOO_FEW = 2.0


class FeatureSpread(NamedTuple):
    """How different features are; both NaN if they are not finite, or some are zero throughout."""

    feature_similarity: float
    effective_rank: float

    @property
    def collapsed(self) -> bool:
        """Whether they hardly tell one image from another."""
        return not (self.feature_similarity <= TOO_SIMILAR and self.effective_rank >= TOO_FEW)

    def warning(self) -> str:
        """Say what is wrong and what may help, in a line; "" if nothing is."""
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
