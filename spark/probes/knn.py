"""Weighted k-nearest-neighbors classification of frozen features; nothing is trained.

The classifier of Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (2018),
section 3.4: cosine similarity s, and each neighbor votes for its class with weight exp(s / temperature).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

CHUNK = 256  # queries compared with the whole bank at a time


def knn_predict(
    bank_ND: Tensor, labels_N: Tensor, queries_MD: Tensor, neighbours: int = 20, temperature: float = 0.07
) -> Tensor:
    """Classify features by a bank of labeled features.

    Args:
        bank_ND: features of N images; they need no normalization.
        labels_N: their classes, 0, 1, …
        queries_MD: features of the images to classify.
        neighbours: number of neighbors that vote; all features of a smaller bank.
        temperature: the lower, the more the nearest neighbors count.

    Returns:
        The classes of the queries, [M].
    """
    bank_ND, queries_MD = (functional.normalize(features.float(), dim=1) for features in (bank_ND, queries_MD))
    classes = int(labels_N.max()) + 1
    predicted = []
    for chunk_LD in queries_MD.split(CHUNK):
        similarity_LK, index_LK = (chunk_LD @ bank_ND.T).topk(min(neighbours, len(bank_ND)), dim=1)
        # Only ratios of weights matter; relative to the nearest, the exponential stays within 0..1.
        weight_LK = ((similarity_LK - similarity_LK[:, :1]) / temperature).exp()
        votes_LC = weight_LK.new_zeros(len(chunk_LD), classes).scatter_add_(1, labels_N[index_LK], weight_LK)
        predicted.append(votes_LC.argmax(1))
    return torch.cat(predicted)
