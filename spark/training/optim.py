"""Optimizers with parameter groups, and the schedules of learning rate and weight decay."""

from __future__ import annotations

import math

import timm.optim
import torch
from torch import nn

from spark.config.choices import OPTIMIZERS
from spark.errors import UserError, nearest


def decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to biases, norms, layer scales, gains and mask tokens.

    These have one number per channel, some with extra axes of length 1; so can the weights of convolutions.
    """
    one_per_channel = parameter.numel() == max(parameter.shape, default=1)
    return parameter.ndim > 1 and (name.endswith("weight") or not one_per_channel)


def parameter_groups(model: nn.Module) -> list[dict]:
    """Return two parameter groups, with and without weight decay, marked by the key `decays`."""
    groups: list[dict] = [{"params": [], "decays": True}, {"params": [], "decays": False}]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[0 if decayed(name, parameter) else 1]["params"].append(parameter)
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


def learning_rate_at(
    step: int, total: int, warmup: int, peak: float, start_factor: float = 0.005, end_factor: float = 0.001
) -> float:
    """Linear warm-up from `start_factor * peak`, then half a cosine down to `end_factor * peak`.

    `step` counts from 0; the last one, `total - 1`, gets the end value.
    """
    if step < warmup:
        return peak * (start_factor + (1 - start_factor) * step / warmup)
    progress = (step - warmup) / max(total - 1 - warmup, 1)
    return cosine(progress, peak, end_factor * peak)


def weight_decay_at(step: int, total: int, start: float, end: float) -> float:
    """Half a cosine from `start` at step 0 to `end` at the last step."""
    return cosine(step / max(total - 1, 1), start, end)
