"""A step of the optimizer: in parts, clipped, in mixed precision."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from d2_projects.engine.trainer import Trainer, mixed_precision
from d2_projects.options import Amp
from spark.errors import UserError
from spark.utils.distributed import Ranks

CPU = torch.device("cpu")


class Toy(nn.Module):
    """Has two losses, as a detector has several, each a mean over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.dtypes: list[torch.dtype] = []

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        out = self.layer(batch)
        self.dtypes.append(out.dtype)
        return {"loss_a": out[:, 0].float().square().mean(), "loss_b": out[:, 1].float().abs().mean()}


def step(model: nn.Module, batches: list[Tensor], **options: Any) -> tuple[dict[str, float], list[Tensor]]:
    """Return losses and change of the parameters of one iteration with plain gradient descent."""
    before = [parameter.detach().clone() for parameter in model.parameters()]
    trainer = Trainer(model, batches, torch.optim.SGD(model.parameters(), lr=1.0), Ranks(CPU),
                      accumulate=len(batches), **options)
    trainer.iter = 0
    with EventStorage(0) as storage:
        trainer.run_step()
        losses = {name: value for name, (value, _) in storage.latest().items() if name.endswith(("loss", "_a", "_b"))}
    return losses, [new.detach() - old for new, old in zip(model.parameters(), before, strict=True)]


@pytest.fixture
def model() -> Toy:
    torch.manual_seed(0)
    return Toy()


def test_parts_make_the_step_of_the_whole(model: Toy) -> None:
    batch = torch.randn(6, 4)
    whole_losses, whole = step(copy.deepcopy(model), [batch])
    losses, change = step(model, list(batch.chunk(3)))
    assert losses == pytest.approx(whole_losses)
    assert losses["total_loss"] == pytest.approx(losses["loss_a"] + losses["loss_b"])
    for ours, right in zip(change, whole, strict=True):
        torch.testing.assert_close(ours, right)


def test_gradients_are_clipped_by_their_norm_together(model: Toy) -> None:
    batch = 10 * torch.randn(6, 4)
    _, free = step(copy.deepcopy(model), [batch])
    _, clipped = step(model, [batch], clip_grad_norm=0.5)
    norm = torch.cat([each.flatten() for each in free]).norm()
    assert norm > 0.5
    for ours, right in zip(clipped, free, strict=True):
        torch.testing.assert_close(ours, right * 0.5 / norm, rtol=1e-4, atol=1e-6)


def test_layers_compute_in_mixed_precision(model: Toy) -> None:
    batch = torch.randn(6, 4)
    full, _ = step(copy.deepcopy(model), [batch])
    mixed, _ = step(model, [batch], dtype=torch.bfloat16)
    assert model.dtypes == [torch.bfloat16]
    assert model.layer.weight.dtype == torch.float32
    assert mixed["total_loss"] == pytest.approx(full["total_loss"], rel=0.05)
    assert mixed != full


def test_the_scaler_is_for_float16_alone(model: Toy) -> None:
    for dtype, wanted in ((None, False), (torch.bfloat16, False), (torch.float16, True)):
        trainer = Trainer(model, None, torch.optim.SGD(model.parameters(), lr=1.0), Ranks(CPU), dtype=dtype)
        assert trainer.grad_scaler.is_enabled() == wanted


def test_mixed_precision_without_a_gpu_is_refused() -> None:
    assert mixed_precision(Amp(), CPU) is None
    with pytest.raises(UserError, match="needs a CUDA device"):
        mixed_precision(Amp(enabled=True), CPU)


@pytest.mark.gpu
def test_mixed_precision_on_a_gpu(model: Toy) -> None:
    device = torch.device("cuda", 0)
    wanted = mixed_precision(Amp(enabled=True), device)
    model = model.to(device)
    trainer = Trainer(model, [torch.randn(6, 4, device=device)], torch.optim.SGD(model.parameters(), lr=0.1),
                      Ranks(device), dtype=wanted, clip_grad_norm=1.0)
    trainer.iter = 0
    with EventStorage(0) as storage:
        trainer.run_step()
        assert storage.latest()["total_loss"][0] > 0
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
