"""UM-MAE: what is dropped or replaced is seen nowhere, what is kept is where it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from spark.backbones.timm_pyramid import build_sized
from spark.errors import UserError
from spark.masking import enlarge
from spark.methods.registry import build_method, default_config
from spark.methods.um_mae.model import UMMAE

SWIN = {"depths": [1, 1, 2, 1], "embed_dim": 16, "num_heads": [1, 1, 2, 2], "window_size": 8}
PVT = {"depths": [1, 1, 1, 1], "embed_dims": [8, 16, 16, 32], "num_heads": [1, 1, 2, 2], "mlp_ratios": [2, 2, 2, 2]}
VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2}
NETWORKS = [("um_swin_tiny", SWIN), ("um_pvt_small", PVT), ("vit_tiny_patch16_224", VIT)]


def model(name: str = "um_swin_tiny", options: dict[str, Any] = SWIN, size: tuple[int, int] = (128, 256), **more: Any):
    torch.manual_seed(0)
    return UMMAE(build_sized(name, size, 3, 0.0, options), size, decoder=(32, 1, 2), **more).double()


def batch(method: UMMAE, size: tuple[int, int] = (128, 256)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, *size, dtype=torch.float64, generator=generator)
    return images, method.draw_mask(2, method.grid(*size), generator)


@pytest.mark.parametrize(("name", "options"), NETWORKS)
def test_what_is_not_seen_changes_nothing_but_the_target(name: str, options: dict[str, Any]) -> None:
    method = model(name, options)
    images, mask = batch(method)
    noise = torch.rand_like(images)
    seen = enlarge(mask == 1, *images.shape[-2:])
    before, after = method(images, mask), method(torch.where(seen, images, noise), mask)
    for old, new in zip([*before.features, before.prediction], [*after.features, after.prediction], strict=True):
        assert torch.equal(old, new)
    assert before.loss != after.loss
    replaced = enlarge(mask == 2, *images.shape[-2:])
    assert method(torch.where(replaced, noise, images), mask).loss == before.loss


@pytest.mark.parametrize(("name", "options"), NETWORKS)
def test_the_same_pixels_elsewhere_are_something_else(name: str, options: dict[str, Any]) -> None:
    method = model(name, options)
    images, mask = batch(method)
    moved = mask.unflatten(3, (8, 2)).flip(-1).flatten(3)  # the other column of every cell
    cells = images.unflatten(3, (8, 2, 16)).flip(-2).flatten(3)
    first, second = method(images, mask), method(cells, moved)
    assert not torch.allclose(first.features[0], second.features[0])


@pytest.mark.parametrize(("name", "options"), NETWORKS)
def test_every_trained_tensor_gets_a_gradient(name: str, options: dict[str, Any]) -> None:
    method = model(name, options)
    method(*batch(method)).loss.backward()
    without = [key for key, value in method.named_parameters() if value.requires_grad and value.grad is None]
    assert not without
    fixed = [key for key, value in method.named_parameters() if not value.requires_grad]
    assert fixed == ([] if name == "um_swin_tiny" else ["encoder.network.pos_embed"])


@pytest.mark.parametrize("cell", [2, 3])
def test_cells_of_any_side(cell: int) -> None:
    method = model(options=SWIN | {"window_size": 4 * cell}, size=(64 * cell, 64 * cell), mask_ratio=1 - 1 / cell**2)
    output = method(*batch(method, (64 * cell, 64 * cell)))
    assert output.features[0].shape == (2, 2, 2, 128)
    assert torch.isfinite(output.loss)


def test_the_loss_is_of_dropped_patches_alone() -> None:
    method = model(normalize_targets=False)
    images, mask = batch(method)
    output = method(images, mask)
    dropped = enlarge(mask == 0, *images.shape[-2:]).expand_as(images)
    error = (output.prediction - images).square()[dropped].mean()
    torch.testing.assert_close(output.loss, error)
    assert (output.prediction[~dropped] == 0).all()
    shown = method.reconstruct(images, output)
    torch.testing.assert_close(shown, torch.where(dropped, output.prediction, images))


def test_legacy_positions_are_those_of_a_sorted_list_and_touch_pyramids_only() -> None:
    for name, options, same in ((*NETWORKS[0], False), (*NETWORKS[2], True)):
        own, legacy = model(name, options), model(name, options, legacy_positions=True)
        legacy.load_state_dict(own.state_dict())
        images, mask = batch(own)
        assert own(images, mask).loss.equal(legacy(images, mask).loss) is same


def test_recomputing_the_decoder_changes_nothing() -> None:
    plain, again = model(), model(recompute_decoder=True)
    again.load_state_dict(plain.state_dict())
    for method in (plain, again):
        method(*batch(method)).loss.backward()
    for (name, one), (_, other) in zip(plain.named_parameters(), again.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_an_image_is_decoded_alike_in_any_batch() -> None:
    method = model()
    images, mask = batch(method)
    torch.testing.assert_close(method(images, mask).prediction[:1], method(images[:1], mask[:1]).prediction)


def config(**values: Any) -> Any:
    return default_config("um_mae", "um_swin_tiny", {"model.options": SWIN, "data.input_size": [64, 64], **values})


@pytest.mark.parametrize(("values", "message"), [
    ({"data.input_size": [100, 64]}, r"100x64 is not divisible by 64.*use e\.g\. 128x64"),
    ({"mask.ratio": 0.6}, r"mask\.ratio=0\.6 is none that keeps one patch of every k x k: those are 0\.75, 0\.8889"),
    ({"model.name": "resnet18", "model.options": {}}, r"ResNet"),
    ({"data.input_size": [192, 192]}, r"whole windows.*window_size"),
    ({"model.options": SWIN | {"window_size": 7}}, r"window_size=7 is no multiple of"),
    ({"mask.patch_size": 6}, r"mask\.patch_size=6 must be a multiple of the stem's stride 4"),
])
def test_what_does_not_fit_is_told_in_a_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as told:
        build_method(config(**values))
    assert "\n" not in str(told.value)


def test_the_other_words_of_settings_are_refused() -> None:
    wrong = config()
    wrong.sampling, wrong.decoder_positions = "poll", "leg"
    assert [line.partition(" ")[0] for line in wrong.problems()] == ["sampling=poll", "decoder_positions=leg"]


def test_a_mask_of_something_else_is_an_error() -> None:
    method = model()
    images, mask = batch(method)
    with pytest.raises(ValueError, match="one patch of every cell"):
        method(images, mask.roll(1, -1))
