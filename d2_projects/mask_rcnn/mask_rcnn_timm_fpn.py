"""Mask R-CNN with any timm network with batch norms, FPN, 1x: the settings of the ResNet-50 recipe.

Reproduces: nothing published. It is for networks that Detectron2 does not have: ResNet-D, SE-ResNet, ResNeXt,
            RegNet, EfficientNet …
Command:    spark-eval detect d2_projects/mask_rcnn/mask_rcnn_timm_fpn.py model.backbone.bottom_up.name=regnety_032 \
                init=ENCODER out=runs/coco_timm data.root=datasets/coco
Expected:   not known.
Cost:       90,000 iterations of 16 images; not measured.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from d2_projects.modeling.timm_backbone import RES2_TO_RES5, TimmBackbone
from d2_projects.solver.layer_decay import timm_parameter_groups

from .mask_rcnn_r50_fpn import data, dataloader, lr_multiplier, model, project, train

model.backbone.bottom_up = L(TimmBackbone)(
    name="resnet50d", out_features=list(RES2_TO_RES5), drop_path_rate=0.0, frozen_stages=0, norm="SyncBN",
    out_norm="", options={},
)

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.lr = 2.5e-4
optimizer.weight_decay = 1e-4
optimizer.params = L(timm_parameter_groups)(base_lr="${..lr}", decay=0.6)
