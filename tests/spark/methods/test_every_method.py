"""What is promised of pre-training holds for every method: exact resuming, ranks, exports, pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from two_ranks import torchrun

from spark.cli import main
from spark.methods.load import load_pretrained
from spark.methods.registry import METHODS, build_method, read_recipe
from spark.runs.metrics import read_metrics
from spark.training import loop

PHOTOS = 8
SIDE = 64
UM_SWIN = "{depths: [1, 1, 1, 1], embed_dim: 16, num_heads: [1, 1, 2, 2], window_size: 8}"
VIT = "{embed_dim: 32, depth: 2, num_heads: 2}"
TOKENS = ("decoder.width=16", "decoder.depth=1", "decoder.heads=2")
SMALL = {
    "spark": ("model.name=test_convnext", "decoder.width=32"),
    "fcmae": ("model.name=test_convnext2", "decoder.width=16"),
    "um_mae": ("model.name=um_swin_tiny", f"model.options={UM_SWIN}", *TOKENS),
    "mae": ("model.name=vit_tiny_patch16_224", f"model.options={VIT}", *TOKENS),
    "simmim": ("model.name=um_swin_tiny", f"model.options={UM_SWIN}", "mask.patch_size=16"),
}


def settings(method: str, photos: Path, out: Path, *more: str) -> list[str]:
    return [
        f"method={method}", f"data.root={photos}", f"out={out}", "device=cpu", f"data.input_size=[{SIDE},{SIDE}]",
        "data.workers=0", "model.drop_path=0", "train.batch=4", "train.epochs=2", "train.warmup_epochs=1",
        "optimizer.base_lr=0.01", "train.picture_epochs=1", *SMALL[method], *more,
    ]  # fmt: skip


def run(photos: Path, words: list[str]) -> int:
    recipe = photos.parent / "empty.yaml"
    recipe.write_text("{}\n")
    return main(["pretrain", str(recipe), *words])


def test_all_methods_are_here() -> None:
    assert SMALL.keys() == METHODS.keys()


@pytest.mark.parametrize("method", sorted(SMALL))
def test_every_trained_tensor_gets_a_gradient_and_shapes_do_not_follow_from_values(method: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_method(read_recipe(None, settings(method, tmp_path, tmp_path / "run")))
    images = torch.randn(3, 3, SIDE, SIDE)
    output = model(images)
    output.loss.backward()
    assert not [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    for _ in range(3):
        other = model(images)
        assert [part.shape for part in other.features] == [part.shape for part in output.features]
    drawn = model.reconstruct(images, output)
    shown = torch.nn.functional.interpolate((output.mask != 0).float(), size=(SIDE, SIDE)).bool().expand_as(images)
    assert torch.equal(drawn[shown], images[shown])
    assert not torch.isclose(drawn[~shown], images[~shown]).any(0).all()


@pytest.mark.parametrize("method", sorted(SMALL))
def test_it_resumes_exactly_and_exports_what_timm_loads(
    method: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(photos, settings(method, photos, whole)) == 0
    record = loop.Training._record

    def killed(self: loop.Training, *arguments: object) -> str:
        if self.step == 2:
            raise KeyboardInterrupt
        return record(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_record", killed)
        assert run(photos, settings(method, photos, parts)) == 130
    assert run(photos, settings(method, photos, parts)) == 0
    assert (whole / "encoder.safetensors").read_bytes() == (parts / "encoder.safetensors").read_bytes()
    assert read_metrics(whole) == read_metrics(parts)
    assert (whole / "reconstructions" / "epoch_00002.png").is_file()

    model, config, _ = load_pretrained(whole)
    assert config.method == method
    options = {"img_size": SIDE} if method in ("um_mae", "mae", "simmim") else {}
    network = timm.create_model(config.model.name, num_classes=0, **options, **config.model.options)
    found = network.load_state_dict(load_file(whole / "encoder.safetensors"), strict=False)
    assert not found.unexpected_keys
    assert all("norm" in key for key in found.missing_keys)
    assert model.encoder_state().keys() == load_file(whole / "encoder.safetensors").keys()


@pytest.mark.parametrize(
    ("method", "model", "labels"),
    [
        ("um_mae", "um_swin_tiny", ["simmim", "um_mae", "um_mae, decoder recomputed"]),
        ("fcmae", "convnextv2_atto", ["masked", "compact"]),
        ("mae", "vit_tiny_patch16_224", ["step"]),
    ],
)
def test_its_step_is_compared_with_the_others_of_its_kind(
    method: str, model: str, labels: list[str], tmp_path: Path
) -> None:
    words = ["bench", model, "--method", method, "--batch", "1", "--rounds", "1", "--device", "cpu"]
    assert main([*words, "--input-size", "256" if method == "um_mae" else "224", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("*.json")
    measured = {entry["variant"]: entry for entry in json.loads(file.read_text())["variants"]}
    assert list(measured) == labels
    kept = [entry["step_activations"] for entry in measured.values()]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == len(kept)


@pytest.mark.parametrize("method", sorted(SMALL.keys() - {"spark"}))  # of which tests/spark/training knows more
def test_two_processes_have_the_losses_of_one(method: str, photos: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(photos, settings(method, photos, one)) == 0
    done = torchrun(tmp_path / "recipe.yaml", *settings(method, photos, two))
    assert done.returncode == 0, done.stderr
    for record, right in zip(read_metrics(two), read_metrics(one), strict=True):
        assert record["step"] == right["step"]
        assert record["loss"] == pytest.approx(right["loss"], rel=1e-5)
        assert record["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3)
