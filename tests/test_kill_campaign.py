"""Kills lose nothing: whatever trains is killed at random moments, again and again, and ends the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
import tiny_coco
from campaign import Commands, campaign, differences
from colored import write_folders

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def commands() -> Commands:
    return Commands.ready()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes: 12 images to train, 6 to validate."""
    return write_folders(tmp_path_factory.mktemp("images"), 6, 3, ("blue", "red"))


def pretraining(images: Path, folder: Path, workers: int) -> list[str]:
    recipe = folder / "pretrain.yaml"
    recipe.write_text("out: run\n")
    return [
        "pretrain", str(recipe), f"data.root={images / 'train'}", "device=cpu", "model.name=resnet18",
        "model.drop_path=0.1", "data.input_size=[64,64]", f"data.workers={workers}", "decoder.width=32",
        "train.batch=4", "train.epochs=4", "train.warmup_epochs=1", "optimizer.base_lr=0.1",
        "train.checkpoint_minutes=0.00001", "train.picture_epochs=2",
    ]  # fmt: skip


def fine_tuning(images: Path, folder: Path, workers: int) -> list[str]:
    recipe = folder / "finetune.yaml"
    recipe.write_text("out: run\n")
    return [
        "finetune", str(recipe), f"data.root={images}", "device=cpu", "origin=smoke", "model.name=test_resnet",
        "model.drop_path=0.1", "data.input_size=32", f"data.workers={workers}", "optimizer.base_lr=0.02",
        "train.epochs=4", "train.warmup_epochs=1", "train.batch=4", "train.ema_decay=0.5",
        "train.checkpoint_minutes=0.00001",
    ]  # fmt: skip


@pytest.mark.parametrize(("workers", "runs"), [(0, 30), (1, 10)])
def test_pretrainings(workers: int, runs: int, commands: Commands, images: Path, tmp_path: Path) -> None:
    assert not campaign(commands, pretraining(images, tmp_path, workers), runs, tmp_path, seed=workers)


@pytest.mark.parametrize(("workers", "runs"), [(0, 15), (1, 5)])
def test_fine_tunings(workers: int, runs: int, commands: Commands, images: Path, tmp_path: Path) -> None:
    assert not campaign(commands, fine_tuning(images, tmp_path, workers), runs, tmp_path, seed=workers)


def test_detections(commands: Commands, tmp_path: Path) -> None:
    coco = tiny_coco.make(tmp_path / "coco")
    argv = [
        "detect", tiny_coco.RECIPE, f"data.root={coco}", "out=run", *tiny_coco.TINY,
        "train.max_iter=12", "train.checkpointer.period=2", "train.eval_period=6",
    ]  # fmt: skip
    assert not campaign(commands, argv, 5, tmp_path, seed=0)


def test_pretrainings_on_two_ranks(images: Path, tmp_path: Path) -> None:
    """The launcher and all that it started are killed, as when a node is switched off."""
    argv = pretraining(images, tmp_path, 0)
    expected, moments = tmp_path / "whole", Random(0)
    began = time.monotonic()
    assert torchrun(expected, argv).wait(120) == 0, (expected / "log").read_text()[-2000:]
    seconds = time.monotonic() - began
    kills = 0
    for number in range(5):
        place = tmp_path / f"run{number}"
        launcher = torchrun(place, argv)
        after = moments.uniform(0.5, 1) * seconds  # before, nothing but imports happens
        try:
            launcher.wait(after)
        except subprocess.TimeoutExpired:
            os.killpg(launcher.pid, signal.SIGKILL)
            kills += 1
        launcher.wait(30)
        assert torchrun(place, argv).wait(120) == 0, (place / "log").read_text()[-2000:]
        assert not differences(expected, place), f"killed after {after:.2f} of {seconds:.2f} s"
    print(f"torchrun: 5 runs, {kills} kills")
    assert kills >= 3


def torchrun(folder: Path, argv: list[str]) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
             "--no-python", Path(sys.executable).with_name("spark"), *argv],
            cwd=folder, stdout=log, stderr=log, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
