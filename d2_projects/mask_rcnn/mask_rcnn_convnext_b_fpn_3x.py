"""Mask R-CNN, ConvNeXt-B-FPN, 36 epochs of COCO: the setting of SparK's detection experiments.

Reproduces: SparK (Tian et al., ICLR 2023, arXiv:2301.03580), ConvNeXt-B on COCO val2017. (The original ran in
            MMDetection, whose anchors, samplers and losses differ from Detectron2's in details.)
Command:    spark-eval detect d2_projects/mask_rcnn/mask_rcnn_convnext_b_fpn_3x.py \
                init=ENCODER out=runs/coco_convnext_b data.root=datasets/coco
Expected:   box AP 51.2, mask AP 45.1 after 1600 epochs of SparK on ImageNet-1k, 47.7 and 43.2 from supervised
            weights (the paper's COCO table, from memory, not verified).
Cost:       263,880 iterations of 16 images; not measured with this code yet.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from d2_projects.data.augmentation import detr_augmentation
from d2_projects.modeling.timm_backbone import RES2_TO_RES5, TimmBackbone
from d2_projects.solver.layer_decay import timm_parameter_groups
from d2_projects.solver.schedule import iterations_of_epochs, steps

from .mask_rcnn_r50_fpn import data, dataloader, project, train

model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
model.pixel_mean = [123.675, 116.280, 103.530]
model.pixel_std = [58.395, 57.120, 57.375]
model.input_format = "RGB"
model.backbone.bottom_up = L(TimmBackbone)(
    name="convnext_base", out_features=list(RES2_TO_RES5), drop_path_rate=0.5, frozen_stages=0, norm="",
    out_norm="LN", options={},
)

dataloader.train.mapper.augmentations = detr_augmentation()

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.lr = 2e-4
optimizer.weight_decay = 0.05
optimizer.params = L(timm_parameter_groups)(base_lr="${..lr}", decay=0.65)

batch = dataloader.train.total_batch_size
train.max_iter = iterations_of_epochs(36, batch)
train.precise_bn_iter = 0  # there is no batch norm
lr_multiplier = steps(
    train.max_iter, milestones=[iterations_of_epochs(epoch, batch) for epoch in (27, 33)], gamma=0.2,
    warmup=500, warmup_factor=0.001,
)
