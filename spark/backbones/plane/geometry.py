"""Where the tokens of a picture came from: of a whole one, or of the kept patches of one, pushed together.

Uniform masking keeps one patch of every cell of k x k patches, so that the kept ones make a picture of 1/k the side,
the plane (UM-MAE, arXiv 2205.10063). Everything that depends on which ones follows from `Geometry.choice`; nothing here
looks at a mask but `Geometry.of`.

Legend of shapes: B images of rows x columns patches of `patch` pixels; cells of k x k of them; V cells, so V kept
patches and L - V dropped ones of L; tokens of a stride in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Positions(NamedTuple):
    """Where tokens came from, in whole units of which `per_token` make a token's side.

    Attributes:
        rows_columns: [B or 1, height, width, 2], int64; 1 where all images have the same.
        per_token: units of a token.
    """

    rows_columns: Tensor
    per_token: int


class Layout(Protocol):
    """What a network has to know of where its tokens came from."""

    @property
    def cell(self) -> int:
        """How many true patches a patch of the picture stands for, in each direction."""

    def positions(self, stride: int, height: int, width: int, device: torch.device) -> Positions:
        """Return where tokens of a stride came from, given a map of them."""

    def inside(self, stride: int) -> int:
        """Return how many tokens of a stride a side of what stays together has: a patch of a plane; 1 or more."""

    def reach(self, stride: int, window: int, shift: int) -> int:
        """Return the furthest true distance, in units of `positions`, in one direction within a window of tokens."""


@dataclass(frozen=True)
class Whole:
    """A picture whose tokens are where they seem to be."""

    cell: int = 1

    def positions(self, stride: int, height: int, width: int, device: torch.device) -> Positions:
        """Return the places in the map itself: [1, height, width, 2]."""
        axes = torch.arange(height, device=device), torch.arange(width, device=device)
        return Positions(torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)[None], 1)

    def inside(self, stride: int) -> int:
        """Return 1: all stays together."""
        return 1

    def reach(self, stride: int, window: int, shift: int) -> int:
        """Return the distance from one end of a window to the other."""
        return window - 1


@dataclass(frozen=True)
class Geometry:
    """Which patch of each cell is kept, in which cells it is replaced by a token, and all that follows.

    Attributes:
        choice: [B, rows / k, columns / k], int64: row * k + column of the kept patch within its cell.
        replaced: bool, likewise.
        cell: k.
        patch: side of a patch in pixels.
    """

    choice: Tensor
    replaced: Tensor
    cell: int
    patch: int

    @classmethod
    def of(cls, mask: Tensor, cell: int, patch: int) -> Geometry:
        """Read a mask [B, 1, rows, columns] that shows one patch of every cell: 0 dropped, 1 kept, 2 kept, replaced."""
        inner = mask[:, 0].unflatten(2, (-1, cell)).unflatten(1, (-1, cell)).transpose(2, 3).flatten(3)
        return cls((inner != 0).to(torch.uint8).argmax(-1), inner.amax(-1) == 2, cell, patch)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the whole picture's patches."""
        _, rows, columns = self.choice.shape
        return rows * self.cell, columns * self.cell

    @property
    def kept(self) -> Tensor:
        """Places of the kept patches among the picture's, counted along rows, in the order of cells: [B, V]."""
        _, columns = self.grid
        place = self._places()
        return (place[..., 0] * columns + place[..., 1]).flatten(1)

    @property
    def dropped(self) -> Tensor:
        """Places of the dropped patches, ascending: [B, L - V]."""
        kept = self.kept
        count = math.prod(self.grid)
        # A stable sort instead of nonzero(): the shape of its result does not depend on values.
        is_kept = torch.zeros(len(kept), count, dtype=torch.uint8, device=kept.device).scatter_(1, kept, 1)
        return is_kept.argsort(dim=1, stable=True)[:, : count - kept.shape[1]]

    def plane(self, x_BCHW: Tensor) -> Tensor:
        """Push the kept patches of a picture, or of a map of any stride that divides a patch, together.

        Returns:
            [B, C, H / k, W / k], contiguous channels last.
        """
        rows, columns = self.grid
        batch, height, width = len(x_BCHW), x_BCHW.shape[2] // rows, x_BCHW.shape[3] // columns
        cells = x_BCHW.unflatten(3, (columns // self.cell, self.cell, width))
        cells = cells.unflatten(2, (rows // self.cell, self.cell, height)).permute(0, 2, 5, 3, 6, 4, 7, 1)
        image = torch.arange(batch, device=x_BCHW.device)[:, None, None]
        row = torch.arange(rows // self.cell, device=x_BCHW.device)[:, None]
        column = torch.arange(columns // self.cell, device=x_BCHW.device)
        kept = cells[image, row, column, self.choice // self.cell, self.choice % self.cell]  # [B, row, column, h, w, C]
        return kept.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)

    def replaced_at(self, height: int, width: int) -> Tensor:
        """Return which tokens of a plane of height x width are replaced: bool [B, height, width]."""
        _, rows, columns = self.replaced.shape
        return self.replaced.repeat_interleave(height // rows, 1).repeat_interleave(width // columns, 2)

    def positions(self, stride: int, height: int, width: int, device: torch.device) -> Positions:
        """Return where the plane's tokens came from; one that covers several patches is where its first one is."""
        places = self._places()
        if stride > self.patch:  # the first of `step` x `step` patches
            step = stride // self.patch
            return Positions(places[:, ::step, ::step], step)
        inside = self.patch // stride
        first = (places * inside).repeat_interleave(inside, 1).repeat_interleave(inside, 2)
        within = Whole().positions(stride, height, width, device).rows_columns % inside
        return Positions(first + within, 1)

    def inside(self, stride: int) -> int:
        """Return the side of a patch in tokens of a stride; 1 where they are coarser."""
        return max(1, self.patch // stride)

    def reach(self, stride: int, window: int, shift: int) -> int:
        """Return the furthest distance, in units of `positions`."""
        if stride > self.patch:
            step = stride // self.patch
            return (window - 1) * step * self.cell + self.cell - 1
        inside = self.patch // stride
        aligned = window % inside == 0 and shift % inside == 0
        borders = window // inside - 1 if aligned else math.ceil((window - 1) / inside)  # between patches, in a window
        return window - 1 + inside * (self.cell - 1) * (borders + 1)

    def _places(self) -> Tensor:
        """Return rows and columns of the kept patches in the picture: [B, rows / k, columns / k, 2]."""
        _, rows, columns = self.choice.shape
        cells = Whole().positions(self.patch, rows, columns, self.choice.device).rows_columns
        return cells * self.cell + torch.stack([self.choice // self.cell, self.choice % self.cell], -1)
