"""One of several ways to compute the same training step, for benchmarks to compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Variant:
    """How a method is built and run.

    Attributes:
        label: for people.
        build: makes the model from a run's configuration.
        memory_format: of images and weights.
        precision: of the multiplications, "float32" or "bfloat16" (autocast).
        foreach: whether the optimizer treats all tensors together instead of looping over them; None: torch's choice.
        compile: whether torch.compile translates it.
        baseline: whether it is only there to be compared with.
        own_weights: whether it begins with random weights of its own, as it has others than the first one.
    """

    label: str
    build: Callable[[Any], Any]
    memory_format: torch.memory_format = torch.channels_last
    precision: str = "float32"
    foreach: bool | None = None
    compile: bool = False
    baseline: bool = False
    own_weights: bool = False


def with_engine(build: Callable[[Any], Any], engine: str) -> Callable[[Any], Any]:
    """Return what builds a run's model with another engine than the run's."""
    return lambda config: build(dataclasses.replace(config, engine=engine))
