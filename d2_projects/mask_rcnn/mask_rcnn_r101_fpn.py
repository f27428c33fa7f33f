"""Mask R-CNN, ResNet-101-FPN, 1x schedule on COCO: the settings of the ResNet-50 recipe.

Reproduces: nothing published; the paper detects with ResNet-50 and ConvNeXt-B.
Command:    spark-eval detect d2_projects/mask_rcnn/mask_rcnn_r101_fpn.py \
                init=ENCODER out=runs/coco_r101 data.root=datasets/coco
            ResNet-152: add model.backbone.bottom_up.stages.depth=152
Expected:   not known.
Cost:       90,000 iterations of 16 images; not measured.
"""

from .mask_rcnn_r50_fpn import data, dataloader, lr_multiplier, model, optimizer, project, train

model.backbone.bottom_up.stages.depth = 101
