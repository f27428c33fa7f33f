"""Which networks can be plane encoders, and as what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.swin_transformer_v2_cr import SwinTransformerV2Cr
from timm.models.vision_transformer import VisionTransformer

from spark.backbones.plane.encoder import PlaneEncoder
from spark.backbones.plane.swin import SwinPlane
from spark.backbones.plane.swinv2 import SwinV2Plane
from spark.backbones.plane.swinv2_cr import SwinV2CrPlane
from spark.backbones.plane.um import UMPlane
from spark.backbones.plane.um_pvt import UMPVT
from spark.backbones.plane.um_swin import UMSwin
from spark.backbones.plane.vit import ViTPlane
from spark.errors import RefusedError

FAMILIES: Mapping[type, Callable[[Any], PlaneEncoder]] = MappingProxyType({
    UMSwin: UMPlane,
    UMPVT: UMPlane,
    SwinTransformer: SwinPlane,
    SwinTransformerV2: SwinV2Plane,
    SwinTransformerV2Cr: SwinV2CrPlane,
    VisionTransformer: ViTPlane,
})
"""By exact type: a subclass may compute something else."""


def plane_encoder(network: Any) -> PlaneEncoder:
    """Return a network as a plane encoder.

    Raises:
        RefusedError: it is of no family that can be one.
    """
    if type(network) not in FAMILIES:
        known = ", ".join(sorted(family.__name__ for family in FAMILIES))
        raise RefusedError(f"{type(network).__name__} cannot be masked so: known are {known}")
    return FAMILIES[type(network)](network)
