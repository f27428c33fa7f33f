"""Mask R-CNN, ConvNeXt-B-FPN, 12 epochs of COCO: the 3x recipe, shortened.

Reproduces: nothing published.
Command:    spark-eval detect d2_projects/mask_rcnn/mask_rcnn_convnext_b_fpn_1x.py \
                init=ENCODER out=runs/coco_convnext_b_1x data.root=datasets/coco
Expected:   not known.
Cost:       87,960 iterations of 16 images; not measured.
"""

from d2_projects.solver.schedule import iterations_of_epochs, steps

from .mask_rcnn_convnext_b_fpn_3x import data, dataloader, model, optimizer, project, train

batch = dataloader.train.total_batch_size
train.max_iter = iterations_of_epochs(12, batch)
lr_multiplier = steps(
    train.max_iter, milestones=[iterations_of_epochs(epoch, batch) for epoch in (9, 11)], gamma=0.2,
    warmup=500, warmup_factor=0.001,
)
