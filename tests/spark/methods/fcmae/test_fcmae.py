"""FCMAE: both engines agree, everything visible is the dense network, and its settings do what they say."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn

from spark.backbones.timm_pyramid import TimmPyramid
from spark.config.pretrain import PretrainConfig
from spark.errors import UserError
from spark.methods.fcmae.config import FCMAEConfig
from spark.methods.fcmae.model import FCMAE
from spark.methods.registry import default_config, read_recipe

SMALL = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}


def small(conv_mlp: bool = True, **settings: object) -> FCMAE:
    """Return a small model, in float64, whose response norms do something."""
    torch.manual_seed(0)
    network = TimmPyramid("convnextv2_atto", options={**SMALL, "conv_mlp": conv_mlp})
    model = FCMAE(network, decoder_width=16, **settings)
    for layer in model.modules():
        if isinstance(layer, GlobalResponseNorm):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    return model.double()


def batch(model: FCMAE, images: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = model.draw_mask(images, (3, 4), generator)
    return torch.randn(images, 3, 96, 128, dtype=torch.float64, generator=generator), mask


def gradients(model: FCMAE) -> dict[str, Tensor]:
    output = model(*batch(model))
    output.loss.backward()
    return {"loss": output.loss.detach(), "prediction": output.prediction.detach(),
            **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("grn", ["image", "batch"])
@pytest.mark.parametrize("conv_mlp", [True, False])
def test_the_engines_agree(grn: str, conv_mlp: bool) -> None:
    compact, masked = (gradients(small(conv_mlp, grn=grn, engine=engine)) for engine in ("compact", "masked"))
    assert compact.keys() == masked.keys()
    for name, wanted in masked.items():
        torch.testing.assert_close(compact[name], wanted, rtol=1e-10, atol=1e-10, msg=name)


def test_a_norm_over_the_batch_is_another_one_for_several_images_and_the_same_for_one() -> None:
    per_image, over_batch = small(), small(grn="batch")
    images, mask = batch(per_image)
    for some, alike in ((3, False), (1, True)):
        maps = [model(images[:some], mask[:some]).features[0] for model in (per_image, over_batch)]
        assert torch.allclose(*maps, rtol=1e-3) == alike


@pytest.mark.parametrize("engine", ["compact", "masked"])
def test_with_everything_visible_the_encoder_is_timms(engine: str) -> None:
    model = small(engine=engine)
    network = timm.create_model("convnextv2_atto", num_classes=0, **SMALL).double().eval()
    network.load_state_dict(model.encoder_state())
    images = batch(model)[0]
    mask = torch.ones(3, 1, 3, 4, dtype=torch.uint8)
    (last,) = model.eval().encode(images, mask, 12)
    with model.visible.use_mask(mask.bool()):
        torch.testing.assert_close(model.visible.leave(last), network.stages(network.stem(images)))


def test_the_number_of_visible_patches_is_rounded_down() -> None:
    model = small()
    assert model.visible_per_image((7, 7)) == 19  # 19.6
    assert (model.draw_mask(5, (7, 7)).flatten(1).sum(1) == 19).all()
    assert (model.draw_mask(5, (7, 7), mask_ratio=0.75).flatten(1).sum(1) == 12).all()


def test_masked_pixels_do_not_change_the_prediction() -> None:
    model = small().eval()
    images, mask = batch(model)
    hidden = mask.repeat_interleave(32, 2).repeat_interleave(32, 3) == 0
    assert model(images, mask).prediction.equal(model(images + 5 * hidden, mask).prediction)


def test_a_patchs_values_are_ordered_by_row_column_and_channel() -> None:
    model = small()
    model.decoder.to_pixels.weight.data.zero_()
    model.decoder.to_pixels.bias.data = torch.arange(32 * 32 * 3, dtype=torch.float64)
    prediction = model(*batch(model)).prediction
    assert prediction[2, :, 32 + 5, 64 + 7].tolist() == [3 * (32 * 5 + 7) + channel for channel in range(3)]


@pytest.mark.parametrize("network", ["test_resnet", "test_efficientnet", "hrnet_w18_small"])
def test_any_network_will_do_and_what_its_last_map_does_not_need_is_frozen(network: str) -> None:
    model = FCMAE(network, decoder_width=16)
    model(torch.randn(2, 3, 96, 96)).loss.backward()
    assert not [name for name, p in model.named_parameters() if (p.grad is None) == p.requires_grad]


def test_maes_rule_decays_and_so_do_response_norms() -> None:
    model = small()
    decaying = {name for name, parameter in model.named_parameters() if model.decayed(name, parameter)}
    assert {"decoder.mask_token", "decoder.blocks.0.mlp.grn.bias", "decoder.project.weight",
            "encoder.network.stages.0.blocks.0.mlp.grn.weight"} <= decaying
    assert all(".grn." in name or not name.endswith(("bias", "norm.weight")) for name in decaying)


def test_the_two_initializations() -> None:
    torch.manual_seed(0)
    network, original = FCMAE("convnextv2_atto"), FCMAE("convnextv2_atto", initialization="original")
    stages = "encoder.network.stages"
    deviations = {
        "encoder.network.stem.0.weight": 0.88, f"{stages}.1.downsample.1.weight": 0.02,
        f"{stages}.2.blocks.3.mlp.fc1.weight": 0.88, f"{stages}.0.blocks.0.conv_dw.weight": 0.88,
        "decoder.project.weight": 0.88, "decoder.blocks.0.conv_dw.weight": 0.88, "decoder.to_pixels.weight": 0.88,
        "decoder.blocks.0.mlp.fc1.weight": (1 / 3 / 512) ** 0.5, "decoder.mask_token": 0.02,
    }  # fmt: skip
    for name, deviation in deviations.items():
        assert original.get_parameter(name).std().item() == pytest.approx(deviation, rel=0.1), name
        assert network.get_parameter(name).std().item() == pytest.approx(0.02, rel=0.1), name
    assert original.get_parameter("decoder.blocks.0.mlp.fc1.bias").any()
    assert not any(p.any() for name, p in network.named_parameters() if name.endswith("bias"))


def test_the_defaults_are_the_papers() -> None:
    config = default_config("fcmae", "convnextv2_tiny", {})
    assert isinstance(config, FCMAEConfig)
    optimizer = config.optimizer
    assert (optimizer.name, list(optimizer.betas), optimizer.clip_grad_norm, optimizer.schedule) == (
        "adamw", [0.9, 0.95], 0.0, "mae")
    assert (optimizer.weight_decay, optimizer.weight_decay_end) == (0.05, 0.05)
    assert (config.learning_rate, config.data.min_scale, config.train.epochs) == (2.4e-3, 0.2, 800)
    assert PretrainConfig().optimizer.schedule == "spark"  # every other run's


def test_what_cannot_be_is_one_line() -> None:
    with pytest.raises(UserError, match="grn=batch, but the network has no global response norm; leave grn=image"):
        FCMAE("test_resnet", grn="batch")
    with pytest.raises(UserError, match=r"grn=images is not one of image, batch\. Did you mean image"):
        read_recipe(None, ["method=fcmae", "out=x", "data.root=y", "grn=images"])
    with pytest.raises(UserError, match="initialization=x is not one of network, original"):
        read_recipe(None, ["method=fcmae", "out=x", "data.root=y", "initialization=x"])
