"""Mask R-CNN, ResNet-50-FPN, 2x schedule on COCO: SparK's settings, trained twice as long.

Reproduces: SparK (Tian et al., ICLR 2023, arXiv:2301.03580), ResNet-50 on COCO val2017, 2x.
Command:    spark-eval detect d2_projects/mask_rcnn/mask_rcnn_r50_fpn_2x.py \
                init=ENCODER out=runs/coco_r50_2x data.root=datasets/coco
Expected:   box AP 43.4, mask AP 39.4; 41.3 and 37.3 from supervised weights (the paper's COCO table, from memory,
            not verified).
Cost:       180,000 iterations of 16 images, about 25 COCO epochs; not measured with this code yet.
"""

from d2_projects.solver.schedule import iterations_of_times, steps

from .mask_rcnn_r50_fpn import data, dataloader, model, optimizer, project, train

train.max_iter = iterations_of_times(2, batch=16)
lr_multiplier = steps(train.max_iter, milestones=[120_000, 160_000], gamma=0.25, warmup=1000, warmup_factor=0.01)
