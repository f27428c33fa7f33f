"""A convolution of a map that is constant in its holes equals the dense one, values and gradients."""

import pytest
import torch
from torch import nn

from spark.masking import random_mask
from spark.methods.spark.densify import ENOUGH_CHANNELS, Densify
from spark.sparse.scatter_convolution import convolve_filled
from spark.sparse.state import VisiblePatches


@pytest.mark.parametrize("patch", [(1, 1), (2, 2), (4, 2)])
@pytest.mark.parametrize("mask_ratio", [0.25, 0.8])
def test_equals_the_dense_convolution(patch: tuple[int, int], mask_ratio: float) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = random_mask(2, (3, 2), mask_ratio, generator)
    visible = VisiblePatches()
    conv = nn.Conv2d(3, 4, 3, padding=1).double()
    fill = torch.randn(1, 3, 1, 1, dtype=torch.float64, generator=generator, requires_grad=True)
    with visible.use_mask(mask):
        shape = (len(visible.patch_ids), 3, *patch)
        x = torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)
        found = convolve_filled(x, fill, conv, visible)
        shown = visible.at(3 * patch[0], 2 * patch[1])
        wanted = conv(torch.where(shown, visible.put(x), fill))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    inputs = [x, fill, *conv.parameters()]
    gradient = torch.randn(wanted.shape, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, gradient), torch.autograd.grad(wanted, inputs, gradient),
        rtol=1e-11, atol=1e-11,
    )


def test_densify_takes_it_for_many_channels_and_gives_the_same() -> None:
    torch.manual_seed(0)
    mask = random_mask(2, (3, 3), 0.6)
    level = Densify(ENOUGH_CHANNELS, 8, kernel_size=3, norm=nn.BatchNorm2d)
    results = []
    for engine in ("compact", "masked"):
        visible = VisiblePatches()
        visible.engine = engine
        with visible.use_mask(mask):
            x = torch.randn(len(visible.patch_ids), ENOUGH_CHANNELS, 2, 2, generator=torch.Generator().manual_seed(1))
            level.norm.eval()
            results.append(level(x if engine == "compact" else visible.put(x), visible))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
