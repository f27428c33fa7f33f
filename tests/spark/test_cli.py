"""Bad input is one clear line and exit code 2, and leaves nothing half-written."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import MappingProxyType

import pytest
import timm
import torch
from torch import nn

from spark.cli import main
from spark.sparse import LayerRule, layers
from spark.sparse.rule import unchanged

SMALL = [
    "model.name=resnet18", "model.drop_path=0", "data.input_size=[64,64]", "data.workers=0", "decoder.width=32",
    "train.batch=4", "train.epochs=1", "train.warmup_epochs=0", "device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of a network's weights; tests leave it as it is."""
    path = tmp_path_factory.mktemp("weights") / "whole.pth"
    torch.save(timm.create_model("resnet18", num_classes=0).state_dict(), path)
    return path


@pytest.fixture
def workplace(pictures: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a current folder with pictures, a recipe, an empty folder and a truncated checkpoint."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "recipe.yaml").write_text("out: run\ndata: {root: pictures}\n")
    shutil.copyfile(weights, "whole.pth")
    Path("cut.pth").write_bytes(weights.read_bytes()[:100_000])
    return tmp_path


def pretrain(*overrides: str, recipe: str = "recipe.yaml") -> list[str]:
    return ["pretrain", recipe, *SMALL, *overrides]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (pretrain("data.root=nowhere"), ["'nowhere' does not exist", "data.root"]),
        (pretrain("data.root=empty"), ["no images found below 'empty'"]),
        (pretrain("model.name=resnet5O"), ["unknown model 'resnet5O'", "Did you mean", "resnet50"]),
        (pretrain("train.batchs=4"), ["unknown key 'train.batchs'", "Did you mean train.batch"]),
        (pretrain("data.input_size=[64,70]"), ["64x70 is not divisible", "32", "use e.g. 64x64"]),
        (pretrain("data.input_size=64"), ["data.input_size=64: one value where a list is needed, such as [64,64]"]),
        (pretrain("mask.ratio=0.99"), ["mask ratio 0.99 leaves 0 of 4 patches visible"]),
        (pretrain("train.batch=500"), ["train.batch=500 is more than the 12 images"]),
        (pretrain("model.name=ghostnetv2_100"), ["blocks.2.0.ghost1: GhostModuleV2"]),
        (pretrain("model.name=vit_tiny_patch16_224"), ["does not run on an input of"]),
        (pretrain("engine=fast"), ["unknown engine 'fast'"]),
        (pretrain("decoder.width=48"), ["divisible by 32"]),
        (pretrain(recipe="recipes.yaml"), ["'recipes.yaml' does not exist", "Did you mean recipe.yaml"]),
        (pretrain("out=recipe.yaml"), ["out='recipe.yaml' is a file"]),
        (pretrain("model.name=resnest14d", "train.device_batch=1"), ["batch norms within gates", "two images or more"]),
        (["check", "resnet5O"], ["unknown model 'resnet5O'", "resnet50"]),
        (["check", "net.py"], ["unknown model 'net.py'. Name the class, too: net.py:ClassName"]),
        (["check", "ghostnetv2_100"], ["blocks.2.0.ghost1: GhostModuleV2 pools a map by two"]),
        (["check", "resnet18", "--engine", "fast"], ["unknown engine 'fast'"]),
        (["convert", "nowhere.pth", "out", "--to", "timm"], ["'nowhere.pth' does not exist"]),
        (["convert", "cut.pth", "out", "--to", "timm"], ["'cut.pth' is truncated"]),
        (["convert", "recipe.yaml", "out", "--to", "timm"], ["'recipe.yaml' is truncated or no checkpoint"]),
        (["convert", "whole.pth", "out", "--to", "detectron2"], [".pkl"]),
        (["convert", "whole.pth", "out", "--to", "timm", "--model", "resnet50"], ["not a resnet50"]),
        (["convert", "whole.pth", "recipe.yaml", "--to", "timm"], ["cannot write 'recipe.yaml"]),
    ],
    ids=lambda value: value[0] if isinstance(value[0], str) and len(value) < 3 else None,
)
def test_bad_input_is_one_line(
    arguments: list[str], parts: list[str], workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in workplace.rglob("*")}
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]
    assert {path: path.stat().st_mtime_ns for path in workplace.rglob("*")} == before


def test_too_many_unreadable_images_stop_the_run(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in list((workplace / "pictures").rglob("*.png"))[:3]:
        path.write_bytes(b"not a picture")
    with pytest.warns(UserWarning, match="is skipped"):
        assert main(pretrain()) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert "of 12 images cannot be read" in last
    assert not (workplace / "run" / "encoder.safetensors").exists()


def test_a_run_with_torn_checkpoints_only_says_so(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(pretrain()) == 0
    checkpoints = workplace / "run" / "checkpoints"
    for path in checkpoints.iterdir():
        path.write_bytes(b"torn")
    with pytest.warns(UserWarning, match="last"):
        assert main(pretrain()) == 2
    assert "no checkpoint is whole" in capsys.readouterr().err.splitlines()[-1]
    assert (checkpoints / "last.pt").read_bytes() == b"torn"


def test_checkpoints_of_an_unknown_configuration_are_not_continued(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(pretrain()) == 0
    (workplace / "run" / "config.yaml").unlink()
    assert main(pretrain()) == 2
    assert "checkpoints but no config.yaml" in capsys.readouterr().err.splitlines()[-1]


def test_pretrain_then_convert(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(pretrain()) == 0
    assert (workplace / "run" / "encoder.safetensors").is_file()
    assert main(["convert", "run", "r18.pkl", "--to", "detectron2"]) == 0
    printed = capsys.readouterr().out
    assert "proof: outputs of timm's and detectron2's resnet18 agree" in printed
    assert (workplace / "r18.pkl").is_file()


def test_check_prints_a_verdict_of_each_engine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "test_resnet"]) == 0
    printed = capsys.readouterr().out
    assert printed.count(" ok\n") == 6
    assert [line for line in printed.splitlines() if line.startswith("engine")] == ["engine compact", "engine masked"]
    assert printed.endswith("test_resnet: verified\n")


@pytest.mark.parametrize("engine", ["compact", "masked", "auto"])
def test_check_can_be_told_the_engine(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "test_resnet", "--engine", engine]) == 0
    printed = capsys.readouterr().out
    assert printed.count(" ok\n") == 3
    assert printed.startswith("engine masked\n" if engine == "masked" else "engine compact\n")


def test_check_says_why_the_compact_engine_stands_back(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No layer in the table makes it stand back at present."""
    table = {**layers.LAYERS, nn.ReLU: LayerRule(unchanged, None)}
    monkeypatch.setattr(layers, "LAYERS", MappingProxyType(table))
    assert main(["check", "test_resnet"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("engine masked (the compact engine has no rule for network.act1: ReLU; ")
    assert rest[3].startswith("costs at ")
    assert main(["check", "test_resnet", "--engine", "compact"]) == 2
    assert "no rule for network.act1: ReLU" in capsys.readouterr().err


def test_check_fails_if_an_engine_does(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = LayerRule(unchanged, lambda layer, dense, visible, x: 2 * dense(x))
    monkeypatch.setattr(layers, "LAYERS", MappingProxyType({**layers.LAYERS, nn.ReLU: wrong}))
    assert main(["check", "test_resnet"]) == 2
    printed, error = capsys.readouterr()
    assert (printed.count(" ok\n"), printed.count(" FAILED\n")) == (4, 2)
    assert error.startswith("error: 'test_resnet' is not converted correctly")


def test_one_image_is_enough(workplace: Path) -> None:
    """Whether features collapse cannot be told of one."""
    _, *others = sorted((workplace / "pictures").rglob("*.png"))
    for other in others:
        other.unlink()
    assert main(pretrain("train.batch=1", "data.input_size=[64,64]", "train.preset=auto")) == 0
    assert (workplace / "run" / "encoder.safetensors").is_file()


def test_settings_may_stand_behind_options(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--dry-run", "recipe.yaml", "seed=1", "--dry-run", *SMALL, "mask.ratio=2"]) == 2
    assert "mask.ratio=2" in capsys.readouterr().err
    assert main(["pretrain", "recipe.yaml", "--dry-run", "--fast", "seed=1"]) == 2
    assert "unrecognized arguments: --fast; see spark --help" in capsys.readouterr().err
    assert main(["check", "resnet18", "--engine", "compact", "seed=1"]) == 2
    assert "unrecognized arguments: seed=1" in capsys.readouterr().err
