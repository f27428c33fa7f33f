"""Mask R-CNN, ResNet-50-C4, 1x: heads on the fourth stage, the fifth works on each region.

Reproduces: the protocol of contrastive methods since MoCo (He et al., CVPR 2020, arXiv:1911.05722): batch norms are
            trained and synchronized, and a fresh one follows the fifth stage, whose activations have another scale
            with every way of pre-training.
Command:    spark-eval detect d2_projects/mask_rcnn/mask_rcnn_r50_c4.py \
                init=ENCODER out=runs/coco_r50_c4 data.root=datasets/coco
Expected:   box AP 38.2, mask AP 33.3 from supervised weights (MoCo's table, from memory, not verified); of SparK not
            known.
Cost:       90,000 iterations of 16 images; not measured with this code yet.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from d2_projects.modeling.res5 import with_norm

from .mask_rcnn_r50_fpn_sgd_1x import data, dataloader, lr_multiplier, optimizer, project, train

model = model_zoo.get_config("common/models/mask_rcnn_c4.py").model
model.pixel_mean = [123.675, 116.280, 103.530]
model.pixel_std = [58.395, 57.120, 57.375]
model.input_format = "RGB"
model.backbone.freeze_at = 0
model.backbone.stem.norm = model.backbone.stages.norm = "SyncBN"
model.backbone.stages.stride_in_1x1 = False
model.roi_heads.res5.norm = "SyncBN"
model.roi_heads.res5.stride_in_1x1 = False
model.roi_heads.box_predictor.input_shape.channels = 2048
model.roi_heads.mask_head.input_shape.channels = 2048
model.roi_heads.res5 = L(with_norm)(stage=model.roi_heads.res5, norm="SyncBN")

train.precise_bn_iter = 200
