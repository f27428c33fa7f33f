"""Recomputing blocks changes memory, and nothing else."""

import pytest
import torch
from torch import Tensor, nn

from spark.backbones.timm_pyramid import build_pyramid
from spark.backbones.tracing import blocks_of
from spark.errors import UserError
from spark.masking import random_mask
from spark.methods.spark.model import SparK
from spark.utils.memory import kept_for_backward


def step(model: SparK) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor], int]:
    """Return loss, gradients, buffers, and the bytes that the encoder keeps for its backward pass."""
    model.double().train()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 96, 96, dtype=torch.float64, generator=generator)
    mask = random_mask(2, (3, 3), 0.6, generator)
    torch.manual_seed(2)
    with kept_for_backward(model) as kept:
        loss = model(images, mask).loss
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, dict(model.named_buffers()), sum(kept.values())


@pytest.mark.parametrize("engine", ["compact", "masked"])
@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "efficientnet_b0"])
def test_equal_numbers_from_less_memory(name: str, engine: str) -> None:
    plain = SparK(build_pyramid(name, drop_path=0.3), decoder_width=32, engine=engine)
    recomputing = SparK(build_pyramid(name, drop_path=0.3), decoder_width=32, engine=engine)
    recomputing.load_state_dict(plain.state_dict())
    recomputing.checkpoint_activations()
    loss, gradients, buffers, kept = step(plain)
    loss_again, gradients_again, buffers_again, kept_again = step(recomputing)
    assert loss_again == loss
    torch.testing.assert_close(gradients_again, gradients, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(buffers_again, buffers, rtol=0, atol=0)
    assert kept_again < 0.8 * kept
    assert not recomputing.visible.active


def test_blocks_are_the_innermost_ones() -> None:
    assert blocks_of(SparK("resnet18").encoder.network) == [
        f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)
    ]
    assert all(".blocks." in path for path in blocks_of(SparK("convnext_atto").encoder.network))


def test_a_batch_norm_with_an_activation_is_no_block() -> None:
    """It is synchronised across processes by its class."""
    network = SparK("densenet121").encoder.network
    assert network.get_submodule("features.norm0").act
    assert not [path for path in blocks_of(network) if "norm" in path]


def test_a_network_without_blocks_says_so() -> None:
    model = SparK("resnet18")
    model.encoder = nn.Sequential(nn.Conv2d(3, 3, 1))
    with pytest.raises(UserError, match="not made of blocks"):
        model.checkpoint_activations()
