"""A linear probe in closed form: least squares on one-hot classes, with a ridge.

It needs no learning rate, epochs or seed, and takes less than a second. It is meant as a progress indicator; to compare
with published numbers, train a probe with their protocol.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

RIDGE = 1e-2  # relative to the features' unit variance


def linear_predict(train_ND: Tensor, labels_N: Tensor, queries_MD: Tensor) -> Tensor:
    """Fit a linear classifier to frozen features and apply it.

    Args:
        train_ND: features of N images.
        labels_N: their classes, 0, 1, …
        queries_MD: features of the images to classify.

    Returns:
        The classes of the queries, [M].
    """
    # In float64: network features are so correlated that float32 loses the directions of small variance.
    train_ND, queries_MD = train_ND.double(), queries_MD.double()
    deviation_D, mean_D = torch.std_mean(train_ND, dim=0, correction=0)
    scale_D = torch.where(deviation_D > 0, 1 / deviation_D, 0)  # constant channels carry no information
    x_ND = (train_ND - mean_D) * scale_D
    targets_NC = functional.one_hot(labels_N).double()
    prior_C = targets_NC.mean(0)
    gram_DD = x_ND.T @ x_ND / len(x_ND)
    gram_DD.diagonal().add_(RIDGE)
    weight_DC = torch.linalg.solve(gram_DD, x_ND.T @ (targets_NC - prior_C) / len(x_ND))
    return (((queries_MD - mean_D) * scale_D) @ weight_DC + prior_C).argmax(1)
