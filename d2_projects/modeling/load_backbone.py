"""Weights for the pre-trained part of a detector: which part that is, and loading them with nothing left over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from d2_projects.modeling.timm_backbone import TimmBackbone
from spark.utils.state_dict import load_strictly

COUNTER = "num_batches_tracked"  # frozen batch norms have none


def load_backbone(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load an encoder's weights into a detector, every tensor of them; they are copied.

    Args:
        model: an R-CNN with Detectron2's ResNet (behind an FPN, or C4) or with a `TimmBackbone`.
        state: named as in Detectron2's ResNet ("stem.conv1.weight"), or as in timm.

    Raises:
        UserError: a tensor is missing, has no place, or has another shape.
    """
    part, pruned = pretrained_part(model)
    own = part.state_dict()
    wanted = {
        name: tensor for name, tensor in state.items()
        if name not in pruned and (name in own or not name.endswith(COUNTER))
    }
    load_strictly(part, wanted, "the encoder", "the recipe's backbone")


def pretrained_part(model: Any) -> tuple[nn.Module, frozenset[str]]:
    """Return the layers that pre-training provides, and the names of the encoder's tensors that are not used.

    Of a C4 detector, these are the backbone and, among the heads, the fifth stage without the norm after it.
    """
    backbone = getattr(model.backbone, "bottom_up", model.backbone)
    if isinstance(backbone, TimmBackbone):
        return backbone.net, backbone.pruned
    stages = dict(backbone.named_children())
    res5 = getattr(getattr(model, "roi_heads", None), "res5", None)
    if res5 is not None:
        blocks = (block for name, block in res5.named_children() if name != "norm")
        stages["res5"] = nn.Sequential(*blocks)
    return nn.ModuleDict(stages), frozenset()
