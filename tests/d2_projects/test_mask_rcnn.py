"""The recipes say what they claim to say, and training goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from omegaconf import DictConfig, OmegaConf

from d2_projects.data import check, registered
from d2_projects.train_net import pick_device, point_at, train
from spark.errors import UserError
from spark.metrics import read_metrics

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "d2_projects" / "mask_rcnn"
GOLDEN = ROOT / "tests" / "golden"


def recipe(name: str, **values: Any) -> DictConfig:
    cfg = LazyConfig.load(str(RECIPES / f"{name}.py"))
    for key, value in values.items():
        OmegaConf.update(cfg, key.replace("__", "."), value)
    return cfg


def tiny(**values: Any) -> DictConfig:
    cfg = recipe("mask_rcnn_r18_demo", train__device="cpu", train__precise_bn_iter=1, train__log_period=1,
                 train__checkpointer__period=1, dataloader__train__total_batch_size=2, **values)
    for loader in (cfg.dataloader.train, cfg.dataloader.test):
        loader.mapper.augmentations[0].update(short_edge_length=64, max_size=64)
    return cfg


def test_r50_recipe_is_the_published_setting() -> None:
    cfg = recipe("mask_rcnn_r50_fpn")
    model = instantiate(cfg.model)
    golden = json.loads((GOLDEN / "detectron2_lr_factors_decay0.6.json").read_text())["R50-FPN"]
    names = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names.keys() == golden.keys()
    keys = json.loads((GOLDEN / "detectron2_resnet_keys.json").read_text())["resnet50"]
    backbone = {name: list(t.shape) for name, t in model.backbone.bottom_up.state_dict().items()}
    assert backbone == dict(keys)
    strides = [model.backbone.bottom_up.res3[0].conv1.stride, model.backbone.bottom_up.res3[0].conv2.stride]
    assert strides == [(1, 1), (2, 2)]
    norms = sum(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules())
    assert norms == 53 + 8 + 4 + 4  # backbone, FPN, box head, mask head
    assert cfg.dataloader.train.mapper.image_format == model.input_format == "RGB"

    cfg.optimizer.params.model = model
    groups = instantiate(cfg.optimizer).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert {name: rates[id(p)] for name, p in names.items()} == pytest.approx(
        {name: 2.5e-4 * factor for name, factor in golden.items()})
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decays[id(names["backbone.bottom_up.stem.conv1.weight"])] == 1e-4
    assert decays[id(names["backbone.bottom_up.stem.conv1.norm.weight"])] == 0


@pytest.mark.parametrize(("iteration", "factor"), [
    (0, 0.01), (500, 0.505), (1000, 1), (59_990, 1), (60_010, 0.25), (79_990, 0.25), (80_010, 0.0625),
])
def test_r50_schedule(iteration: int, factor: float) -> None:
    schedule = instantiate(recipe("mask_rcnn_r50_fpn").lr_multiplier)
    assert schedule(iteration / 90_000) == pytest.approx(factor, rel=1e-3)


def test_a_run_goes_on_where_it_stopped(coco: Path, tmp_path: Path) -> None:
    data, run = check(coco), tmp_path / "run"
    with registered(data) as names:
        for iterations in (2, 3):
            cfg = tiny(train__max_iter=iterations)
            point_at(cfg, data, names)
            outcome = train(cfg, run)
        final = run / "checkpoints" / "model_final.pth"
        saved = torch.load(final, weights_only=True)
        saved["stopwatch"]["seconds"] += 1000
        torch.save(saved, final)
        again = train(cfg, run)
    steps = [entry["step"] for entry in read_metrics(run) if "loss" in entry]
    assert steps == [1, 2, 3]
    assert outcome.images_per_second is not None
    assert 0 < outcome.seconds < 1000 < again.seconds
    assert again.images_per_second is None  # nothing was left to do but to evaluate
    assert again.metrics == pytest.approx(outcome.metrics, nan_ok=True)
    assert saved["iteration"] == 2
    for name, tensor in again.model.state_dict().items():
        if name in saved["model"]:
            torch.testing.assert_close(tensor, saved["model"][name], rtol=0, atol=0)


def test_an_infinite_loss_is_one_line_and_logged(coco: Path, tmp_path: Path) -> None:
    data = check(coco)
    cfg = tiny(train__max_iter=4, optimizer__lr=1e30, lr_multiplier__warmup_factor=1.0)
    with registered(data) as names:
        point_at(cfg, data, names)
        with pytest.raises(UserError, match=r"NaN.*Lower optimizer\.lr"):
            train(cfg, tmp_path / "run")
    assert "Exception during training" in (tmp_path / "run" / "log.txt").read_text()


def test_a_backbone_of_another_network_is_refused(coco: Path, tmp_path: Path) -> None:
    data, cfg = check(coco), tiny(train__max_iter=1)
    with registered(data) as names:
        point_at(cfg, data, names)
        with pytest.raises(UserError, match="do not fit the recipe's backbone"):
            train(cfg, tmp_path, backbone={"stem.conv1.weight": torch.zeros(64, 3, 7, 7)})


def test_an_unreadable_picture_is_one_line(coco: Path, tmp_path: Path) -> None:
    for picture in (coco / "train2017").iterdir():
        picture.write_bytes(picture.read_bytes()[:200])
    data, cfg = check(coco), tiny(train__max_iter=2)
    with registered(data) as names:
        point_at(cfg, data, names)
        with pytest.raises(UserError, match="training stopped: ") as raised:
            train(cfg, tmp_path / "run")
    assert "\n" not in str(raised.value)


def test_a_damaged_checkpoint_is_one_line(coco: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "model_0000001.pth").write_bytes(b"torn")
    (folder / "last_checkpoint").write_text("model_0000001.pth")
    data, cfg = check(coco), tiny(train__max_iter=2)
    with registered(data) as names:
        point_at(cfg, data, names)
        with pytest.raises(UserError, match=r"model_0000001\.pth' is damaged .*; pass resume=never"):
            train(cfg, tmp_path / "run")


def test_the_older_checkpoint_takes_a_damaged_ones_place(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = check(coco), tmp_path / "run"
    with registered(data) as names:
        cfg = tiny(train__max_iter=3)
        point_at(cfg, data, names)
        train(cfg, run)
        checkpoints = run / "checkpoints"
        (checkpoints / "model_final.pth").write_bytes(b"torn")
        whole = (checkpoints / "model_0000002.pth").read_bytes()
        (checkpoints / "model_0000002.pth").write_bytes(whole[: len(whole) // 2])
        capsys.readouterr()
        outcome = train(cfg, run)
    assert outcome.images_per_second is not None  # the third iteration was repeated
    assert "model_0000002.pth' is truncated or no checkpoint; trying the one before" in capsys.readouterr().err
    assert torch.load(checkpoints / "model_final.pth", weights_only=True)["iteration"] == 2


@pytest.mark.parametrize(("wanted", "amp", "message"), [
    ("abacus", False, "is not a device"),
    ("meta", False, "is not supported"),
    ("cpu", True, "needs a CUDA device"),
])
def test_impossible_devices_are_refused(wanted: str, amp: bool, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pick_device(wanted, amp)
