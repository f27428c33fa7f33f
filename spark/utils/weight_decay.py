"""What weight decay applies to: the two rules that there are in the literature we follow."""

from __future__ import annotations

from torch import nn


def decayed(name: str, parameter: nn.Parameter) -> bool:
    """SparK's rule: not biases, norms, layer scales, gains and mask tokens.

    These have one number per channel, some with extra axes of length 1; so can the weights of convolutions.
    """
    one_per_channel = parameter.numel() == max(parameter.shape, default=1)
    return parameter.ndim > 1 and (name.endswith("weight") or not one_per_channel)


def decayed_by_shape(name: str, parameter: nn.Parameter) -> bool:
    """The rule of MAE and its relatives (timm 0.3.2's): all but what has one axis or is a bias; tokens decay, too."""
    return parameter.ndim > 1 and not name.endswith(".bias")
