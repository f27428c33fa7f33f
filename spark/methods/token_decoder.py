"""The light transformer decoder over patches that UM-MAE and MAE share (arXiv 2111.06377, 2205.10063)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from spark.backbones.plane.encoder import Latent
from spark.backbones.plane.sincos import sincos_table

TOKEN_STD = 0.02


class TokenDecoder(nn.Module):
    """Predict the pixels of dropped patches from tokens of the kept ones.

    Args:
        in_width: of the encoder's tokens.
        grid: rows and columns of the patches of the images that it is mostly used at; it takes any.
        values: to predict of a patch: its pixels times channels.
        width: of the decoder's tokens.
        depth: blocks.
        heads: of each block.
        expand: patches, in each direction, that a token of the encoder stands for.

    Shapes:
        B images, V kept and M dropped patches, D the width.
    """

    positions: Tensor

    def __init__(
        self, in_width: int, grid: tuple[int, int], values: int, width: int, depth: int, heads: int, expand: int = 1,
    ) -> None:
        super().__init__()
        self.width, self.expand, self._grid = width, expand, grid
        self.recompute = False
        self.embed = nn.Linear(in_width, expand**2 * width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.ModuleList(Block(width, heads, qkv_bias=True, norm_layer=norm) for _ in range(depth))
        self.norm = norm(width)
        self.pred = nn.Linear(width, values)
        self.register_buffer("positions", sincos_table(width, *grid), persistent=False)
        self.apply(_initialize)
        nn.init.normal_(self.mask_token, std=TOKEN_STD)

    def forward(self, latent: Latent, kept_BV: Tensor, dropped_BM: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return predictions of the dropped patches: [B, M, values].

        Args:
            latent: of the encoder; its tokens, expanded, are the kept patches along rows.
            kept_BV: the kept patches' places in the grid, in the order of the tokens.
            dropped_BM: of the dropped ones.
            grid: rows and columns.
        """
        return self.predict(self.tokens(latent, kept_BV, dropped_BM, grid, dropped_BM.shape[1]))

    def tokens(
        self, latent: Latent, kept_BV: Tensor, dropped_BM: Tensor, grid: tuple[int, int], last: int | None = None
    ) -> Tensor:
        """Return what the blocks make of [prefix, kept, dropped], or of so many last ones: [B, P + V + M, D]."""
        table = self.positions if grid == self._grid else sincos_table(self.width, *grid).to(self.positions)
        visible = self._expanded(latent.tokens) + functional.embedding(kept_BV, table)
        hidden = self.mask_token + functional.embedding(dropped_BM, table)
        x = torch.cat([self._prefix(latent.prefix), visible, hidden.to(visible.dtype)], 1)
        for block in self.blocks[:-1]:
            x = self._recomputed(block, x)
        return self._recomputed(partial(_last_block, self.blocks[-1], last), x)

    def predict(self, x_BND: Tensor) -> Tensor:
        """Return the pixels that tokens stand for: [B, N, values]; row, column, channel."""
        return self.pred(self.norm(x_BND))

    def _recomputed(self, block: Callable[[Tensor], Tensor], x_BND: Tensor) -> Tensor:
        """Apply a block, and keep its input only if it is to be computed a second time."""
        return checkpoint(block, x_BND, use_reentrant=False) if self.recompute and self.training else block(x_BND)

    def _prefix(self, x_BPC: Tensor) -> Tensor:
        """Embed tokens that have no place; they have no code of one either."""
        if x_BPC.shape[1] == 0:
            return x_BPC.new_zeros(len(x_BPC), 0, self.width)
        return self.embed(x_BPC)

    def _expanded(self, x_BHWC: Tensor) -> Tensor:
        """Return a token per patch: [B, V, D]; output c * e * e + e * row + column is that of (row, column)."""
        e = self.expand
        x_BHWDrc = self.embed(x_BHWC).unflatten(3, (self.width, e, e))
        return x_BHWDrc.permute(0, 1, 4, 2, 5, 3).flatten(3, 4).flatten(1, 2).flatten(1, 2)


def _last_block(block: Any, last: int | None, x_BND: Tensor) -> Tensor:
    """Apply a block where only so many last tokens are wanted of it: nobody else needs to go through its MLP."""
    x_BND = x_BND + block.attn(block.norm1(x_BND))
    if last is not None:
        x_BND = x_BND[:, -last:]
    return x_BND + block.mlp(block.norm2(x_BND))


def _initialize(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
