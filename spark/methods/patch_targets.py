"""Patches as methods that decode tokens predict them: their pixels, row, column, channel, perhaps normalized."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spark.errors import UserError
from spark.masking import enlarge
from spark.methods.targets import EPSILON


class Patches(NamedTuple):
    """How patches of images are predicted.

    Attributes:
        size: side in pixels.
        channels: of the images.
        normalized: whether a target is normalized by its own mean and (unbiased) deviation.

    Shapes:
        B images of L = rows * columns patches, of which N are looked at in each; n values in a patch.
    """

    size: int
    channels: int
    normalized: bool

    @property
    def values(self) -> int:
        """Numbers in a patch."""
        return self.size**2 * self.channels

    @property
    def trivial_loss(self) -> float | None:
        """The mean square of targets that are normalized: variance 1, unbiased."""
        return 1 - 1 / self.values if self.normalized else None

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns; UserError if images are not whole patches."""
        if height % self.size or width % self.size:
            raise UserError(f"input size {height}x{width} is not divisible by mask.patch_size={self.size}")
        return height // self.size, width // self.size

    def take(self, images_BCHW: Tensor, places_BN: Tensor) -> Tensor:
        """Return the patches at places, counted along rows: [B, N, n]."""
        split = images_BCHW.unflatten(3, (-1, self.size)).unflatten(2, (-1, self.size))  # [B, C, rows, h, columns, w]
        flat_BLn = split.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        return flat_BLn.gather(1, places_BN[..., None].expand(-1, -1, self.values))

    def in_a_row(self, values_BNn: Tensor) -> Tensor:
        """Return patches side by side, as pictures of one row of them: [B, C, size, N * size]."""
        inner_BNhwC = values_BNn.unflatten(2, (self.size, self.size, self.channels))
        return inner_BNhwC.permute(0, 4, 2, 1, 3).flatten(3)

    def put(self, values_BNn: Tensor, places_BN: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return images of these patches, zero elsewhere: [B, C, H, W]."""
        flat_BLn = values_BNn.new_zeros(len(values_BNn), grid[0] * grid[1], self.values)
        flat_BLn = flat_BLn.scatter(1, places_BN[..., None].expand(-1, -1, self.values), values_BNn)
        split = flat_BLn.unflatten(2, (self.size, self.size, -1)).unflatten(1, grid)  # [B, rows, columns, h, w, C]
        return split.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

    def target(self, images_BCHW: Tensor, places_BN: Tensor) -> Tensor:
        """Return what is to be predicted: [B, N, n]."""
        patches = self.take(images_BCHW, places_BN)
        if not self.normalized:
            return patches
        variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
        return (patches - mean) / (variance + EPSILON).sqrt()

    def reconstruct(self, images_BCHW: Tensor, prediction_BCHW: Tensor, mask: Tensor) -> Tensor:
        """Return a prediction in the images' units, by their own patches' statistics, with what is visible pasted."""
        grid = self.grid(*images_BCHW.shape[-2:])
        every = torch.arange(grid[0] * grid[1], device=images_BCHW.device).expand(len(images_BCHW), -1)
        drawn = self.take(prediction_BCHW, every)
        if self.normalized:
            variance, mean = torch.var_mean(self.take(images_BCHW, every), dim=2, keepdim=True)
            drawn = drawn * (variance + EPSILON).sqrt() + mean
        return torch.where(enlarge(mask != 0, *images_BCHW.shape[-2:]), images_BCHW, self.put(drawn, every, grid))
