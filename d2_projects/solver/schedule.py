"""How long a recipe trains and when its learning rate falls, computed from epochs or from Detectron2's "1x"."""

from __future__ import annotations

import math
from collections.abc import Sequence

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler
from omegaconf import DictConfig

COCO_TRAIN_IMAGES = 117_266  # of train2017's 118,287: those with an annotated object, the others are left out
IMAGES_OF_1X = 1_440_000  # Detectron2 counts images, not epochs: 90,000 iterations of 16


def iterations_of_epochs(epochs: float, batch: int, images: int = COCO_TRAIN_IMAGES) -> int:
    """Return the iterations of so many epochs, each of which is rounded up to whole batches."""
    return round(epochs * math.ceil(images / batch))


def iterations_of_times(times: float, batch: int) -> int:
    """Return the iterations of Detectron2's "1x", "2x", "3x" schedules."""
    return round(times * IMAGES_OF_1X / batch)


def steps(
    max_iter: int, milestones: Sequence[int], gamma: float, warmup: int, warmup_factor: float
) -> DictConfig:
    """Return the configuration of a learning rate that is multiplied by `gamma` at each milestone.

    Args:
        max_iter: iterations in all.
        milestones: iterations.
        gamma: factor at each.
        warmup: iterations in which the rate rises linearly from `warmup_factor` times its value.
        warmup_factor: where it starts.

    The schedule is kept in shares of the training: whoever overrides `train.max_iter` stretches all of it.
    """
    return L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(
            values=[gamma**passed for passed in range(len(milestones) + 1)],
            milestones=list(milestones),
            num_updates=max_iter,
        ),
        warmup_factor=warmup_factor,
        warmup_length=warmup / max_iter,
    )
