"""A run begins with the weights that it is given, or says why it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from spark.config.pretrain import PretrainConfig
from spark.errors import UserError
from spark.formats.registry import FORMATS
from spark.methods.registry import read_recipe
from spark.methods.spark.model import SparK
from spark.training.initialize import initialize
from spark.training.run import pretrain


@pytest.fixture
def model() -> SparK:
    torch.manual_seed(0)
    return SparK("resnet18", decoder_width=32)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.pth")
    return tmp_path / "resnet18.pth"


def test_a_state_dict_starts_the_encoder(model: SparK, weights: Path) -> None:
    decoder = {name: tensor.clone() for name, tensor in model.decoder.state_dict().items()}
    line = initialize(model, str(weights), 3)
    assert line == f"init={weights} (timm or torchvision naming): 100 of 100 tensors of the encoder matched"
    given = torch.load(weights)
    assert all(tensor.equal(given[name]) for name, tensor in model.encoder_state().items())
    assert all(tensor.equal(decoder[name]) for name, tensor in model.decoder.state_dict().items())


def test_linear_layers_start_convolutions_of_one_pixel(tmp_path: Path) -> None:
    """Official ConvNeXts have the former where some of timm's have the latter."""
    state = timm.create_model("convnextv2_atto", num_classes=0).state_dict()
    given = FORMATS["official-convnext"].from_timm(state).state
    given |= {name: tensor.flatten(1) for name, tensor in given.items() if "pwconv" in name and tensor.ndim > 2}
    torch.save({"model": given}, tmp_path / "official.pth")
    model = SparK("convnextv2_atto", decoder_width=32)
    assert "136 of 136 tensors of the encoder matched" in initialize(model, str(tmp_path / "official.pth"), 3)
    assert model.encoder_state()["stages.0.blocks.0.mlp.fc1.weight"].equal(state["stages.0.blocks.0.mlp.fc1.weight"])


def test_a_run_starts_encoder_and_decoder(model: SparK, pictures: Path, tmp_path: Path) -> None:
    def config(out: str, *more: str) -> PretrainConfig:
        return read_recipe(None, [
            f"data.root={pictures}", f"out={tmp_path / out}", "device=cpu", "model.name=resnet18", "data.workers=0",
            "data.input_size=[64,64]", "decoder.width=32", "train.batch=12", "train.epochs=1",
            "train.warmup_epochs=0", *more,
        ])  # fmt: skip

    first = pretrain(config("first"))
    saved = torch.load(first / "checkpoints" / "last.pt")["model"]
    assert "tensors of encoder and decoder matched" in initialize(model, str(first), 3)
    assert all(tensor.equal(saved[name]) for name, tensor in model.state_dict().items())
    second = pretrain(config("second", f"init={first}", "optimizer.base_lr=1e-9"))
    moved = torch.load(second / "checkpoints" / "last.pt")["model"]
    torch.testing.assert_close(
        *({name: t for name, t in state.items() if name.endswith("weight")} for state in (moved, saved)),
        rtol=1e-3, atol=1e-4,
    )  # fmt: skip


def test_timms_weights_are_adapted_by_timm(model: SparK, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def create(name: str, **options: object) -> torch.nn.Module:
        asked.update(options, name=name)
        return real("resnet18", num_classes=0)

    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", create)
    assert "100 of 100" in initialize(model, "timm:resnet18.a1_in1k", 3)
    assert asked == {"name": "resnet18.a1_in1k", "pretrained": True, "num_classes": 0, "in_chans": 3}


def test_what_cannot_be_loaded_is_said(model: SparK, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=r"weights of 'resnet18' \(no route to host\); without a network, .* init=FILE"):
        initialize(model, "timm:resnet18", 3)
    with pytest.raises(UserError, match="unknown model"):
        initialize(model, "timm:resnet1", 3)
    with pytest.raises(UserError, match="does not exist"):
        initialize(model, "nowhere.pth", 3)


def test_a_partial_match_must_be_wanted(weights: Path) -> None:
    other = SparK("resnet34", decoder_width=32)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(UserError, match=r"100 of 180 tensors of the encoder matched; not .*init_allow_partial=true"):
        initialize(other, str(weights), 3)
    assert all(tensor.equal(before[name]) for name, tensor in other.state_dict().items())
    assert "100 of 180" in initialize(other, str(weights), 3, allow_partial=True)
    convnext = SparK("convnext_atto", decoder_width=32)
    with pytest.raises(UserError, match=r" 0 of \d+ tensors"):
        initialize(convnext, str(weights), 3, allow_partial=True)
