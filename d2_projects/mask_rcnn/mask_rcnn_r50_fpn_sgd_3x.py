"""Mask R-CNN, ResNet-50-FPN, 3x: Detectron2's standard settings, as a protocol to compare initializations by.

Reproduces: Detectron2's COCO baseline R50-FPN 3x, with the differences that the 1x recipe names.
Command:    spark-eval detect d2_projects/mask_rcnn/mask_rcnn_r50_fpn_sgd_3x.py \
                init=ENCODER out=runs/coco_r50_sgd_3x data.root=datasets/coco
Expected:   box AP 41.0, mask AP 37.2 from supervised weights (Detectron2's model zoo, from memory, not verified).
Cost:       270,000 iterations of 16 images; not measured with this code yet.
"""

from d2_projects.solver.schedule import iterations_of_times, steps

from .mask_rcnn_r50_fpn_sgd_1x import data, dataloader, model, optimizer, project, train

train.max_iter = iterations_of_times(3, batch=16)
lr_multiplier = steps(train.max_iter, milestones=[210_000, 250_000], gamma=0.1, warmup=1000, warmup_factor=0.001)
