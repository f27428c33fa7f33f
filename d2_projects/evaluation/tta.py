"""Test-time augmentation: an image is detected in at several scales and mirrored, and what is found is merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import get_cfg, instantiate
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNN, GeneralizedRCNNWithTTA
from omegaconf import DictConfig
from torch import nn

from spark.errors import UserError

BATCH = 3  # augmented images that are computed at a time


def augmented_detector(model: nn.Module, cfg: DictConfig) -> nn.Module:
    """Return a detector that augments its input as the recipe's `test` says.

    Detectron2's own is written for its older configuration; the four values that it reads there are taken from the
    model.

    Raises:
        UserError: the model is no R-CNN, or the recipe's test images are not resized by their shortest edge.
    """
    if not isinstance(model, GeneralizedRCNN):
        raise UserError(f"test.tta=true works for R-CNNs; this recipe's model is a {type(model).__name__}")
    predictors = model.roi_heads.box_predictor
    last = predictors[-1] if isinstance(predictors, nn.ModuleList) else predictors  # of a cascade
    older = get_cfg()
    older.MODEL.MASK_ON = bool(model.roi_heads.mask_on)
    older.MODEL.ROI_HEADS.NUM_CLASSES = model.roi_heads.num_classes
    older.MODEL.ROI_HEADS.NMS_THRESH_TEST = last.test_nms_thresh
    older.TEST.DETECTIONS_PER_IMAGE = last.test_topk_per_image
    short, longest = _test_size(cfg)
    sizes = [round(short * scale) for scale in cfg.test.tta_scales]
    mapper = DatasetMapperTTA(min_sizes=sizes, max_size=round(longest * max(cfg.test.tta_scales)),
                              flip=cfg.test.tta_flip)
    return GeneralizedRCNNWithTTA(older, model, mapper, BATCH)


def original_images(loader: DictConfig) -> DictConfig:
    """Return a test loader without its resizing: each scale is made from the original image."""
    loader = loader.copy()
    loader.mapper.augmentations = []
    return loader


def _test_size(cfg: DictConfig) -> tuple[int, int]:
    """Return shortest edge and largest longest edge of the recipe's test images."""
    augmentations: Sequence[Any] = [instantiate(each) for each in cfg.dataloader.test.mapper.augmentations]
    for augmentation in augmentations:
        if isinstance(augmentation, ResizeShortestEdge):
            shortest = augmentation.short_edge_length
            return int(max(shortest)), int(augmentation.max_size)
    raise UserError("test.tta=true needs a ResizeShortestEdge in the recipe's dataloader.test.mapper.augmentations")
