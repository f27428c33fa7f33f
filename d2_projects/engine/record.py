"""The record of a finished run: what was measured, and what decides whether two numbers may be compared."""

from __future__ import annotations

from typing import Any

from d2_projects.engine.config import DetectConfig
from d2_projects.engine.initialize import backbone_of
from d2_projects.engine.train import Outcome
from d2_projects.project import Data, Project
from spark.runs.checkpoint import LAST
from spark.runs.folder import CHECKPOINTS
from spark.runs.metrics import FILE_NAME as METRICS
from spark.runs.record import Initialization, Metric, ResultRecord
from spark.utils.distributed import Ranks
from spark.utils.provenance import code_version, content_hash, environment, hardware


def protocol_of(config: DetectConfig, data: Data) -> dict[str, Any]:
    """Return what two numbers must share to be comparable: the recipe and the data, by content."""
    return {
        "recipe": config.recipe.stem,
        "recipe_hash": content_hash(config.protocol_text()),
        "iterations": config.cfg.train.max_iter,
        "batch": config.cfg.dataloader.train.total_batch_size,
        **data.protocol,
    }


def identity_of(config: DetectConfig, data: Data, protocol: dict[str, Any], init: Initialization) -> dict[str, Any]:
    """Return what a run folder holds one run of; a version that only some data have stands beside the rest."""
    identity = {"protocol": content_hash(protocol), "seed": config.cfg.train.seed, "init": init}
    version = config.project.version_for(data)
    return identity if version == config.project.version else {**identity, "task version": version}


def metrics_of(project: Project[Any], outcome: Outcome) -> dict[str, Metric]:
    """Return the metrics of the last state, and with "best/" before its name the main metric of the best one.

    The best one was chosen by what it is measured on, so it is for comparison with others that were chosen so.
    """
    values = project.known(outcome.metrics)
    if outcome.best is not None:
        values[f"best/{project.main_metric}"] = max(outcome.best, values[project.main_metric])
    return {name: Metric(value, project.unit) for name, value in values.items()}


def record(
    config: DetectConfig, data: Data, protocol: dict[str, Any], init: Initialization, outcome: Outcome, ranks: Ranks
) -> ResultRecord:
    """Return the result record of a finished run."""
    cfg, project = config.cfg, config.project
    return ResultRecord(
        task=project.name,
        task_version=project.version_for(data),
        model=backbone_of(cfg).name,
        init=init,
        metrics=metrics_of(project, outcome),
        main_metric=project.main_metric,
        protocol=protocol,
        seed=cfg.train.seed,
        epochs=cfg.train.max_iter * cfg.dataloader.train.total_batch_size / data.train_images,
        origin="smoke" if cfg.train.smoke else "measured",
        code_version=code_version(),
        environment=environment(),
        hardware=hardware(ranks.device, ranks.size),
        wall_seconds=round(outcome.seconds, 3),
        images_per_second=outcome.images_per_second,
        peak_memory_mib=outcome.peak_memory_mib,
        log=METRICS,  # relative to the run's folder, which may move
        checkpoint=f"{CHECKPOINTS}/{LAST}",
    )
