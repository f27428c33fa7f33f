"""Mask R-CNN, ConvNeXt-S-FPN, 36 epochs of COCO: the settings of ConvNeXt-B.

Reproduces: nothing published with these settings.
Command:    spark-eval detect d2_projects/mask_rcnn/mask_rcnn_convnext_s_fpn_3x.py \
                init=ENCODER out=runs/coco_convnext_s data.root=datasets/coco
Expected:   not known.
Cost:       263,880 iterations of 16 images; not measured.
"""

from .mask_rcnn_convnext_b_fpn_3x import data, dataloader, lr_multiplier, model, optimizer, project, train

model.backbone.bottom_up.name = "convnext_small"
