"""Which device to compute on, and in which precision."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from spark.errors import UserError


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" prefers a GPU.

    Raises:
        UserError: a GPU is asked for and none is there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but no CUDA device is visible; pass device=cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def choose_precision(precision: str, device: torch.device) -> str:
    """Return "float32" or "bfloat16"; "auto" takes bfloat16 on GPUs that have it, float32 elsewhere."""
    if precision != "auto":
        return precision
    # Not torch.cuda.is_bf16_supported(), which counts slow emulation too.
    capable = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bfloat16" if capable else "float32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return a context in which products are computed in "float32" or in "bfloat16"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
