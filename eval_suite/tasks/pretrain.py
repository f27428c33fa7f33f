"""Masked pre-training as a task of a study: what evaluations begin with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import cast

from omegaconf import OmegaConf

from eval_suite.task import FORWARD_AND_BACKWARD, Cost, Prepared, Task, Work
from spark.backbones.names import is_reference
from spark.checks.model_summary import ModelSummary, describe
from spark.config.identity import deciding
from spark.config.pretrain import OptimizerConfig, PretrainConfig, ProbeConfig, TrainConfig
from spark.config.recipe import to_yaml, with_values
from spark.errors import UserError
from spark.formats.encoder import INFO, WEIGHTS
from spark.methods.registry import config_class, read_recipe
from spark.utils.json_text import read_json

KEPT_CHECKPOINTS = 2  # the last and the one before
BYTES_PER_PARAMETER = 3 * 4  # of a checkpoint: weights and two moments in float32


class Pretrain(Task):
    """`spark pretrain`."""

    name, version, purpose = "pretrain", 1, "masked pre-training; exports the encoder that the others begin with"
    distributed = True

    def prepare(self, work: Work) -> Prepared:
        """Read the recipe; what a continued run may change does not decide."""
        config = _read(work)
        settings = {**deciding(config, config.FREE_TO_CHANGE), **work.source(config.model.name)}
        return Prepared(settings, (Path(config.data.root),), config.train.epochs)

    def command(self, work: Work) -> list[str]:
        """Return `spark pretrain RECIPE key=value …`."""
        return ["spark", "pretrain", work.recipe, *work.overrides()]

    def collect(self, work: Work) -> Mapping[str, str] | None:
        """Return for how many epochs the exported encoder was trained."""
        if not (work.out / WEIGHTS).is_file() or not (work.out / INFO).is_file():
            return None
        info = read_json(work.out / INFO, "description of an encoder")
        if not isinstance(info, dict) or "epochs" not in info:
            raise UserError(f"'{work.out / INFO}' is damaged: it does not say for how many epochs")
        return {"epochs": str(info["epochs"])}

    def cost(self, work: Work, images: int | None) -> Cost | None:
        """Count the forward pass as the method computes it; the backward pass is taken for two of them."""
        config = _read(work)
        if images is None or is_reference(config.model.name) or config.model.in_chans != 3:
            return None
        summary = _summary(config.method, to_yaml(_costly(config)))
        steps = images // config.train.batch * config.train.epochs
        flops = FORWARD_AND_BACKWARD * (summary.encoder_flops + summary.decoder_flops) * steps * config.train.batch
        parameters = summary.encoder_parameters + summary.decoder_parameters
        storage = KEPT_CHECKPOINTS * BYTES_PER_PARAMETER * parameters + 4 * summary.encoder_parameters
        return Cost(flops, storage, "a pre-training's forward pass is counted as its method computes it, the "
                    "backward pass taken for two of them")


def _read(work: Work) -> PretrainConfig:
    return read_recipe(work.recipe, work.overrides())


def _costly(config: PretrainConfig) -> PretrainConfig:
    """Return a configuration without what a step's cost does not depend on, as nodes of a study share costs."""
    plain = dataclasses.replace(config, train=TrainConfig(), optimizer=OptimizerConfig(), probe=ProbeConfig())
    return with_values(plain, {"out": "unset", "seed": 0, "init": None, "data.root": "unset", "model.drop_path": 0.0})


@lru_cache(maxsize=32)
def _summary(method: str, settings: str) -> ModelSummary:
    merged = OmegaConf.merge(OmegaConf.structured(config_class(method)), OmegaConf.create(settings))
    return describe(cast(PretrainConfig, OmegaConf.to_object(merged)))
