"""Plane encoders to which the order of tokens means nothing: any set of patches will do."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from spark.backbones.plane.encoder import Latent, PlaneEncoder
from spark.backbones.plane.geometry import Layout


class SetEncoder(PlaneEncoder):
    """A network whose tokens know where they are by tables of places; all of one stride."""

    @abstractmethod
    def attend(self, x_BNC: Tensor, places_BN: Tensor) -> Latent:
        """Return what becomes of the stem's tokens [B, N, C], given their places along rows of the whole grid."""

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the grid of whole images."""

    def body(self, x_BHWC: Tensor, layout: Layout) -> Latent:
        """Return the tokens behind the last norm."""
        height, width = x_BHWC.shape[1:3]
        places = layout.positions(self.stride, height, width, x_BHWC.device).rows_columns
        index_BN = (places[..., 0] * self.grid[1] + places[..., 1]).flatten(1)
        latent = self.attend(x_BHWC.flatten(1, 2), index_BN)
        return Latent(latent.tokens.unflatten(1, (height, width)), latent.prefix)
