"""Masks show exactly the right number of patches, uniformly and independently."""

from __future__ import annotations

import pytest
import torch

from spark.errors import UserError
from spark.masking import random_mask, visible_count


@pytest.mark.parametrize(
    ("patches", "ratio", "visible"), [(49, 0.6, 20), (144, 0.75, 36), (16, 0.6, 6), (9, 0.6, 4), (6, 0.5, 3)]
)
def test_the_visible_count_is_rounded(patches: int, ratio: float, visible: int) -> None:
    assert visible_count(patches, ratio) == visible


@pytest.mark.parametrize(("patches", "ratio"), [(1, 0.6), (4, 0.9), (4, 0.1)])
def test_a_mask_that_hides_all_or_nothing_is_refused(patches: int, ratio: float) -> None:
    with pytest.raises(UserError, match=r"mask\.ratio"):
        visible_count(patches, ratio)


def test_every_image_shows_the_same_number_of_its_own_patches() -> None:
    mask = random_mask(64, (7, 5), 0.6, torch.Generator().manual_seed(0))
    assert mask.shape == (64, 1, 7, 5)
    assert mask.dtype == torch.bool
    assert (mask.flatten(1).sum(1) == 14).all()
    assert len(mask.flatten(1).unique(dim=0)) == 64


def test_patches_are_drawn_uniformly() -> None:
    mask = random_mask(20_000, (3, 3), 0.6, torch.Generator().manual_seed(0)).flatten(1).double()
    frequency = mask.mean(0)
    assert (frequency - 4 / 9).abs().max() < 0.015  # 4 standard deviations
    pairs = mask.T @ mask / len(mask)
    off_diagonal = pairs[~torch.eye(9, dtype=torch.bool)]
    assert (off_diagonal - 4 / 9 * 3 / 8).abs().max() < 0.015  # drawn without replacement


def test_a_seed_fixes_the_mask() -> None:
    first, again, other = (random_mask(4, (7, 7), 0.6, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)


def test_squares_of_patches_are_hidden_together() -> None:
    coarse = random_mask(4, (3, 2), 0.6, torch.Generator().manual_seed(0))
    fine = random_mask(4, (6, 4), 0.6, torch.Generator().manual_seed(0), square=2)
    assert fine.shape == (4, 1, 6, 4)
    assert fine.equal(coarse.repeat_interleave(2, 2).repeat_interleave(2, 3))
