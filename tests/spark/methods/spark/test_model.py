"""SparK's loss is taken on masked patches, its pictures show the visible ones."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from spark.backbones.timm_pyramid import build_pyramid
from spark.errors import UserError
from spark.masking import random_mask
from spark.methods.base import Output
from spark.methods.spark.model import SparK
from spark.methods.targets import normalize_patches
from spark.sparse.patches import put_patches, take_patches
from spark.visualize.grid import GRAY, reconstruction_grid


@pytest.fixture(scope="module")
def model() -> SparK:
    torch.manual_seed(0)
    return SparK("resnet18", decoder_width=32)


def batch(height: int = 96, width: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, height, width, generator=generator)
    return images, random_mask(2, (height // 32, width // 32), 0.6, generator)


def pixels(mask: Tensor) -> Tensor:
    return mask.repeat_interleave(32, 2).repeat_interleave(32, 3)


def naive_loss(prediction: Tensor, images: Tensor, mask: Tensor) -> float:
    """The paper's loss, patch by patch."""
    losses = []
    for image in range(len(images)):
        for row, column in np.ndindex(*mask.shape[-2:]):
            if mask[image, 0, row, column]:
                continue
            window = np.s_[:, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
            target = images[image].double().numpy()[window]
            target = (target - target.mean()) / np.sqrt(target.var(ddof=1) + 1e-6)
            losses.append(((prediction[image].detach().double().numpy()[window] - target) ** 2).mean())
    return float(np.mean(losses))


@pytest.mark.parametrize("size", [(96, 64), (64, 128), (96, 96)])
def test_the_loss_is_the_papers_formula(model: SparK, size: tuple[int, int]) -> None:
    images, mask = batch(*size)
    images[0] = 0.5 + 0.01 * images[0]  # a patch of little contrast counts like any other
    output = model(images, mask)
    assert output.prediction.shape == images.shape
    assert output.loss.item() == pytest.approx(naive_loss(output.prediction, images, mask), rel=1e-5)


def test_the_loss_looks_at_masked_patches_only(model: SparK, monkeypatch: pytest.MonkeyPatch) -> None:
    images, mask = batch()
    before = model(images, mask)
    changed = {}
    for where, there in (("visible", pixels(mask)), ("masked", ~pixels(mask))):
        drawing = before.prediction + 5 * there
        with monkeypatch.context() as patch:
            patch.setattr(model.decoder, "forward", lambda maps, drawing=drawing: drawing)
            changed[where] = model(images, mask).loss.item()
    assert changed["visible"] == pytest.approx(before.loss.item(), rel=1e-6)
    assert changed["masked"] > before.loss.item() + 20


def test_a_gradient_reaches_everything_but_the_unused(model: SparK) -> None:
    twin = copy.deepcopy(model)
    twin(*batch()).loss.backward()
    lacking = [name for name, p in twin.named_parameters() if p.requires_grad and p.grad is None]
    assert not lacking


def test_masked_pixels_do_not_change_the_prediction(model: SparK) -> None:
    twin = copy.deepcopy(model).eval()
    images, mask = batch()
    with torch.no_grad():
        first = twin(images, mask).prediction
        second = twin(images + 7 * ~pixels(mask), mask).prediction
    assert first.equal(second)


def test_visible_patches_are_pasted_into_the_reconstruction(model: SparK) -> None:
    images, mask = batch()
    output = model(images, mask)
    picture = model.reconstruct(images, output)
    shown = pixels(mask).expand_as(images)
    assert picture[shown].equal(images[shown])
    assert not torch.isclose(picture[~shown], images[~shown]).all()


def test_a_perfect_prediction_reconstructs_the_image(model: SparK) -> None:
    images, mask = batch()
    every, grid = torch.arange(2 * 3 * 2), (3, 2)
    target, _, _ = normalize_patches(take_patches(images, every, *grid))
    prediction = put_patches(target, every, 2, *grid)
    output = Output(torch.zeros(()), prediction, mask)
    torch.testing.assert_close(model.reconstruct(images, output), images, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(100, 96), (96, 100)])
def test_a_size_that_the_stride_does_not_divide_is_refused(model: SparK, size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=r"not divisible by the encoder's stride 32; use e.g. 96x96"):
        model(torch.zeros(1, 3, *size))


def test_without_a_mask_one_is_drawn(model: SparK) -> None:
    torch.manual_seed(3)
    first = model(batch()[0]).mask
    torch.manual_seed(3)
    assert model(batch()[0]).mask.equal(first)
    assert (first.flatten(1).sum(1) == 2).all()


def test_other_numbers_of_channels_work() -> None:
    gray = SparK(build_pyramid("resnet18", in_chans=1), decoder_width=32)
    output = gray(torch.randn(2, 1, 64, 64))
    assert output.prediction.shape == (2, 1, 64, 64)
    assert output.loss.isfinite()


def test_a_picture_has_three_columns_and_leaves_the_model_as_it_was(model: SparK) -> None:
    images, mask = batch(64, 64)
    images = images.clamp(-1, 1)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert model.training
    picture = reconstruction_grid(model, images, mask, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert model.training
    assert all(tensor.equal(state[name]) for name, tensor in model.state_dict().items())
    assert picture.shape == (3, 2 * 68 + 4, 3 * 68 + 4)
    masked, drawn, original = (picture[:, 4:68, 4 + 68 * column : 68 + 68 * column] for column in range(3))
    shown = pixels(mask)[0].expand(3, 64, 64)
    torch.testing.assert_close(original, images[0] * 0.25 + 0.5)
    torch.testing.assert_close(masked, original.where(shown, torch.tensor(GRAY)))
    torch.testing.assert_close(drawn[shown], original[shown])
