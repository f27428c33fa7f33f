"""MAE: what is hidden is seen nowhere, and what is shown is an image's own set of tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from spark.backbones.plane.families import plane_encoder
from spark.backbones.plane.geometry import Whole
from spark.errors import RefusedError, UserError
from spark.masking import enlarge
from spark.methods.registry import build_method, default_config

VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2}
SMALL = {"decoder.width": 16, "decoder.depth": 1, "decoder.heads": 2, "data.input_size": [64, 96], "model.options": VIT}


def model(name: str = "vit_tiny_patch16_224", **values: Any) -> Any:
    torch.manual_seed(0)
    return build_method(default_config("mae", name, SMALL | values)).double()


def test_hidden_pixels_change_nothing_but_the_target() -> None:
    method = model()
    images = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    mask = method.draw_mask(2, method.grid(64, 96))
    shown = enlarge(mask != 0, 64, 96)
    before, after = method(images, mask), method(torch.where(shown, images, torch.rand_like(images)), mask)
    for old, new in zip([*before.features, before.prediction], [*after.features, after.prediction], strict=True):
        assert torch.equal(old, new)
    assert before.loss != after.loss


def test_it_encodes_what_the_network_would_make_of_that_set() -> None:
    """With all patches visible, the tokens are those of the whole picture."""
    method = model()
    images = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    tokens, prefix = method.encode(images, torch.ones(1, 1, 4, 6, dtype=torch.uint8), 24)
    right = method.encoder.network.forward_features(images)
    torch.testing.assert_close(torch.cat([prefix, tokens[:, 0]], 1), right)
    encoder = plane_encoder(method.encoder.network)
    whole = encoder.body(encoder.stem_norm(encoder.embed(images)), Whole())
    torch.testing.assert_close(whole.tokens.flatten(1, 2), right[:, 1:])


def test_a_quarter_is_shown_and_ratios_may_differ() -> None:
    method = model()
    assert (method.draw_mask(3, (4, 6)) != 0).sum((1, 2, 3)).tolist() == [6, 6, 6]
    assert (method.draw_mask(1, (14, 14), mask_ratio=0.4) != 0).sum() == 117  # 117.6, rounded down


@pytest.mark.parametrize(
    ("name", "values", "error", "words"),
    [
        ("swin_tiny_patch4_window7_224", {"model.options": {}, "data.input_size": [224, 224]}, RefusedError,
         "SwinTransformer does not take any set of patches"),
        ("vit_tiny_patch16_224", {"data.input_size": [60, 96]}, UserError, "is not divisible by mask.patch_size=16"),
        ("vit_tiny_patch16_224", {"model.options": VIT | {"img_size": 224}}, UserError, "images of 224x224, not 64x96"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(name: str, values: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        model(name, **values)
