"""SparK pre-training as a task of a study: what evaluations begin with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from eval_suite.task import FORWARD_AND_BACKWARD, Cost, Prepared, Task, Work
from spark.backbones.names import is_reference
from spark.backbones.own_network import source_hash
from spark.checks.model_summary import ModelSummary, describe
from spark.config.identity import deciding
from spark.config.pretrain import PretrainConfig
from spark.config.recipe import load_recipe
from spark.formats.encoder import INFO, WEIGHTS

KEPT_CHECKPOINTS = 2  # the last and the one before
BYTES_PER_PARAMETER = 3 * 4  # of a checkpoint: weights and two moments in float32


class Pretrain(Task):
    """`spark pretrain`."""

    name, version, purpose = "pretrain", 1, "SparK pre-training; exports the encoder that the others begin with"
    distributed = True

    def prepare(self, work: Work) -> Prepared:
        """Read the recipe; what a continued run may change does not decide."""
        config = _read(work)
        settings = deciding(config, config.FREE_TO_CHANGE)
        if is_reference(config.model.name):
            settings["source"] = source_hash(config.model.name)
        return Prepared(settings, (Path(config.data.root),), config.train.epochs)

    def command(self, work: Work) -> list[str]:
        """Return `spark pretrain RECIPE key=value …`."""
        return ["spark", "pretrain", work.recipe, *work.overrides()]

    def collect(self, work: Work) -> Mapping[str, str] | None:
        """Return for how many epochs the exported encoder was trained."""
        if not (work.out / WEIGHTS).is_file() or not (work.out / INFO).is_file():
            return None
        info = json.loads((work.out / INFO).read_text(encoding="utf-8"))
        return {"epochs": str(info["epochs"])}

    def cost(self, work: Work, images: int | None) -> Cost | None:
        """Count the forward pass on the compact engine; the backward pass is taken for two of them."""
        config = _read(work)
        if images is None or is_reference(config.model.name) or config.model.in_chans != 3:
            return None
        height, width = config.data.input_size
        card = _card(config.model.name, config.engine, height, width, config.mask.ratio, config.decoder.width)
        steps = images // config.train.batch * config.train.epochs
        flops = FORWARD_AND_BACKWARD * (card.encoder_flops + card.decoder_flops) * steps * config.train.batch
        parameters = card.encoder_parameters + card.decoder_parameters
        storage = KEPT_CHECKPOINTS * BYTES_PER_PARAMETER * parameters + 4 * card.encoder_parameters
        return Cost(flops, storage, "a pre-training's forward pass is counted on the compact engine, the "
                    "backward pass taken for two of them")


def _read(work: Work) -> PretrainConfig:
    return load_recipe(PretrainConfig, work.recipe, work.overrides())


@lru_cache(maxsize=32)
def _card(model: str, engine: str, height: int, width: int, ratio: float, decoder: int) -> ModelSummary:
    """Costs of a network, which many nodes of a study share."""
    return describe(model, engine, (height, width), ratio, decoder)
