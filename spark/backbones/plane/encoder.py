"""What masked modeling of transformers asks of a network, whatever its family.

    tokens = encoder.stem_norm(encoder.embed(pixels))     # some of them may be replaced before or after the norm
    latent = encoder.body(tokens, layout)                 # `layout` says where each one came from
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from torch import Tensor

from spark.backbones.plane.geometry import Layout


class Latent(NamedTuple):
    """What an encoder makes of tokens.

    Attributes:
        tokens: normalized, [B, height, width, C]; of the encoder's total stride.
        prefix: tokens without a place, such as a class token: [B, P, C]; P may be 0.
    """

    tokens: Tensor
    prefix: Tensor


class PlaneEncoder(ABC):
    """A view of a network, which keeps nothing of its own.

    Attributes:
        network: the network, with its own parameter names.
        stride: of the stem's tokens, in pixels.
        total_stride: of the last tokens.
        stem_width: channels of the stem's tokens.
        width: channels of the last ones.
    """

    network: Any
    stride: int
    total_stride: int
    stem_width: int
    width: int

    @abstractmethod
    def embed(self, images_BCHW: Tensor) -> Tensor:
        """Return the stem's tokens before its norm: [B, height, width, stem_width]."""

    @abstractmethod
    def stem_norm(self, x_BHWC: Tensor) -> Tensor:
        """Normalize the stem's tokens, where the network does."""

    @abstractmethod
    def body(self, x_BHWC: Tensor, layout: Layout) -> Latent:
        """Return what the network makes of the stem's tokens."""

    @abstractmethod
    def check_size(self, height: int, width: int, cell: int, patch: int = 1) -> None:
        """Make sure that images of a size can be masked in cells of so many patches a side, of so many pixels.

        Raises:
            UserError: they cannot; the message names a size that can.
        """

    def describe(self) -> list[str]:
        """Return lines for people on what is not exact on a plane; none where all is."""
        return []

    def prepare(self) -> None:
        """Initialize the network for pre-training, and fix what is not to be trained."""
