"""Mask R-CNN, ResNet-50-FPN, 1x: Detectron2's standard settings, as a protocol to compare initializations by.

Reproduces: Detectron2's COCO baseline R50-FPN 1x, but for what the weights demand: RGB images with ImageNet's
            mean and deviation, and the stride in the 3x3 convolutions.
Command:    spark-eval detect d2_projects/mask_rcnn/mask_rcnn_r50_fpn_sgd_1x.py \
                init=ENCODER out=runs/coco_r50_sgd data.root=datasets/coco
Expected:   box AP 38.6, mask AP 35.2 from supervised weights (Detectron2's model zoo, from memory, not verified).
Cost:       90,000 iterations of 16 images; not measured with this code yet.

Stem and first stage are frozen, and every batch norm of the backbone keeps its statistics. So it compares weights
that were trained somehow; from scratch it is pointless.
"""

from detectron2 import model_zoo

from d2_projects.solver.schedule import steps

from .mask_rcnn_r50_fpn import data, dataloader, project, train

model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
model.pixel_mean = [123.675, 116.280, 103.530]
model.pixel_std = [58.395, 57.120, 57.375]
model.input_format = "RGB"
model.backbone.bottom_up.freeze_at = 2
model.backbone.bottom_up.stages.stride_in_1x1 = False

dataloader.train.mapper.augmentations[0].short_edge_length = list(range(640, 801, 32))

optimizer = model_zoo.get_config("common/optim.py").SGD

train.precise_bn_iter = 0
lr_multiplier = steps(train.max_iter, milestones=[60_000, 80_000], gamma=0.1, warmup=1000, warmup_factor=0.001)
