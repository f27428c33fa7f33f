"""Proof by numbers that converted weights mean the same in another library's network as in timm's."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

IMAGES, SIDE = 2, 64  # batch and pixels: the smallest at which a ResNet's last stage is more than a pixel


class Difference(NamedTuple):
    """How far outputs are apart: the largest over all of them."""

    absolute: float  # of one element
    relative: float  # l2 norm of an output's difference over that of the output


def difference(
    converted: Callable[[Tensor], Tensor | list[Tensor]],
    reference: Callable[[Tensor], Tensor | list[Tensor]],
    images: Tensor,
) -> Difference:
    """Compare what two networks make of the same images; infinite where shapes differ, or numbers are none."""
    with torch.inference_mode():
        outputs, expected = (_listed(network(images)) for network in (converted, reference))
    if [output.shape for output in outputs] != [output.shape for output in expected]:
        return Difference(torch.inf, torch.inf)
    pairs = list(zip(outputs, expected, strict=True))
    if not all(bool(output.isfinite().all()) for output in outputs):
        return Difference(torch.inf, torch.inf)
    return Difference(
        max(float((output - wanted).abs().max()) for output, wanted in pairs),
        max(float((output - wanted).norm() / wanted.norm()) for output, wanted in pairs),
    )


def random_images(channels: int = 3) -> Tensor:
    """Return random images of shape [IMAGES, channels, SIDE, SIDE], always the same."""
    return torch.randn(IMAGES, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def randomize_statistics(state: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Return the state with random statistics, and random scales and shifts, of all norms.

    A fresh network's statistics (0 and 1) would hide a norm that went to the wrong place. The scales count too: timm
    starts a block's last norm at zero, behind which any mistake would hide.
    """
    generator = torch.Generator().manual_seed(seed)
    randomized = dict(state)
    for key, tensor in state.items():
        if key.endswith("running_var"):
            randomized[key] = 1 + 0.5 * torch.rand(tensor.shape, generator=generator)
        elif tensor.ndim == 1:  # running mean, scale or shift
            randomized[key] = 0.3 * torch.randn(tensor.shape, generator=generator)
    return randomized


def _listed(output: Tensor | list[Tensor]) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)
