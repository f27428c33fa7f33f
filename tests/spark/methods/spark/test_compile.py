"""torch.compile: one graph each for encoder, decoder and loss, whatever the mask, and equal numbers."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo.testing

from spark.masking import random_mask
from spark.methods.spark.model import SparK


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled_and_not(name: str, **options: Any) -> tuple[SparK, SparK]:
    """Return two equal models, the second compiled without graph breaks (`fullgraph` raises at the first)."""
    models = []
    for _ in range(2):
        models.append(SparK(name, decoder_width=32, engine="compact").to(memory_format=torch.channels_last))
    models[1].load_state_dict(models[0].state_dict())
    models[1].compile(fullgraph=True, **options)
    return models[0], models[1]


def compare(plain: SparK, compiled: SparK, steps: int) -> None:
    """Compare losses and gradients under one mask after another."""
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(2, 3, 64, 96, generator=generator).contiguous(memory_format=torch.channels_last)
        mask = random_mask(2, (2, 3), 0.6, generator)
        losses, gradients = [], []
        for model in (plain, compiled):
            model.zero_grad()
            loss = model(images, mask).loss
            loss.backward()
            losses.append(loss.detach())
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
        assert (gradients[1] - gradients[0]).norm() < 2e-3 * gradients[0].norm()


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
def test_one_graph_for_every_mask(name: str) -> None:
    """The graph's capture and its derivative, without the minutes that code generation takes."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    plain, compiled = compiled_and_not(name, backend=counter)
    compare(plain, compiled, steps=3)
    assert counter.frame_count == 3  # encoder, decoder, loss; nothing is compiled again for another mask


@pytest.mark.slow
def test_generated_code_gives_the_same() -> None:
    compare(*compiled_and_not("resnet10t"), steps=2)
