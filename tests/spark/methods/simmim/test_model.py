"""SimMIM: a token stands where pixels are hidden, and the loss is of these."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from spark.errors import UserError
from spark.masking import enlarge
from spark.methods.registry import build_method, default_config
from spark.training.optim import learning_rate_at

UM_SWIN = {"depths": [1, 1, 1, 1], "embed_dim": 16, "num_heads": [1, 1, 2, 2], "window_size": 8}
SWIN = {"depths": [1, 1, 1, 1], "embed_dim": 16, "num_heads": [1, 1, 2, 2], "window_size": 4}
PVT = {"depths": [1, 1, 1, 1], "embed_dims": [8, 16, 16, 32], "num_heads": [1, 1, 2, 2], "mlp_ratios": [2, 2, 2, 2]}
VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2}
NETWORKS = [
    ("um_swin_tiny", UM_SWIN), ("um_pvt_small", PVT), ("swin_tiny_patch4_window7_224", SWIN),
    ("vit_tiny_patch16_224", VIT),
]  # fmt: skip


def model(name: str = "um_swin_tiny", options: dict[str, Any] = UM_SWIN, **values: Any) -> Any:
    torch.manual_seed(0)
    chosen = {"data.input_size": [128, 64], "model.options": options, **values}
    return build_method(default_config("simmim", name, chosen)).double()


@pytest.mark.parametrize(("name", "options"), NETWORKS)
def test_hidden_pixels_change_nothing_but_the_target(name: str, options: dict[str, Any]) -> None:
    method = model(name, options)
    images = torch.rand(2, 3, 128, 64, dtype=torch.float64)
    mask = method.draw_mask(2, method.grid(128, 64))
    shown = enlarge(mask != 0, 128, 64)
    before, after = method(images, mask), method(torch.where(shown, images, torch.rand_like(images)), mask)
    assert torch.equal(before.features[0], after.features[0])
    hidden = ~shown.expand_as(images)
    torch.testing.assert_close(before.loss, (before.prediction - images).abs()[hidden].mean())
    assert before.loss != after.loss


@pytest.mark.parametrize(("name", "options"), NETWORKS)
def test_with_all_visible_the_network_sees_the_picture(name: str, options: dict[str, Any]) -> None:
    method = model(name, options)
    images = torch.rand(1, 3, 128, 64, dtype=torch.float64)
    tokens, _ = method.encode(images, torch.ones(1, 1, *method.grid(128, 64), dtype=torch.uint8), 0)
    right = method.encoder.network.forward_features(images)
    torch.testing.assert_close(tokens, right if right.ndim == 4 else right[:, 1:].unflatten(1, (8, 4)))


@pytest.mark.parametrize(("reading", "hidden", "decays"), [("official", 22, False), ("um", 21, True)])
def test_readings_round_and_decay_as_their_originals(reading: str, hidden: int, decays: bool) -> None:
    method = model(reading=reading)
    assert (method.draw_mask(1, (6, 6)) == 0).sum() == hidden
    assert method.decayed("mask_token", method.mask_token) is decays


def test_courses_of_the_learning_rate() -> None:
    cosine = [learning_rate_at(step, 100, 10, 1.0, "simmim") for step in range(100)]
    assert (cosine[0], cosine[10], cosine[-1]) == pytest.approx((0.005, 1, 0.05))
    stepped = [learning_rate_at(step, 800, 10, 1.0, "simmim_steps") for step in range(800)]
    assert (stepped[0], stepped[10], stepped[699], stepped[700], stepped[-1]) == (0.005, 1, 1, 0.1, 0.1)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"data.input_size": [96, 80]},
         "96x80 is not divisible by 32, of the network's stride and mask.patch_size; use e.g. 96x64"),
        ({"mask.patch_size": 6}, "mask.patch_size=6 must be a multiple of the stem's stride 4"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        model(**values)


def test_a_reading_that_is_none_is_named() -> None:
    (problem,) = default_config("simmim", "um_swin_tiny", {"reading": "officia"}).problems()
    assert "is not one of official, um. Did you mean official?" in problem
