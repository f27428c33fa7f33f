"""Train and evaluate a Detectron2 model that a LazyConfig recipe describes: all hooks in one place."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.engine import hooks
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from omegaconf import DictConfig
from torch import Tensor, nn

from d2_projects.data.loader import FollowingBatches, build_train_loader
from d2_projects.engine.build import build_part
from d2_projects.engine.checkpoints import BestHook, CheckpointHook, Checkpoints, best_of
from d2_projects.engine.evaluate import evaluate, evaluate_with_tta, flat
from d2_projects.engine.hooks import EvaluationHook, MetricsHook, ProgressHook, SeedHook, StopHook, Stopped
from d2_projects.engine.processes import parallel, pick_device
from d2_projects.engine.trainer import Trainer, mixed_precision
from d2_projects.modeling.load_backbone import load_backbone
from d2_projects.options import complete
from d2_projects.project import Project
from spark.errors import PostponedError, UserError
from spark.faults import fault
from spark.runs.folder import CHECKPOINTS
from spark.utils.distributed import Ranks
from spark.utils.signals import StopRequest
from spark.utils.stopwatch import Stopwatch

LOG = "log.txt"


@dataclass(frozen=True)
class Outcome:
    """What a finished run leaves behind."""

    model: nn.Module
    metrics: dict[str, float]  # by the names of the log; nan where nothing could be computed
    images_per_second: float | None  # of all processes; None when nothing was left to train
    seconds: float  # of training and evaluation, also before the run was interrupted
    peak_memory_mib: float | None  # of the GPU that needed most; None on a CPU
    best: float | None  # main metric of the best evaluation, that of checkpoints/best.pt; None if there was but one


def train(
    cfg: DictConfig, project: Project[Any], run: Path, backbone: dict[str, Tensor] | None = None,
    ranks: Ranks | None = None, request: StopRequest | None = None,
) -> Outcome:
    """Train from where the run folder stands (an empty one: from the start), then evaluate.

    A continued run goes on with the model, optimizer, schedule, images and random numbers that it would have had; on
    a CPU its losses are those of an uninterrupted run to the last digit. (GPUs add up in no fixed order.)

    Args:
        cfg: a recipe with `model`, `dataloader`, `optimizer`, `lr_multiplier` and `train`, pointing at registered data.
        project: the recipe's.
        run: where checkpoints and `metrics.jsonl` go.
        backbone: weights to start with, as for `load_backbone`.
        ranks: the processes; by default this one alone, on the recipe's device.
        request: tells when the run shall stop.

    Raises:
        UserError: the batch cannot be shared, the backbone's weights do not fit, the device is not there, the
            evaluation does not work, the checkpoint is damaged, an image cannot be read, the loss became infinite.
        PostponedError: a signal asked the run to stop, and it was saved.
    """
    stopwatch = Stopwatch()
    cfg = complete(cfg, project.data_options)
    cfg.train.output_dir = str(run)  # where the evaluator writes
    ranks = ranks or Ranks(pick_device(cfg.train.device))
    model, trainer = ranks.on_all(lambda: build(cfg, ranks, backbone))
    checkpoints = Checkpoints(run / CHECKPOINTS, model, trainer, stopwatch, writes=ranks.is_main)
    ranks.on_main(checkpoints.resume)  # one that is damaged, or of another run, is set aside before others look
    start = ranks.on_all(checkpoints.resume)
    if start:
        ranks.log(f"resuming {run} after iteration {start} of {cfg.train.max_iter}")
    project.rehearse(cfg, model, ranks)

    records = instantiate(cfg.dataloader.train.dataset)

    def loader(first_iteration: int) -> Any:
        return build_train_loader(cfg.dataloader.train, records, cfg.train.seed, first_iteration, cfg.train.accumulate)

    metrics: dict[str, float] = {}

    def evaluate_now() -> dict[str, Any]:
        results = evaluate(cfg, model, ranks)
        metrics.update(flat(results))
        return results

    trainer.reset_data_loader(lambda: loader(start))
    progress = ProgressHook(project.title, cfg.dataloader.train.total_batch_size)
    batches = cfg.train.precise_bn_iter * cfg.train.accumulate  # as small as in training, or they might not fit
    precise_bn = hooks.PreciseBN(
        cfg.train.eval_period, model, FollowingBatches(loader, lambda: trainer.iter, batches), batches,
    )
    trainer.register_hooks([hook for hook, wanted in (
        (SeedHook(cfg.train.seed), True),
        (progress, ranks.is_main),
        (hooks.LRScheduler(scheduler=build_part("lr_multiplier", cfg.lr_multiplier)), True),
        # Precise statistics first, so that they are what is saved and evaluated.
        (precise_bn, cfg.train.precise_bn_iter > 0),
        (CheckpointHook(checkpoints, cfg.train.checkpointer.period), True),
        (EvaluationHook(run, cfg.train.eval_period, evaluate_now, ranks, project.results), True),
        (BestHook(run / CHECKPOINTS, model, project.main_metric), ranks.is_main and cfg.train.eval_period > 0),
        (MetricsHook(run, cfg.train.log_period, project.results), ranks.is_main),
        (StopHook(request, ranks, checkpoints) if request else None, request is not None),
    ) if wanted])
    if ranks.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(ranks.device)
    with logged_to(run / LOG if ranks.is_main else None):
        with explained(run):
            trainer.train(start, cfg.train.max_iter)
        metrics.update(evaluate_with_tta(cfg, project, model, ranks))
    best = best_of(run / CHECKPOINTS, project.main_metric) if ranks.is_main and cfg.train.eval_period else None
    return Outcome(model, metrics, progress.images_per_second, stopwatch.seconds, peak_memory(ranks), best)


def build(cfg: DictConfig, ranks: Ranks, backbone: dict[str, Tensor] | None) -> tuple[nn.Module, Trainer]:
    """Return a recipe's model on the device and what trains it, without data yet.

    Raises:
        UserError: see `train`.
    """
    share_batch(cfg, ranks.size)
    dtype = mixed_precision(cfg.train.amp, ranks.device)
    seed_all_rng(cfg.train.seed)  # in all processes alike
    model = build_part("model", cfg.model).to(ranks.device)
    if backbone is not None:
        load_backbone(model, backbone)
    if cfg.train.accumulate > 1 and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        part = cfg.dataloader.train.total_batch_size // cfg.train.accumulate
        ranks.log(f"accumulating {cfg.train.accumulate} batches of {part} images: batch norms see one at a time")
    optimizer_cfg = copy.deepcopy(cfg.optimizer)
    optimizer_cfg.params.model = model  # the model object does not belong into the caller's configuration
    optimizer = build_part("optimizer", optimizer_cfg)
    return model, Trainer(parallel(model, ranks), None, optimizer, ranks, dtype, cfg.train.accumulate,
                          cfg.train.clip_grad_norm)


def share_batch(cfg: DictConfig, size: int) -> None:
    """Make sure that all processes get equally many images.

    Raises:
        UserError: they do not.
    """
    batch, parts = cfg.dataloader.train.total_batch_size, size * cfg.train.accumulate
    if batch % parts:
        shared = f"{size} process{'es' if size > 1 else ''}" + (
            f" with train.accumulate={cfg.train.accumulate}" if cfg.train.accumulate > 1 else "")
        raise UserError(f"dataloader.train.total_batch_size={batch} cannot be shared equally by {shared}; "
                        f"use e.g. {math.ceil(batch / parts) * parts}")


def peak_memory(ranks: Ranks) -> float | None:
    """Return the MiB of the GPU that needed most, or None on a CPU; all processes must ask."""
    if ranks.device.type != "cuda":
        return None
    comm.synchronize()  # the first process may compute for long; Detectron2's groups for objects wait half an hour
    return max(comm.all_gather(torch.cuda.max_memory_allocated(ranks.device))) / 2**20


@contextlib.contextmanager
def explained(run: Path) -> Iterator[None]:
    """Turn what ends a training in the body into a line for people.

    Raises:
        UserError: the loss became infinite, memory ran out, an image cannot be read, the disk is full.
        PostponedError: it was asked to stop, and was saved.
    """
    try:
        yield
    except Stopped:
        raise PostponedError(f"{run} was asked to stop and is saved; the same command goes on with it") from None
    except FloatingPointError as error:
        raise UserError(f"{str(error).splitlines()[0]} Lower optimizer.lr.") from None
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(f"the GPU's memory does not suffice: {str(error).splitlines()[0]} Raise train.accumulate, "
                        "lower dataloader.train.total_batch_size, or pass train.amp.enabled=true") from None
    except (OSError, SizeMismatchError) as error:  # a loader's worker process puts its traceback before the message
        raise UserError(f"training stopped: {fault(error) or str(error).splitlines()[-1]}") from None


class _LogFile(logging.FileHandler):
    """A log that ends the run when it cannot be written, instead of telling so with a traceback for each line."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Raise what is being handled."""
        raise  # noqa: PLE0704


@contextlib.contextmanager
def logged_to(file: Path | None) -> Iterator[None]:
    """Append what Detectron2 says to `file`, or nowhere, instead of the terminal while the body runs."""
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(file, encoding="utf-8") if file else logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore")]
    before = [(logger.propagate, logger.level) for logger in loggers]
    try:
        for logger in loggers:
            logger.addHandler(handler)
            logger.propagate = False
            logger.setLevel(logging.INFO)
        yield
    finally:
        for logger, (propagate, level) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.propagate = propagate
            logger.setLevel(level)
        handler.close()
