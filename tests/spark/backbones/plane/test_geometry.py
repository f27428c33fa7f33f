"""One object says where tokens came from, at any stride, for any cell and any shape of picture."""

from __future__ import annotations

import pytest
import torch

from spark.backbones.plane.geometry import Geometry, Whole
from spark.backbones.plane.windows import apart, shifted, to_windows
from spark.methods.um_mae.sampling import draw

PATCH = 16


def geometry(rows: int = 8, columns: int = 12, cell: int = 2, secondary: float = 0.25) -> tuple[Geometry, torch.Tensor]:
    mask = draw(3, (rows, columns), cell, secondary, pool=False, generator=torch.Generator().manual_seed(0))
    return Geometry.of(mask, cell, PATCH), mask


@pytest.mark.parametrize("cell", [2, 3])
def test_kept_and_dropped_patches_are_those_of_the_mask(cell: int) -> None:
    where, mask = geometry(12, 6, cell)
    for image in range(3):
        flat = mask[image].flatten()
        assert sorted(where.kept[image].tolist()) == (flat != 0).nonzero().flatten().tolist()
        assert where.dropped[image].tolist() == (flat == 0).nonzero().flatten().tolist()
        assert torch.equal(flat[where.kept[image]] == 2, where.replaced[image].flatten())


@pytest.mark.parametrize(("stride", "cell"), [(4, 2), (8, 2), (16, 2), (4, 3), (16, 3)])
def test_a_tokens_position_is_where_its_pixels_were(stride: int, cell: int) -> None:
    where, _ = geometry(12, 6, cell)
    height, width = 12 * PATCH // stride, 6 * PATCH // stride
    place = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    plane = where.plane(place.expand(3, -1, -1, -1))
    positions = where.positions(stride, height // cell, width // cell, plane.device)
    assert positions.per_token == 1
    assert torch.equal(positions.rows_columns, plane.permute(0, 2, 3, 1))


def test_a_token_that_covers_four_patches_is_where_its_first_one_is() -> None:
    where, _ = geometry()
    positions = where.positions(32, 2, 3, where.choice.device)
    assert positions.per_token == 2
    patches = where.positions(16, 4, 6, where.choice.device).rows_columns
    assert torch.equal(positions.rows_columns, patches[:, ::2, ::2])


@pytest.mark.parametrize(("stride", "window"), [(4, 8), (4, 4), (4, 2), (8, 8), (8, 4), (16, 4), (32, 2)])
@pytest.mark.parametrize("shifts", [False, True])
def test_no_offset_is_further_than_the_reach(stride: int, window: int, shifts: bool) -> None:
    where, _ = geometry(16, 16)
    side = 8 * PATCH // stride
    shift = window // 2 if shifts and window < side else 0
    windows = to_windows(shifted(where.positions(stride, side, side, where.choice.device).rows_columns, shift), window)
    offset = (windows[:, :, None] - windows[:, :, :, None]).abs().amax(-1)
    together = apart(side, side, window, shift, torch.zeros(())) == 0
    assert (offset * together).max() <= where.reach(stride, window, shift)


def test_windows_that_hold_whole_patches_reach_no_further_than_twice_their_side() -> None:
    where, _ = geometry(16, 16)
    assert [where.reach(stride, 8, 4) for stride in (4, 8, 16)] == [15, 15, 15]
    assert Whole().reach(4, 16, 8) == 15


def test_a_whole_pictures_tokens_are_where_they_seem_to_be() -> None:
    positions = Whole().positions(4, 2, 3, torch.device("cpu"))
    assert positions.rows_columns.tolist() == [[[[0, 0], [0, 1], [0, 2]], [[1, 0], [1, 1], [1, 2]]]]


def test_replaced_patches_cover_all_of_their_tokens() -> None:
    where, _ = geometry()
    tokens = where.replaced_at(16, 24)
    assert torch.equal(tokens[:, ::4, ::4], where.replaced)
    assert tokens.sum() == 16 * where.replaced.sum()
