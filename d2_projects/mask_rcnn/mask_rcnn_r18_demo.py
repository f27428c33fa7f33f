"""Mask R-CNN, ResNet-18 with a narrow FPN, for the demo's little COCO set on two CPU cores.

Reproduces: nothing published; it shows that transfer to detection runs, and what its results look like.
Command:    spark-eval detect d2_projects/mask_rcnn/mask_rcnn_r18_demo.py \
                init=scratch out=runs/detect_scratch data.root=data/demo/detection
Expected:   see the report of the runs; these are smoke numbers (60 training and 20 validation images), and
            other seeds differ by points.
Cost:       150 iterations of 4 images, about 80 s of one CPU core.
"""

from .mask_rcnn_r50_fpn import data, dataloader, lr_multiplier, model, optimizer, project, train

data.root = "data/demo/detection"

train.smoke = True
train.reference_world_size = 0  # for any machine
train.max_iter = 150
train.checkpointer.period = 75
train.eval_period = 0  # only at the end
train.precise_bn_iter = 10
train.log_period = 10

# A ResNet-18 has no 1x1 convolution in its blocks that could carry the stride.
model.backbone.bottom_up.stages.depth = 18
del model.backbone.bottom_up.stages.stride_in_1x1

width = 64
model.backbone.out_channels = width
model.backbone.top_block = None  # images are 6x6 at p5 already
model.proposal_generator.in_features = ["p2", "p3", "p4", "p5"]
model.proposal_generator.head.in_channels = width
model.proposal_generator.anchor_generator.sizes = [[16], [32], [64], [128]]
model.proposal_generator.anchor_generator.strides = [4, 8, 16, 32]
model.proposal_generator.batch_size_per_image = 128
model.proposal_generator.pre_nms_topk = (400, 200)
model.proposal_generator.post_nms_topk = (200, 100)
model.roi_heads.batch_size_per_image = 48
model.roi_heads.box_head.input_shape.channels = width
model.roi_heads.box_head.conv_dims = [width]
model.roi_heads.box_head.fc_dims = [256]
model.roi_heads.box_predictor.input_shape.channels = 256
model.roi_heads.mask_head.input_shape.channels = width
model.roi_heads.mask_head.conv_dims = [width, width, width]

# One process: no other to synchronize with.
model.backbone.bottom_up.stem.norm = model.backbone.bottom_up.stages.norm = model.backbone.norm = "BN"
model.roi_heads.box_head.conv_norm = model.roi_heads.mask_head.conv_norm = "BN"

dataloader.train.total_batch_size = 4
dataloader.train.num_workers = dataloader.test.num_workers = 0
dataloader.train.mapper.augmentations[0].update(short_edge_length=[128, 144, 160], max_size=224)
dataloader.test.mapper.augmentations[0].update(short_edge_length=144, max_size=224)

optimizer.lr = 2e-3
optimizer.params.lr_factor_func.decay = 0.8
lr_multiplier.warmup_length = 0.1
