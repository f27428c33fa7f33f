"""Errors of what we compute, relative to reference numbers, and what all kinds of cases share."""

from __future__ import annotations

import math
import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spark.training.optim import set_schedule

Numbers = dict[str, Any]
"""What a golden file says of a tensor, or of a whole computation."""


def standard_normal(name: str, shape: Sequence[int]) -> Any:
    """Return the float32 numbers that a tensor's values are made of: they follow from its name."""
    random = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    return random.standard_normal(shape).astype(np.float32) if len(shape) else np.float32(0)


def random_images(seed: int, steps: int, shape: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    """Return the images of each step, of one random stream."""
    random = np.random.RandomState(seed)
    return [torch.from_numpy(random.standard_normal(shape).astype(np.float32)).to(dtype) for _ in range(steps)]


def patch_masks(shown: Any) -> list[Tensor]:
    """Return the masks [B, 1, side, side] of each step, of lists of 0 and 1 per step and image."""
    flat = torch.tensor(shown, dtype=torch.bool)
    side = math.isqrt(flat.shape[-1])
    return list(flat.view(*flat.shape[:2], 1, side, side))


def summary(tensor: Tensor) -> Numbers:
    """Reduce a tensor to what golden files hold of it."""
    values = tensor.detach().double().flatten()
    return {
        "shape": list(tensor.shape),
        "sum": values.sum().item(),
        "l2": values.norm().item(),
        "first": values[:3].tolist(),
    }


def summaries(tensors: Mapping[str, Tensor]) -> dict[str, Numbers]:
    """Summarise tensors by name."""
    return {name: summary(tensor) for name, tensor in tensors.items()}


def relative(values: Sequence[float], expected: Sequence[float]) -> float:
    """Return the largest relative error; NaN and a wrong number of values are infinitely wrong."""
    if len(values) != len(expected):
        return math.inf
    return worst(abs(v - e) / (abs(e) or 1.0) for v, e in zip(values, expected, strict=True))


def tensor_error(numbers: Numbers, expected: Numbers) -> float:
    """Return the largest error of a tensor's norm, sum and single values, relative to its l2 norm.

    A sum of n values is divided by sqrt(n) first: that much larger than the norm it may be.
    """
    if any(numbers[key] != expected.get(key, numbers[key]) for key in ("shape", "visible") if key in numbers):
        return math.inf
    norm = expected["l2"] or 1.0
    errors = [abs(numbers[key] - expected[key]) / norm for key in ("l2", "masked_l2") if key in expected]
    if "sum" in expected:
        scale = norm * max(math.sqrt(math.prod(numbers["shape"])), 1.0)
        errors.append(abs(numbers["sum"] - expected["sum"]) / scale)
    errors += [math.dist(numbers[key], expected[key]) / norm for key in ("first", "last") if key in expected]
    return worst(errors)


def dict_error(numbers: Mapping[str, Numbers], expected: Mapping[str, Numbers]) -> float:
    """Return the largest error over all expected tensors; one that we do not have is infinitely wrong."""
    missing = [name for name in expected if name not in numbers]
    if missing:
        print(f"  missing: {', '.join(missing[:5])}", file=sys.stderr)
        return math.inf
    return worst(tensor_error(numbers[name], wanted) for name, wanted in expected.items())


def worst(errors: Iterable[float]) -> float:
    """Return the maximum, where NaN counts as infinite."""
    return max((math.inf if math.isnan(error) else error for error in errors), default=0.0)


def take_steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, settings: Numbers, images: Sequence[Tensor],
    masks: Sequence[Tensor],
) -> tuple[list[float], list[float]]:
    """Train a model for a case's steps; return the loss and the norm of the gradients of each."""
    losses, norms = [], []
    for image, mask, rate in zip(images, masks, settings["lr_per_step"], strict=True):
        set_schedule(optimizer, rate, settings["weight_decay"])
        optimizer.zero_grad()
        loss = model(image, mask).loss
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), math.inf).item())
        optimizer.step()
        losses.append(loss.item())
    return losses, norms
