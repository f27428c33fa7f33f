"""Proof by numbers that converted weights mean the same in Detectron2 as in timm."""

from __future__ import annotations

import warnings
from typing import Any

import timm
from torch import Tensor, nn

from spark.errors import UserError
from spark.formats.detectron2 import resnet_values
from spark.formats.encoder import EncoderInfo
from spark.formats.proofs import Difference, difference, random_images
from spark.utils.state_dict import load_strictly

FEATURES = ["res2", "res3", "res4", "res5"]


def largest_feature_difference(
    timm_state: dict[str, Tensor], d2_state: dict[str, Tensor], info: EncoderInfo
) -> Difference:
    """Compare the four feature maps of timm's and Detectron2's network.

    Args:
        timm_state: weights of timm's model without classifier, every key of it and no other.
        d2_state: the same weights for Detectron2's native ResNet, likewise complete.
        info: which model it is, such as "resnet50".

    Both run in evaluation mode on random images; randomize the batch-norm statistics before converting, or a
    forgotten running mean goes unnoticed; and their weights, of which timm starts some at zero.

    Raises:
        UserError: Detectron2 is not installed, has no such network, or a state does not fit exactly.
    """
    converted = detectron2_resnet(info.model, info.in_chans)
    reference: Any = timm.create_model(info.model, num_classes=0, in_chans=info.in_chans, **info.options)
    load_strictly(reference, timm_state, "the state", f"timm's {info.model}")
    load_strictly(converted, d2_state, "the state", f"Detectron2's {info.model}")
    reference.eval()
    converted.eval()
    return difference(
        lambda images: list(converted(images).values()),
        # Feature 0 is the stem's.
        lambda images: reference.forward_intermediates(images, indices=[1, 2, 3, 4], intermediates_only=True),
        random_images(info.in_chans),
    )


def detectron2_resnet(model: str, in_chans: int = 3) -> nn.Module:
    """Return Detectron2's ResNet for a timm name with trainable batch norm; its features are res2 to res5.

    It is built from the config values that the converter writes beside the weights.
    """
    values = resnet_values(model)
    try:
        with warnings.catch_warnings():  # Detectron2 2024 uses calls that newer torch deprecates
            warnings.simplefilter("ignore")
            from detectron2.config import get_cfg
            from detectron2.layers import ShapeSpec
            from detectron2.modeling.backbone import build_resnet_backbone
    except ImportError:
        raise UserError("Detectron2 is not installed: run python tools/install_detectron2.py") from None
    cfg = get_cfg()
    cfg.MODEL.RESNETS.update(values, NORM="BN", OUT_FEATURES=FEATURES)
    cfg.MODEL.BACKBONE.FREEZE_AT = 0  # else its batch norms would be frozen ones
    return build_resnet_backbone(cfg, ShapeSpec(channels=in_chans))
