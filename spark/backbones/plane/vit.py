"""timm's vision transformer as a plane encoder: order means nothing to it, so that a plane is any set of its tokens."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from spark.backbones.plane.encoder import Latent
from spark.backbones.plane.set_encoder import SetEncoder
from spark.backbones.plane.sincos import sincos_table
from spark.errors import UserError

TOKEN_STD = 0.02


class ViTPlane(SetEncoder):
    """Tokens with their entries of the position table, behind the class token."""

    def __init__(self, network: VisionTransformer) -> None:
        self.network = network
        self.stride = self.total_stride = network.patch_embed.patch_size[0]
        self.stem_width = self.width = network.embed_dim

    def embed(self, images_BCHW: Tensor) -> Tensor:
        """Return the patches' tokens."""
        return self.network.patch_embed.proj(images_BCHW).permute(0, 2, 3, 1)

    def stem_norm(self, x_BHWC: Tensor) -> Tensor:
        """Normalize them, where the network does."""
        return self.network.patch_embed.norm(x_BHWC)

    def attend(self, x_BNC: Tensor, places_BN: Tensor) -> Latent:
        """Return what becomes of any tokens [B, N, C], given their places along rows of the grid."""
        network = self.network
        prefix_C, places_C = self._tables()
        x_BNC = x_BNC + places_C[places_BN]
        prefix = [token for token in (network.cls_token, network.reg_token) if token is not None]
        if prefix:
            first = torch.cat(prefix, 1) + prefix_C
            x_BNC = torch.cat([first.expand(len(x_BNC), -1, -1), x_BNC], 1)
        x_BNC = network.norm_pre(network.pos_drop(x_BNC))
        for block in network.blocks:
            x_BNC = block(x_BNC)
        x_BNC = network.norm(x_BNC)
        count = network.num_prefix_tokens
        return Latent(x_BNC[:, count:], x_BNC[:, :count])

    def prepare(self) -> None:
        """Initialize as MAE does (arXiv 2111.06377): Xavier, and sines and cosines that stay."""
        network = self.network
        for layer in network.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        stem = network.patch_embed.proj
        nn.init.xavier_uniform_(stem.weight.view(len(stem.weight), -1))
        for token in (network.cls_token, network.reg_token):
            if token is not None:
                nn.init.normal_(token, std=TOKEN_STD)
        with torch.no_grad():
            prefix = network.pos_embed.shape[1] - self.grid[0] * self.grid[1]
            network.pos_embed.copy_(sincos_table(self.width, *self.grid, prefix=prefix)[None])
        network.pos_embed.requires_grad_(False)

    def check_size(self, height: int, width: int, cell: int, patch: int = 1) -> None:
        """Make sure that images have the grid of the position table."""
        if (height // self.stride, width // self.stride) != tuple(self.grid):
            made = "x".join(str(side * self.stride) for side in self.grid)
            raise UserError(f"the network's table of positions is for images of {made}, not {height}x{width}; leave "
                            "img_size out of model.options, or set it to data.input_size")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the table of positions."""
        return self.network.patch_embed.grid_size

    def _tables(self) -> tuple[Tensor, Tensor]:
        """Split the positions into those of the prefix (none: 0) and those of places [L, C]."""
        table = self.network.pos_embed[0]
        count = len(table) - self.grid[0] * self.grid[1]
        prefix = table[:count] if count else table.new_zeros(self.network.num_prefix_tokens, self.width)
        return prefix, table[count:]
