"""A transposed convolution and the one after it, composed: the same values and gradients."""

import pytest
import torch
from torch import nn

from spark.methods.spark import upsample
from spark.methods.spark.upsample import compose_and_convolve, upsample_convolve


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 4, 1, 2), (3, 2, 1, 1), (1, 2, 7, 7)])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_composed_equals_one_after_the_other(shape: tuple[int, ...], format: torch.memory_format) -> None:
    torch.manual_seed(0)
    channels = shape[1]
    up = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1).double()
    conv = nn.Conv2d(channels, channels + 1, 3, padding=1, bias=False).double()
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=format).requires_grad_()
    wanted, found = conv(up(x)), compose_and_convolve(x, up, conv)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    weights = [x, *up.parameters(), *conv.parameters()]
    gradient = torch.randn_like(wanted)
    wanted_gradients = torch.autograd.grad(wanted, weights, gradient)
    found_gradients = torch.autograd.grad(found, weights, gradient)
    torch.testing.assert_close(found_gradients, wanted_gradients, rtol=1e-11, atol=1e-11)


def test_composed_only_where_it_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(upsample, "compose_and_convolve", lambda x, up, conv: calls.append(len(x)))
    up, conv = nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1), nn.Conv2d(8, 8, 3, padding=1, bias=False)
    enough = int(upsample.WORTH * upsample.COMPOSITION * 8 / upsample.SAVING)  # positions
    assert upsample_convolve(torch.zeros(1, 8, 3, 3), up, conv).shape == (1, 8, 6, 6)
    assert not calls
    upsample_convolve(torch.zeros(enough + 1, 8, 1, 1), up, conv)
    assert calls == [enough + 1]


def test_composed_in_bfloat16_autocast() -> None:
    torch.manual_seed(0)
    up, conv = nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False)
    x = torch.randn(2, 4, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        found = compose_and_convolve(x, up, conv)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), conv(up(x)), rtol=0.05, atol=0.02)
