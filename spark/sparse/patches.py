"""Patches of a dense map as a batch, and back: each operation is the other's backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def patches_per_image(mask: Tensor) -> int:
    """Return how many patches a mask [B, 1, rows, columns] shows of each image.

    Raises:
        ValueError: the number differs between images.
    """
    counts = set(mask.flatten(1).sum(1).tolist())
    if len(counts) != 1:
        raise ValueError(f"a mask must show the same number of patches of every image, not {sorted(counts)}")
    return counts.pop()


def patch_ids(mask: Tensor, per_image: int) -> Tensor:
    """Return which patches a mask [B, 1, rows, columns] shows: [B * per_image], in order.

    They are indices into all B * rows * columns patches of the batch.
    """
    # A stable sort instead of nonzero(): the shape of its result does not depend on the mask's values.
    flat_BL = mask.flatten(1)
    shown_first_BL = flat_BL.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    first_B1 = torch.arange(len(flat_BL), device=mask.device)[:, None] * flat_BL.shape[1]
    return (shown_first_BL[:, :per_image] + first_B1).flatten()


def take_patches(x_BCHW: Tensor, ids_N: Tensor, rows: int, columns: int) -> Tensor:
    """Return the named patches of a map of rows x columns patches: [N, C, H / rows, W / columns], channels last."""
    return _Take.apply(x_BCHW, ids_N, rows, columns)


def put_patches(x_NChw: Tensor, ids_N: Tensor, images: int, rows: int, columns: int) -> Tensor:
    """Return a map [images, C, rows * h, columns * w], channels last, that is zero outside the named patches."""
    return _Put.apply(x_NChw, ids_N, images, rows, columns)


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, ids_N: Tensor, rows: int, columns: int) -> Tensor:
        ctx.save_for_backward(ids_N)
        ctx.shape = len(x_BCHW), rows, columns
        return _take(x_BCHW, ids_N, rows, columns)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _put(grads[0], *ctx.saved_tensors, *ctx.shape), None, None, None


class _Put(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NChw: Tensor, ids_N: Tensor, images: int, rows: int, columns: int) -> Tensor:
        ctx.save_for_backward(ids_N)
        ctx.shape = rows, columns
        return _put(x_NChw, ids_N, images, rows, columns)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        return _take(grads[0], *ctx.saved_tensors, *ctx.shape), None, None, None, None


def copy_patches(x_BCHW: Tensor, ids_N: Tensor, rows: int, columns: int) -> Tensor:
    """Return the named patches, channels last in shape: [N, h, w, C], not a view of anything."""
    return _grid(x_BCHW, rows, columns)[_locate(ids_N, rows, columns)]


def _take(x_BCHW: Tensor, ids_N: Tensor, rows: int, columns: int) -> Tensor:
    return copy_patches(x_BCHW, ids_N, rows, columns).permute(0, 3, 1, 2)


def _put(x_NChw: Tensor, ids_N: Tensor, images: int, rows: int, columns: int) -> Tensor:
    _, channels, h, w = x_NChw.shape
    y_BCHW = x_NChw.new_zeros(images, rows * h, columns * w, channels).permute(0, 3, 1, 2)
    _grid(y_BCHW, rows, columns)[_locate(ids_N, rows, columns)] = x_NChw.permute(0, 2, 3, 1)
    return y_BCHW


def _grid(x_BCHW: Tensor, rows: int, columns: int) -> Tensor:
    """View a map as its patches: [B, rows, columns, h, w, C]."""
    return x_BCHW.unflatten(3, (columns, -1)).unflatten(2, (rows, -1)).permute(0, 2, 4, 3, 5, 1)


def _locate(ids_N: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    return ids_N // (rows * columns), ids_N // columns % rows, ids_N % columns
