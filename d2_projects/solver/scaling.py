"""A recipe for eight GPUs on fewer: each keeps its images per step, and all that hangs on the batch is scaled.

This is the idea of Detectron2's `DefaultTrainer.auto_scale_workers`, for LazyConfigs and extended: the rule for the
learning rate follows the optimizer, and whoever accumulates gradients over enough batches needs no scaling.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from d2_projects.options import called
from spark.utils.printable import counted

BATCH, LR, ITERATIONS = "dataloader.train.total_batch_size", "optimizer.lr", "train.max_iter"
PERIODS = ("train.eval_period", "train.precise_bn_iter")


@dataclass(frozen=True)
class Change:
    """One number of a recipe that was scaled."""

    key: str
    old: float
    new: float
    reason: str

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.old)} -> {_shown(self.new)} ({self.reason})"


def scaled(cfg: DictConfig, gpus: int, fixed: Collection[str] = ()) -> tuple[DictConfig, list[Change]]:
    """Return a recipe for so many GPUs, and what has changed; the given one is left as it is.

    Args:
        cfg: a complete recipe (`d2_projects.options.complete`).
        gpus: in all; 0 when computing on CPUs, where nothing is scaled.
        fixed: keys that somebody has set by hand, and that stay. If batch, learning rate or schedule are among them
            (`set_by_hand`), nothing is scaled: who sets one of these numbers has all of them in mind.

    Nothing changes either with `train.auto_scale=false`, without a `train.reference_world_size`, or if GPUs times
    `train.accumulate` reach it.

    The learning rate goes with the batch for SGD (Goyal et al. 2017, arXiv:1706.02677), and with its square root for
    Adam and its kin, whose steps do not grow with the gradient (Malladi et al. 2022, arXiv:2205.10287). Iterations are
    scaled so that as many images are seen; warm-up is a share of the training, so it grows along.
    """
    parts = gpus * cfg.train.accumulate
    if not _too_few(cfg, gpus) or set_by_hand(cfg, gpus, fixed):
        return cfg, []
    cfg, warmup = cfg.copy(), warmup_iterations(cfg)
    changes: list[Change] = []

    def change(key: str, new: float, reason: str) -> None:
        old = OmegaConf.select(cfg, key)
        if new != old:
            OmegaConf.update(cfg, key, new)
            changes.append(Change(key, old, new, reason))

    batch = cfg.dataloader.train.total_batch_size
    per_gpu = max(1, round(batch / cfg.train.reference_world_size))
    share = per_gpu * parts / batch
    change(BATCH, per_gpu * parts, f"{per_gpu} images for each GPU at a time, with {counted(gpus, 'GPU')} instead of "
           f"{cfg.train.reference_world_size}")
    root = "Adam" in called(cfg.optimizer).__name__
    change(LR, float(f"{cfg.optimizer.lr * (math.sqrt(share) if root else share):.6g}"),
           "with the square root of the batch, as for Adam" if root else "with the batch, as for SGD")
    longer = [(ITERATIONS, "as many images in all"), *((key, "after as many images") for key in _marks(cfg)),
              *((key, "after as many images") for key in PERIODS if key not in fixed)]
    for key, reason in longer:
        change(key, round(OmegaConf.select(cfg, key) / share), reason)
    if warmup:
        changes.append(Change("warm-up iterations", warmup, warmup_iterations(cfg), "the same share of the training"))
    cfg.train.reference_world_size = parts  # it is meant for these now
    return cfg, changes


def set_by_hand(cfg: DictConfig, gpus: int, fixed: Collection[str]) -> list[str]:
    """Return the keys that keep a recipe from being scaled, though the GPUs are too few; see `scaled`."""
    return sorted({BATCH, LR, ITERATIONS, *_marks(cfg)} & set(fixed)) if _too_few(cfg, gpus) else []


def warmup_iterations(cfg: DictConfig) -> int:
    """Return how long the learning rate rises."""
    return round(cfg.train.max_iter * (OmegaConf.select(cfg, "lr_multiplier.warmup_length") or 0.0))


def _too_few(cfg: DictConfig, gpus: int) -> bool:
    return bool(cfg.train.auto_scale and 0 < gpus * cfg.train.accumulate < cfg.train.reference_world_size)


def _marks(cfg: DictConfig) -> list[str]:
    """Return the keys of all numbers of iterations in the schedule."""
    return list(_marks_below(cfg.lr_multiplier, "lr_multiplier"))


def _marks_below(node: Any, prefix: str) -> Iterator[str]:
    if not isinstance(node, DictConfig):
        return
    for key in map(str, node):
        name = f"{prefix}.{key}"
        if OmegaConf.is_interpolation(node, key):  # it follows whatever it names
            continue
        if key == "num_updates" and node[key] is not None:
            yield name
        elif key == "milestones":
            yield from (f"{name}.{index}" for index in range(len(node[key])))
        else:
            yield from _marks_below(node[key], name)


def _shown(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"
