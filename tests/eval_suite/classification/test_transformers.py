"""Encoders of the masked methods of transformers are fine-tuned, probed and asked like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from colored import write_folders

from eval_suite.classification.layer_decay import classifier_names
from eval_suite.cli import main as evaluate
from spark.cli import main
from spark.formats.fitting import fitted

TOKENS = ["decoder.width=16", "decoder.depth=1", "decoder.heads=2"]
UM = "{depths: [1, 1, 1, 1], embed_dim: 16, num_heads: [1, 1, 2, 2], window_size: 8}"
PVT = "{depths: [1, 1, 1, 1], embed_dims: [8, 16, 16, 32], num_heads: [1, 1, 2, 2], mlp_ratios: [2, 2, 2, 2]}"
VIT = "{embed_dim: 32, depth: 2, num_heads: 2}"
SWIN = "{depths: [1, 1, 1, 1], embed_dim: 16, num_heads: [1, 1, 2, 2], window_size: 4}"
ENCODERS = [
    ("um_mae", "um_swin_tiny", UM, TOKENS),
    ("um_mae", "um_pvt_small", PVT, TOKENS),
    ("mae", "vit_tiny_patch16_224", VIT, TOKENS),
    ("simmim", "swin_tiny_patch4_window7_224", SWIN, []),
]


@pytest.mark.parametrize(("method", "model", "options", "more"), ENCODERS)
def test_from_pretraining_to_results(method: str, model: str, options: str, more: list[str], tmp_path: Path) -> None:
    images = write_folders(tmp_path / "images", 6, 3, ("blue", "red"))
    recipe = tmp_path / "empty.yaml"
    recipe.write_text("{}\n")
    network = [f"model.name={model}", f"model.options={options}"]
    common = ["device=cpu", "data.workers=0", *network]
    assert main(["pretrain", str(recipe), f"method={method}", f"data.root={images / 'train'}",
                 f"out={tmp_path / 'pre'}", "data.input_size=[64,64]", "model.drop_path=0", "train.batch=4",
                 "train.epochs=1", "train.warmup_epochs=0", *common, *more]) == 0
    labeled = [f"data.root={images}", f"init={tmp_path / 'pre'}", "origin=smoke", "data.input_size=64", *common]
    assert evaluate(["knn", str(recipe), f"out={tmp_path / 'knn'}", "neighbours=[1]", *labeled]) == 0
    if method == "mae":
        labeled[-1] = f"model.options={options[:-1]}, global_pool: avg}}"
    assert evaluate(["finetune", str(recipe), f"out={tmp_path / 'fine'}", "train.epochs=1",
                     "train.warmup_epochs=0", "train.batch=4", "model.drop_path=0.1", "optimizer.layers=blocks",
                     "optimizer.layer_decay=0.8", *labeled]) == 0


def small_vit(size: int, **more: Any) -> torch.nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=size, embed_dim=32, depth=1, num_heads=2, **more)


def test_positions_and_biases_are_interpolated_and_the_last_norm_left_out() -> None:
    encoder, classifier = small_vit(64, num_classes=0), small_vit(96, num_classes=3, global_pool="avg")
    state = fitted(encoder.state_dict(), classifier)
    assert state["pos_embed"].shape == (1, 37, 32)
    torch.testing.assert_close(state["pos_embed"][:, 0], encoder.pos_embed[:, 0])  # the class token's
    assert not [name for name in state if name.startswith("norm.")]
    assert classifier_names(classifier) == ("head.", "fc_norm.")
    same = fitted(encoder.state_dict(), small_vit(64, num_classes=3))
    assert all(torch.equal(same[name], tensor) for name, tensor in encoder.state_dict().items())

    swins = [timm.create_model("swin_tiny_patch4_window7_224", img_size=size, window_size=window, embed_dim=16,
                               depths=[1, 1], num_heads=[1, 1], num_classes=0) for size, window in ((64, 4), (64, 8))]
    table = "layers.0.blocks.0.attn.relative_position_bias_table"
    assert fitted(swins[0].state_dict(), swins[1])[table].shape == (15 * 15, 1)
