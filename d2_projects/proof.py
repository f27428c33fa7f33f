"""Proof by numbers that converted weights mean the same in Detectron2 as in timm."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from spark.errors import UserError
from spark.formats.detectron2 import depth_of

INPUT_SHAPE = (2, 3, 96, 96)


def largest_feature_difference(
    timm_state: dict[str, Tensor], d2_state: dict[str, Tensor], model: str
) -> float:
    """Return the largest relative (l2) difference over the four feature maps of the two networks.

    Args:
        timm_state: weights of `timm.create_model(model, num_classes=0)`, every key of it and no other.
        d2_state: the same weights for Detectron2's native ResNet, likewise complete.
        model: the timm name, such as "resnet50".

    Both run in evaluation mode on one random picture batch; randomise the batch-norm statistics before
    converting, or a forgotten running mean goes unnoticed; and their weights, of which timm starts some at
    zero.

    Raises:
        UserError: Detectron2 is not installed, has no such network, or a state does not fit exactly.
    """
    converted = detectron2_resnet(depth_of(model))
    reference = timm.create_model(model, num_classes=0)
    load_exactly(reference, timm_state, f"timm's {model}")
    load_exactly(converted, d2_state, f"Detectron2's {model}")
    picture = torch.randn(INPUT_SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        # Feature 0 is the stem's.
        expected = reference.eval().forward_intermediates(
            picture, indices=[1, 2, 3, 4], intermediates_only=True
        )
        actual = list(converted.eval()(picture).values())
    return max(float((a - e).norm() / e.norm()) for a, e in zip(actual, expected, strict=True))


def detectron2_resnet(depth: int) -> nn.Module:
    """Return Detectron2's ResNet with trainable batch norm; its features are res2 to res5."""
    try:
        from detectron2.modeling.backbone import BasicStem, ResNet
    except ImportError:
        raise UserError("Detectron2 is not installed: run python tools/install_detectron2.py") from None
    # Only bottlenecks have a 1x1 convolution that could carry the stride.
    arguments = {"norm": "BN"} | ({"stride_in_1x1": False} if depth >= 50 else {})
    return ResNet(
        BasicStem(norm="BN"), ResNet.make_default_stages(depth, **arguments),
        out_features=["res2", "res3", "res4", "res5"],
    )


def load_exactly(network: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Load a state dict; UserError names what is missing, unexpected or of another shape."""
    own = network.state_dict()
    common = own.keys() & state.keys()
    complaints = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": sorted(name for name in common if own[name].shape != state[name].shape),
    }
    for complaint, names in complaints.items():
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"the weights do not fit {what}: {', '.join(names[:3])}{more} {complaint}")
    network.load_state_dict(state)
