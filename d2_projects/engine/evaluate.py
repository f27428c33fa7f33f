"""Evaluation of a model in the midst of training, after it, or of a checkpoint alone."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

from detectron2.config import instantiate
from detectron2.evaluation import inference_on_dataset
from omegaconf import DictConfig
from torch import nn

from d2_projects.engine.build import build_part
from d2_projects.engine.checkpoints import load_model
from d2_projects.engine.processes import equal_buffers
from d2_projects.options import complete
from d2_projects.project import Project
from spark.utils.distributed import Ranks
from spark.utils.workers import keep_workers

TTA = "tta"


def evaluate(cfg: DictConfig, model: nn.Module, ranks: Ranks) -> dict[str, dict[str, float]]:
    """Return the evaluator's nested results on the recipe's test set in the first process; others get {}.

    Each process evaluates its share of the images.
    """
    equal_buffers(model, ranks)
    with contextlib.redirect_stdout(io.StringIO()):  # evaluators print their tables
        loader = keep_workers(instantiate(cfg.dataloader.test))
        return inference_on_dataset(model, loader, instantiate(cfg.dataloader.evaluator))


def evaluate_with_tta(
    cfg: DictConfig, project: Project[Any], model: nn.Module, ranks: Ranks
) -> dict[str, float]:
    """Return, if `test.tta` is set, the metrics with test-time augmentation, whose names then begin with "tta/"."""
    if not cfg.test.tta:
        return {}
    augmented = cfg.copy()
    augmented.dataloader.test, augmented_model = project.with_tta(cfg, model)
    if folder := augmented.dataloader.evaluator.get("output_dir"):
        augmented.dataloader.evaluator.output_dir = str(Path(folder) / TTA)  # beside that of the plain evaluation
    return {f"{TTA}/{name}": value for name, value in flat(evaluate(augmented, augmented_model, ranks)).items()}


def evaluate_only(
    cfg: DictConfig, project: Project[Any], out: Path, weights: Path, ranks: Ranks
) -> dict[str, float]:
    """Return the metrics of a checkpoint: without, and if `test.tta` is set also with test-time augmentation.

    The evaluator writes into the folder `out`.

    Raises:
        UserError: the checkpoint is missing, damaged or of another model; the evaluation does not work.
    """
    cfg = complete(cfg, project.data_options)
    cfg.train.output_dir = str(out)
    model = build_part("model", cfg.model).to(ranks.device)
    ranks.on_all(lambda: load_model(model, weights))
    project.rehearse(cfg, model, ranks)
    return flat(evaluate(cfg, model, ranks)) | evaluate_with_tta(cfg, project, model, ranks)


def flat(results: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return {"task": {"metric": 1.0}} as {"task/metric": 1.0}."""
    return {f"{task}/{name}": value for task, values in results.items() for name, value in values.items()}
