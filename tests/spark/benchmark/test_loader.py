"""The loader's speed is measured without a model."""

from __future__ import annotations

from pathlib import Path

import pytest
from paths import ROOT

from spark.cli import main


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_alone_is_timed(pictures: Path, workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = "configs/pretrain/resnet50.yaml"
    root = ROOT
    overrides = [f"data.root={pictures}", f"data.workers={workers}", "data.input_size=[32,32]"]
    verb = ["bench", "data"] if workers else ["bench-data"]
    assert main([*verb, str(root / recipe), *overrides, "--seconds", "0.2"]) == 0
    printed = capsys.readouterr().out
    assert "images/s of 32x32 pixels" in printed
    assert f"{workers} worker" in printed
    assert "the set has 12" in printed
    assert "read more than once" in printed


def test_the_command_of_a_training_will_do(pictures: Path, tmp_path: Path) -> None:
    recipe = ROOT / "configs" / "pretrain" / "resnet50.yaml"
    overrides = [f"data.root={pictures}", f"out={tmp_path / 'run'}", "data.workers=0", "data.input_size=[32,32]"]
    assert main(["bench-data", str(recipe), *overrides, "--seconds", "0.1"]) == 0
    assert not (tmp_path / "run").exists()


def test_bad_images_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = ROOT / "configs" / "pretrain" / "resnet50.yaml"
    assert main(["bench-data", str(recipe), f"data.root={tmp_path / 'nowhere'}"]) == 2
    assert "does not exist" in capsys.readouterr().err
