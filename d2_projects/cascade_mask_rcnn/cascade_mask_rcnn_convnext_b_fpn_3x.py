"""Cascade Mask R-CNN, ConvNeXt-B-FPN, 36 epochs of COCO: the supervised recipe of the ConvNeXt paper.

Reproduces: ConvNeXt (Liu et al., CVPR 2022, arXiv:2201.03545), ConvNeXt-B on COCO val2017, as far as Detectron2 can:
            its cascade regresses one box for all classes, the original one for each.
Command:    spark-eval detect d2_projects/cascade_mask_rcnn/cascade_mask_rcnn_convnext_b_fpn_3x.py \
                init=ENCODER out=runs/coco_cascade_convnext_b data.root=datasets/coco
Expected:   box AP 52.7, mask AP 45.6 from supervised weights of ImageNet-1k (ConvNeXt's table); from SparK not known.
Cost:       263,880 iterations of 16 images; not measured with this code yet.
"""

from detectron2 import model_zoo

from d2_projects.solver.schedule import iterations_of_epochs, steps

from ..mask_rcnn.mask_rcnn_convnext_b_fpn_3x import batch, data, dataloader, model, optimizer, project, train

_heads = model_zoo.get_config("common/models/cascade_rcnn.py").model.roi_heads
for _head in _heads.box_heads:
    _head.update(conv_dims=[256, 256, 256, 256], fc_dims=[1024], conv_norm="SyncBN")
for _predictor in _heads.box_predictors:
    _predictor.update(box_reg_loss_type="giou", loss_weight={"loss_cls": 1.0, "loss_box_reg": 10.0})
model.roi_heads = _heads
model.backbone.bottom_up.drop_path_rate = 0.7

optimizer.params.decay = 0.8

lr_multiplier = steps(
    train.max_iter, milestones=[iterations_of_epochs(epoch, batch) for epoch in (27, 33)], gamma=0.1,
    warmup=500, warmup_factor=0.001,
)
