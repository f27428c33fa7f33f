"""What a recipe may say in `train` and `test`, with defaults: it states only what differs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pydoc import locate
from typing import Any

from omegaconf import DictConfig, OmegaConf

from spark.config.values import Count, CountOrNone, NotNegative, Output, Positive, Seed


@dataclass
class Amp:
    """Mixed precision."""

    enabled: bool = False  # float16 with a gradient scaler


@dataclass
class Checkpointer:
    """When to save; the last checkpoint and the one before it are kept, and the best if `eval_period` is set."""

    period: Count = 5000  # iterations


@dataclass
class TrainOptions:
    """How a recipe is trained; an iteration is one step of the optimizer."""

    output_dir: Output = "runs/detect"
    seed: Seed = 0
    device: str = "auto"  # cuda if there is one
    max_iter: Count = 90_000
    amp: Amp = field(default_factory=Amp)
    accumulate: Count = 1  # parts that a process computes one after the other; the total batch stays
    clip_grad_norm: NotNegative = 0.0  # of all gradients together; 0: no clipping
    reference_world_size: CountOrNone = 0  # GPUs that batch, learning rate and schedule are meant for; 0: any number
    auto_scale: bool = True  # with fewer GPUs than that, scale them (see d2_projects/solver/scaling.py)
    checkpointer: Checkpointer = field(default_factory=Checkpointer)
    eval_period: CountOrNone = 0  # iterations; 0: only at the end
    # Batches for batch norms' statistics before evaluations; 0: running ones, but in runs too short for these.
    precise_bn_iter: CountOrNone = 0
    log_period: Count = 20
    smoke: bool = False  # True: the numbers only show that everything runs


@dataclass
class TestOptions:
    """How a recipe is evaluated, beside its test loader."""

    tta: bool = False  # evaluate once more with test-time augmentation: flips and scales
    tta_scales: list[Positive] = field(default_factory=lambda: [0.5, 0.75, 1.0, 1.25, 1.5])  # of the test size
    tta_flip: bool = True


def complete(cfg: DictConfig, data: type[Any]) -> DictConfig:
    """Return a recipe with a value for every option; its own values stay, also those of other names.

    Args:
        cfg: the recipe.
        data: the options of its project's `data`.
    """
    cfg = cfg.copy()
    for name, options in (("data", data()), ("train", TrainOptions()), ("test", TestOptions())):
        cfg[name] = OmegaConf.merge(dataclasses.asdict(options), cfg.get(name, {}))
    return cfg


def called(call: DictConfig) -> Any:
    """Return what a LazyCall calls, which it may hold by name."""
    target = call["_target_"]
    return locate(target) if isinstance(target, str) else target
