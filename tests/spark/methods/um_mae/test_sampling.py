"""Masks of uniform sampling: one patch a cell, so many of them replaced."""

from __future__ import annotations

import pytest
import torch

from spark.methods.um_mae.sampling import draw


def masks(batch: int, side: int, cell: int = 2, secondary: float = 0.25, pool: bool = False) -> torch.Tensor:
    return draw(batch, (side, side), cell, secondary, pool, torch.Generator().manual_seed(3))


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize(("side", "cell"), [(16, 2), (14, 2), (12, 3)])
def test_every_cell_keeps_one_patch(side: int, cell: int, pool: bool) -> None:
    shown = masks(5, side, cell, pool=pool) != 0
    cells = shown.view(5, side // cell, cell, side // cell, cell).sum((2, 4))
    assert (cells == 1).all()


@pytest.mark.parametrize(("side", "replaced"), [(16, 16), (14, 13)])
def test_so_many_kept_patches_are_replaced(side: int, replaced: int) -> None:
    assert ((masks(4, side) == 2).sum((1, 2, 3)) == replaced).all()


def test_none_is_replaced_without_secondary_masking() -> None:
    assert (masks(4, 8, secondary=0.0) < 2).all()


def counts(pool: bool) -> torch.Tensor:
    """How often an image of 64 cells chooses the first place in a cell."""
    shown = masks(2000, 16, pool=pool) != 0
    return shown[:, 0, ::2, ::2].sum((1, 2)).double()


def test_a_pool_is_more_balanced_than_independent_draws() -> None:
    """From 128 choices, 32 of each: hypergeometric, variance 64 * 1/4 * 3/4 * 64/127; without: binomial."""
    independent, pooled = counts(False), counts(True)
    assert independent.mean() == pytest.approx(16, abs=0.3)
    assert pooled.mean() == pytest.approx(16, abs=0.3)
    assert independent.var() == pytest.approx(12, rel=0.15)
    assert pooled.var() == pytest.approx(12 * 64 / 127, rel=0.15)


def test_a_seed_is_a_mask() -> None:
    assert torch.equal(masks(3, 8), masks(3, 8))
