"""Mask R-CNN, ResNet-50-FPN, 1x schedule on COCO: the setting of SparK's detection experiments.

Reproduces: SparK (Tian et al., ICLR 2023, arXiv:2301.03580), ResNet-50 on COCO val2017.
Command:    spark-eval detect d2_projects/mask_rcnn/mask_rcnn_r50_fpn.py \
                init=ENCODER out=runs/coco_r50 data.root=datasets/coco
Expected:   box AP 41.6, mask AP 37.7 after 1600 epochs of SparK on ImageNet-1k, 38.9 and 35.4 from supervised
            weights (the paper's COCO table, from memory, not verified).
Cost:       90,000 iterations of 16 images, about 12 COCO epochs; not measured with this code yet.

Warm-up and steps are shares of `train.max_iter`: overriding it stretches the whole schedule.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from omegaconf import OmegaConf

from d2_projects.evaluation.coco import CocoMetrics
from d2_projects.instance_segmentation import InstanceSegmentation
from d2_projects.solver.layer_decay import resnet_layer_decay
from d2_projects.solver.schedule import iterations_of_times, steps

project = L(InstanceSegmentation)()

data = OmegaConf.create({"root": "datasets/coco"})  # train2017/ val2017/ annotations/instances_*.json

train = OmegaConf.create({
    "output_dir": "runs/mask_rcnn",
    "seed": 0,
    "device": "auto",  # cuda if there is one
    "max_iter": iterations_of_times(1, batch=16),
    "amp": {"enabled": False},
    "reference_world_size": 8,  # GPUs; fewer are given smaller batches, and the rest is scaled to that
    "checkpointer": {"period": 5000},
    "eval_period": 5000,
    "precise_bn_iter": 200,
    "log_period": 20,
    "smoke": False,  # True: the numbers only show that everything runs
})

model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
model.pixel_mean = [123.675, 116.280, 103.530]
model.pixel_std = [58.395, 57.120, 57.375]
model.input_format = "RGB"
model.backbone.bottom_up.freeze_at = 0
model.backbone.bottom_up.stages.stride_in_1x1 = False
model.backbone.bottom_up.stem.norm = model.backbone.bottom_up.stages.norm = model.backbone.norm = "SyncBN"
model.roi_heads.box_head.conv_dims = [256, 256, 256, 256]
model.roi_heads.box_head.fc_dims = [1024]
model.roi_heads.box_head.conv_norm = model.roi_heads.mask_head.conv_norm = "SyncBN"

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.train.mapper.image_format = "RGB"
dataloader.evaluator = L(CocoMetrics)(
    dataset_name="${..test.dataset.names}", output_dir="${train.output_dir}", backend="auto"
)
dataloader.train.mapper.augmentations[0].short_edge_length = list(range(480, 897, 32))

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.lr = 2.5e-4
optimizer.weight_decay = 1e-4
optimizer.params.lr_factor_func = L(resnet_layer_decay)(
    depth="${model.backbone.bottom_up.stages.depth}", decay=0.6
)

lr_multiplier = steps(
    train.max_iter, milestones=[train.max_iter * 2 // 3, train.max_iter * 8 // 9], gamma=0.25,
    warmup=1000, warmup_factor=0.01,
)
