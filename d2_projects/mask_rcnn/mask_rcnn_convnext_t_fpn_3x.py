"""Mask R-CNN, ConvNeXt-T-FPN, 36 epochs of COCO: the supervised recipe of the ConvNeXt paper.

Reproduces: ConvNeXt (Liu et al., CVPR 2022, arXiv:2201.03545), ConvNeXt-T on COCO val2017. (The original ran in
            MMDetection, whose anchors, samplers and losses differ from Detectron2's in details.)
Command:    spark-eval detect d2_projects/mask_rcnn/mask_rcnn_convnext_t_fpn_3x.py \
                init=ENCODER out=runs/coco_convnext_t data.root=datasets/coco
Expected:   box AP 46.2, mask AP 41.7 from supervised weights (ConvNeXt's table); from SparK not known.
Cost:       263,880 iterations of 16 images; not measured with this code yet.
"""

from d2_projects.solver.schedule import iterations_of_epochs, steps

from .mask_rcnn_convnext_b_fpn_3x import batch, data, dataloader, model, optimizer, project, train

model.backbone.bottom_up.name = "convnext_tiny"
model.backbone.bottom_up.drop_path_rate = 0.4

optimizer.lr = 1e-4
optimizer.params.decay = 0.95

lr_multiplier = steps(
    train.max_iter, milestones=[iterations_of_epochs(epoch, batch) for epoch in (27, 33)], gamma=0.1,
    warmup=500, warmup_factor=0.001,
)
