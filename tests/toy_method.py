"""A second pre-training method, as small as one can be: dense, without norms, hidden pixels are guessed from zeros."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from spark.backbones.timm_pyramid import build_pyramid, dense_part
from spark.config.pretrain import PretrainConfig
from spark.errors import UserError
from spark.masking import enlarge
from spark.methods.base import Method, Output


@dataclass
class ToyConfig(PretrainConfig):
    """Adds one key of its own, and has neither engine nor decoder."""

    hidden: int = 2  # of four patches

    def problems(self) -> list[str]:
        """Say what is wrong with the values."""
        return super().problems() + ([] if 0 < self.hidden < 4 else [f"hidden={self.hidden} must be 1, 2 or 3"])


class Toy(Method):
    """Predicts a constant color for each hidden patch of 32 pixels; hides whole cells of 2 x 2 patches alike."""

    name: ClassVar[str] = "toy"

    def __init__(self, network: str, hidden: int) -> None:
        super().__init__()
        self.encoder = build_pyramid(network)
        self.hidden, self.mask_ratio = hidden, hidden / 4
        self.head = nn.Conv2d(self.encoder.channels[-1], 3, 1)

    @classmethod
    def from_config(cls, config: ToyConfig) -> Toy:
        """Build the model of a run."""
        return cls(config.model.name, config.hidden)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns."""
        if height % 64 or width % 64:
            raise UserError(f"input size {height}x{width} is not made of cells of 64 pixels")
        return height // 32, width // 32

    def check_batch(self, images: int, grid: tuple[int, int], processes: int = 1) -> None:
        """Any batch will do."""

    def draw_mask(
        self, batch: int, grid: tuple[int, int], generator: torch.Generator | None = None,
        mask_ratio: float | None = None,
    ) -> Tensor:
        """Hide so many patches of the one cell; another is visible, but replaced by a token (2)."""
        order = torch.rand(batch, 4, generator=generator).argsort(1)
        mask = torch.ones(batch, 4, dtype=torch.uint8)
        mask.scatter_(1, order[:, : self.hidden], 0)
        mask.scatter_(1, order[:, self.hidden : self.hidden + 1], 2)
        return mask.view(batch, 1, 2, 2).repeat(1, 1, grid[0] // 2, grid[1] // 2)

    def encode(self, images: Tensor, mask: Tensor, per_image: int) -> list[Tensor]:
        """Encode what is visible."""
        return list(self.encoder(images * (enlarge(mask, *images.shape[-2:]) == 1)))

    def decode(self, features: list[Tensor], mask: Tensor, per_image: int) -> Tensor:
        """Return a color for each patch."""
        return functional.interpolate(self.head(features[-1]), scale_factor=32.0)

    def loss(self, prediction: Tensor, images: Tensor, mask: Tensor, per_image: int) -> Tensor:
        """Return the squared error of hidden pixels."""
        hidden = enlarge(mask, *images.shape[-2:]) == 0
        return ((prediction - images).square() * hidden).sum() / (3 * hidden.sum())

    def reconstruct(self, images: Tensor, output: Output) -> Tensor:
        """Return the colors, and what is visible."""
        return torch.where(enlarge(output.mask, *images.shape[-2:]) == 0, output.prediction, images)

    def encoder_state(self) -> dict[str, Tensor]:
        """Return timm's state."""
        return dense_part(self.encoder).state_dict()
