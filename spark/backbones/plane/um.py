"""UM-MAE's own networks as plane encoders."""

from __future__ import annotations

from torch import Tensor

from spark.backbones.plane.encoder import Latent, PlaneEncoder
from spark.backbones.plane.geometry import Layout
from spark.backbones.plane.um_network import STRIDE, UMNetwork


class UMPlane(PlaneEncoder):
    """They are made for it."""

    def __init__(self, network: UMNetwork) -> None:
        self.network = network
        self.stride, self.total_stride = STRIDE, STRIDE << (len(network.widths) - 1)
        self.stem_width, self.width = network.widths[0], network.widths[-1]

    def embed(self, images_BCHW: Tensor) -> Tensor:
        """Return the stem's tokens."""
        return self.network.embed(images_BCHW)

    def stem_norm(self, x_BHWC: Tensor) -> Tensor:
        """Normalize them."""
        return self.network.stem_norm(x_BHWC)

    def body(self, x_BHWC: Tensor, layout: Layout) -> Latent:
        """Return the last stage's tokens."""
        tokens = self.network.norm(self.network.stages(x_BHWC, layout)[-1])
        return Latent(tokens, tokens.new_zeros(len(tokens), 0, self.width))

    def check_size(self, height: int, width: int, cell: int, patch: int = 1) -> None:
        """Make sure that windows fit the plane."""
        self.network.check_plane(height // cell, width // cell, cell)

    def prepare(self) -> None:
        """Fix the table of positions, where there is one."""
        self.network.freeze_positions()
