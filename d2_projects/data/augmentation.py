"""Augmentation of images for detection."""

from __future__ import annotations

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from omegaconf import DictConfig

LONGEST = 1333
SIDES = tuple(range(480, 801, 32))


def detr_augmentation() -> list[DictConfig]:
    """Return DETR's augmentation: of every other image a crop, then multi-scale resizing and flips.

    A crop is 384 to 600 pixels high and wide, of the image resized to a shorter side of 400, 500 or 600 pixels
    (Carion et al., ECCV 2020, arXiv:2005.12872). The crop comes first in the list, then the resizing.
    """
    crop = L(T.AugmentationList)(augs=[
        L(T.ResizeShortestEdge)(short_edge_length=[400, 500, 600], sample_style="choice", max_size=LONGEST),
        L(T.RandomCrop)(crop_type="absolute_range", crop_size=(384, 600)),
    ])
    return [
        L(T.RandomApply)(tfm_or_aug=crop, prob=0.5),
        L(T.ResizeShortestEdge)(short_edge_length=list(SIDES), sample_style="choice", max_size=LONGEST),
        L(T.RandomFlip)(horizontal=True),
    ]
