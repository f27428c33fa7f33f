"""Windows of a map, and attention within them. Sides and shifts are one number, or two: rows, columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

APART = -100.0  # added to the logits of tokens that a cyclic shift put into one window; exp(-100) is nothing

Sides: TypeAlias = int | tuple[int, int]


def pair(sides: Sides) -> tuple[int, int]:
    """Return a number for rows, and one for columns."""
    return (sides, sides) if isinstance(sides, int) else (sides[0], sides[1])


def to_windows(x_BHWC: Tensor, window: Sides) -> Tensor:
    """Split a map [B, H, W, C] into windows, row by row: [B, windows, tokens of a window, C]."""
    height, width = pair(window)
    cells = x_BHWC.unflatten(2, (-1, width)).unflatten(1, (-1, height))
    return cells.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def from_windows(x_BnNC: Tensor, window: Sides, height: int, width: int) -> Tensor:
    """Put windows together again: [B, H, W, C]."""
    rows, columns = pair(window)
    cells = x_BnNC.unflatten(2, (rows, columns)).unflatten(1, (height // rows, width // columns))
    return cells.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def shifted(x_BHWC: Tensor, shift: Sides) -> Tensor:
    """Roll a map up and to the left, or back by a negative shift."""
    rows, columns = pair(shift)
    return x_BHWC.roll((-rows, -columns), (1, 2)) if rows or columns else x_BHWC


def apart(height: int, width: int, window: Sides, shift: Sides, like: Tensor) -> Tensor:
    """Return what is added to logits in windows of a shifted map: [windows, tokens, tokens].

    Tokens from different regions of the map, which the shift made neighbors, do not see each other.
    """
    sides = zip((height, width), pair(window), pair(shift), strict=True)
    row, column = (_regions(side, of_window, by, like.device) for side, of_window, by in sides)
    region = to_windows((row[:, None] * 3 + column)[None, :, :, None], window)[0, :, :, 0]
    return torch.where(region[:, None] == region[:, :, None], 0.0, APART).to(like.dtype)


def windowed_attention(
    x_BnNC: Tensor, qkv: torch.nn.Linear, heads: int, bias_BnhNN: Tensor, scale: float | None = None
) -> Tensor:
    """Attend within windows: [B, windows, tokens, width of all heads], before the output's projection.

    Args:
        x_BnNC: tokens.
        qkv: projects to queries, keys and values, in this order, heads inside.
        heads: number of heads.
        bias_BnhNN: added to logits: [B or 1, windows or 1, heads, tokens, tokens].
        scale: of products; None: one over the square root of a head's width.
    """
    return attend(*split(qkv(x_BnNC), heads), bias_BnhNN, scale)


def split(qkv_BnNC: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values: each [B, windows, heads, tokens, width of a head]."""
    q, k, v = qkv_BnNC.unflatten(-1, (3, heads, -1)).permute(3, 0, 1, 4, 2, 5)
    return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor, bias_BnhNN: Tensor, scale: float | None = None) -> Tensor:
    """Attend within windows: [B, windows, tokens, width of all heads]."""
    windows, heads = q.shape[1:3]
    # Windows are more heads: so a bias that all images share is never repeated for each.
    bias = bias_BnhNN.expand(-1, windows, -1, -1, -1).flatten(1, 2)
    y = functional.scaled_dot_product_attention(
        q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2), bias.to(q.dtype), scale=scale
    )
    return y.unflatten(1, (windows, heads)).transpose(2, 3).flatten(3)


def fitting(window: int, sides: Sequence[int]) -> tuple[int, bool]:
    """Return the window that a map has, and whether windows can be shifted: not where one spans the map."""
    return (window, True) if min(sides) > window else (min(sides), False)


def _regions(side: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Number the regions along an axis: before the last window, its part that was there, what came round."""
    place = torch.arange(side, device=device)
    return (place >= side - window).long() + (place >= side - shift).long()
