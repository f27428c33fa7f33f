"""Runs too short for running statistics are evaluated with precise ones, though their recipe does not ask for them."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

from detectron2.config import instantiate

from d2_projects.engine.config import DetectConfig
from d2_projects.engine.record import protocol_of
from d2_projects.engine.run_folder import begun_as
from d2_projects.project import Data
from spark.backbones.batch_norms import carries_start
from spark.utils.provenance import content_hash

KEY = "train.precise_bn_iter"
BATCHES = 50
LONG = 688  # iterations after which even statistics of a momentum of .01 hold nothing of their start


def with_precise_bn(config: DetectConfig, data: Data) -> tuple[DetectConfig, list[str]]:
    """Return a short run's configuration with precise statistics, and a line on it; others as they are.

    It is short if batch norms that learn would still hold what they started from (see `spark.backbones.batch_norms`).
    Who sets `train.precise_bn_iter` by hand has the say; a run that an earlier version began goes on as it began.
    """
    train = config.cfg.train
    steps = train.max_iter * train.accumulate
    if train.precise_bn_iter or KEY in config.by_hand or steps >= LONG or (
            begun_as(config, content_hash(protocol_of(config, data)))):
        return config, []
    if not carries_start(_model(config, data), steps):
        return config, []
    cfg = config.cfg.copy()
    cfg.train.precise_bn_iter = BATCHES
    return dataclasses.replace(config, cfg=cfg), [
        f"note     {steps} iterations are too few for batch norms' running statistics: {KEY}={BATCHES}"]


def _model(config: DetectConfig, data: Data) -> Any:
    """Build the model once, to look at its norms."""
    cfg = config.cfg.copy()
    with contextlib.ExitStack() as stack:
        config.project.point_at(cfg, data, stack.enter_context(config.project.registered(data)))
        return instantiate(cfg.model)
