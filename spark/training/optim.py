"""Optimizers with parameter groups, and the schedules of learning rate and weight decay."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import timm.optim
import torch
from torch import nn

from spark.config.choices import DEFAULT_COURSE, OPTIMIZERS
from spark.errors import UserError, nearest
from spark.utils.weight_decay import decayed


def parameter_groups(model: nn.Module, decays: Callable[[str, nn.Parameter], bool] = decayed) -> list[dict]:
    """Return two parameter groups, with and without weight decay, marked by the key `decays`.

    Args:
        model: whose parameters.
        decays: whether weight decay applies to a parameter, given its name too.
    """
    groups: list[dict] = [{"params": [], "decays": True}, {"params": [], "decays": False}]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[0 if decays(name, parameter) else 1]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def build_optimizer(name: str, groups: list[dict], betas: tuple[float, float]) -> torch.optim.Optimizer:
    """Build LAMB (arXiv 1904.00962) or AdamW; learning rate and weight decay are set by `set_schedule`.

    The gradient norm is clipped by the training loop, which also reports it.
    """
    if name == "lamb":
        return timm.optim.Lamb(groups, lr=0.0, betas=betas, weight_decay=0.0, eps=1e-6, max_grad_norm=None)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=betas, weight_decay=0.0, eps=1e-8)
    raise UserError(f"unknown optimizer '{name}'.{nearest(name, OPTIMIZERS)}")


def set_schedule(optimizer: torch.optim.Optimizer, learning_rate: float, weight_decay: float) -> None:
    """Set this step's learning rate, and its weight decay where a group decays."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        group["weight_decay"] = weight_decay if group["decays"] else 0.0


def cosine(progress: float, start: float, end: float) -> float:
    """Half a cosine from `start` (progress 0) to `end` (progress 1)."""
    return end + (start - end) * (0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0)))


class Course(NamedTuple):
    """The course of the learning rate: a linear warm-up to the peak, then half a cosine down, or a step.

    Attributes:
        start: of the first step, relative to the peak, if there is a warm-up.
        end: where the cosine ends, relative to the peak; or the rate behind the step.
        after: how many steps after the last one it ends there.
        step: share of the training behind which the rate falls, all at once; None: a cosine.
    """

    start: float
    end: float
    after: int = 0
    step: float | None = None


COURSES: Mapping[str, Course] = MappingProxyType({
    "spark": Course(0.005, 0.001),
    "mae": Course(0.0, 0.0, after=1),
    "simmim": Course(0.005, 0.05),
    "simmim_steps": Course(0.005, 0.1, step=7 / 8),
})
"""By the name of the method that they come from. MAE's last step still has a learning rate."""


def learning_rate_at(step: int, total: int, warmup: int, peak: float, course: str = DEFAULT_COURSE) -> float:
    """Return the learning rate of a step, counted from 0."""
    start, end, after, fall = COURSES[course]
    if step < warmup:
        return peak * (start + (1 - start) * step / warmup)
    if fall is not None:
        return peak if step < fall * total else end * peak
    progress = (step - warmup) / max(total - 1 + after - warmup, 1)
    return cosine(progress, peak, end * peak)


def weight_decay_at(step: int, total: int, start: float, end: float) -> float:
    """Half a cosine from `start` at step 0 to `end` at the last step."""
    return cosine(step / max(total - 1, 1), start, end)
