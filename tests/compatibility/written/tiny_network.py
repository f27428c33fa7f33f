"""The own network of the runs in this folder: two maps, a few thousand parameters. Do not edit: its hash is recorded."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Tiny(nn.Module):
    """Strides 2 and 4, with batch norms."""

    channels = (4, 8)
    strides = (2, 4)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(4)
        self.act = nn.ReLU()
        self.conv2 = nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return both maps."""
        fine = self.act(self.norm1(self.conv1(x)))
        return [fine, self.norm2(self.conv2(fine))]

    def example(self) -> Tensor:
        """Return a small input."""
        return torch.zeros(1, 3, 16, 16)
