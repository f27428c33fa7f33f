"""Which patches of an image the encoder sees (SparK, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spark.errors import UserError


def visible_count(patches: int, mask_ratio: float, rounding: Callable[[float], int] = round) -> int:
    """Return how many of an image's patches stay visible: `patches * (1 - mask_ratio)`, made whole by `rounding`.

    Raises:
        UserError: no patch would be visible, or none masked.
    """
    count = rounding(patches * (1 - mask_ratio))
    if not 0 < count < patches:
        raise UserError(
            f"mask ratio {mask_ratio} leaves {count} of {patches} patches visible; "
            "at least one must be visible and one masked: change mask.ratio or use larger images"
        )
    return count


def random_mask(
    batch: int,
    grid: tuple[int, int],
    mask_ratio: float,
    generator: torch.Generator | None = None,
    square: int = 1,
    rounding: Callable[[float], int] = round,
) -> Tensor:
    """Draw visible patches uniformly without replacement, independently per image.

    Args:
        batch: number of images.
        grid: patches of an image, down and across.
        mask_ratio: share of them that is hidden.
        generator: without one, the CPU's default generator.
        square: draw squares of so many by so many patches; it divides the grid.
        rounding: of the number of visible ones.

    Returns:
        Boolean tensor [batch, 1, grid_height, grid_width] on the CPU, True where a patch is visible; every
        image has exactly `visible_count` patches, or squares, of them.
    """
    height, width = grid[0] // square, grid[1] // square
    count = visible_count(height * width, mask_ratio, rounding)
    order = torch.rand(batch, height * width, generator=generator).argsort(dim=1)
    mask = torch.zeros(batch, height * width, dtype=torch.bool)
    mask.scatter_(1, order[:, :count], True)
    return enlarge(mask.view(batch, 1, height, width), height * square, width * square)


def enlarge(mask: Tensor, height: int, width: int) -> Tensor:
    """Return a mask [B, 1, rows, columns] at another resolution, multiples of the two: [B, 1, height, width]."""
    rows, columns = mask.shape[-2:]
    return mask.repeat_interleave(height // rows, 2).repeat_interleave(width // columns, 3)
