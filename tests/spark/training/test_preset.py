"""`train.preset=auto` sizes a run by rules that hold from ten images to ImageNet, and says why."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from spark.cli import main
from spark.config.pretrain import PretrainConfig
from spark.config.recipe import with_values, written_with
from spark.errors import UserError
from spark.methods.registry import read_recipe
from spark.training import sizing
from spark.training.preset import Choice, Cost, Facts, choose

GIB = 2**30
GPU = Facts(images=10_000, processes=1, gpu=True, cores=16, memory=80 * GIB)
IMAGENET = 1_281_167


def measure(recompute: bool) -> Cost:
    return Cost(fixed=2 * GIB, per_image=GIB * (0.03 if recompute else 0.1), seconds=1e-3)


def config(*overrides: str) -> PretrainConfig:
    return read_recipe(None, ["out=run", "data.root=photos", "train.preset=auto", *overrides])


def chosen(facts: Facts, *overrides: str) -> dict[str, Choice]:
    written = {override.partition("=")[0] for override in overrides}
    return {choice.key: choice for choice in choose(config(*overrides), written, facts, measure)}


def value(key: str, facts: Facts, *overrides: str) -> object:
    return chosen(facts, *overrides)[key].value


@pytest.mark.parametrize(
    ("images", "processes", "gpu", "batch"),
    [
        (10_000, 1, True, 256), (IMAGENET, 1, True, 256), (IMAGENET, 8, True, 2048), (IMAGENET, 16, True, 4096),
        (IMAGENET, 32, True, 4096), (IMAGENET, 6, True, 1536), (1_000, 1, True, 32), (100, 1, True, 16),
        (10, 1, True, 8), (40, 2, True, 16), (10_000, 1, False, 64),
    ],
)  # fmt: skip
def test_the_batch_follows_images_and_processes(images: int, processes: int, gpu: bool, batch: int) -> None:
    assert value("train.batch", GPU._replace(images=images, processes=processes, gpu=gpu)) == batch


@pytest.mark.parametrize("images", [16, 50, 333, 1_000, 12_345, 100_000, IMAGENET, 14_000_000])
@pytest.mark.parametrize("processes", [1, 3, 8])
@pytest.mark.parametrize("gpu", [True, False])
def test_the_numbers_go_together(images: int, processes: int, gpu: bool) -> None:
    facts = GPU._replace(images=images, processes=processes, gpu=gpu)
    choices = chosen(facts)
    sized = with_values(config(), {key: choice.value for key, choice in choices.items()})
    assert sized.problems() == []
    train = sized.train
    assert images // train.batch * train.batch >= images * (15 / 16 if images >= 1000 else 1 / 2)
    assert train.batch % processes == 0
    assert 1 <= train.epochs <= 1600
    steps = images // train.batch * (train.epochs if train.epochs > 1 else 0)
    assert steps < 94_000 + images // train.batch if gpu else steps * 1e-3 * train.batch <= 600 * processes
    assert min(1, train.epochs - 1) <= train.warmup_epochs <= max(train.epochs // 10, 1)
    assert train.epochs / train.picture_epochs >= min(40, train.epochs)
    assert all(choice.reason for choice in choices.values())


@pytest.mark.parametrize(
    ("memory", "device_batch", "recompute"), [(80, None, False), (24, 128, False), (6, 64, True), (1, 1, True)]
)
def test_what_does_not_fit_is_split_and_if_that_is_not_enough_recomputed(
    memory: int, device_batch: int | None, recompute: bool
) -> None:
    facts = GPU._replace(memory=memory * GIB)
    assert value("train.device_batch", facts) == device_batch
    assert value("train.recompute", facts) == recompute
    assert value("train.recompute", facts, "train.recompute=false") is False


def test_lambs_rate_is_the_papers_at_its_batch_and_adamws_peak_is_what_was_measured() -> None:
    large = GPU._replace(images=IMAGENET, processes=16)
    assert (value("optimizer.name", large), value("optimizer.base_lr", large)) == ("lamb", 2e-4)
    assert value("optimizer.base_lr", large, "optimizer.name=adamw") == 1.5e-4
    assert value("optimizer.base_lr", large, "train.batch=1024") == 4e-4
    assert value("optimizer.name", GPU) == "adamw"
    for images, batch in ((151, 16), (1_000, 32), (10_000, 256)):
        few = GPU._replace(images=images)
        assert value("train.batch", few) == batch
        assert value("optimizer.base_lr", few) == pytest.approx(2.4e-3 * 256 / batch)


@pytest.mark.parametrize(
    ("images", "seconds", "epochs", "why"),
    [
        (151, 0.02, 208, "for a first look in about 10 minutes"), (151, 1e-5, 1600, "for a first look"),
        (50_000, 0.04, 1, "which alone take longer than 10 minutes"),
    ],
)  # fmt: skip
def test_a_cpu_trains_for_ten_minutes(images: int, seconds: float, epochs: int, why: str) -> None:
    facts = GPU._replace(images=images, gpu=False)
    choices = choose(config(), (), facts, lambda _: Cost(0, GIB / 100, seconds))
    choice = next(choice for choice in choices if choice.key == "train.epochs")
    assert choice.value == epochs
    assert why in choice.reason


def test_warm_up_is_as_long_as_the_optimizer_needs() -> None:
    few = GPU._replace(images=1_000)  # 31 steps of an epoch
    assert value("train.warmup_epochs", few) == 40
    assert value("train.warmup_epochs", few, "optimizer.betas=[0.9,0.999]") == 65


def test_what_is_written_wins_and_the_rest_follows_it() -> None:
    choices = chosen(GPU, "train.batch=64", "train.epochs=7", "train.warmup_epochs=3")
    assert (choices["train.batch"].value, choices["train.epochs"].value) == (64, 7)
    assert choices["train.batch"].reason.startswith("as you set it; the preset would take 256: 256 images")
    assert choices["optimizer.base_lr"].value == pytest.approx(2.4e-3 * 4)
    assert choices["train.warmup_epochs"].value == 3
    assert choices["train.picture_epochs"].value == 1


def test_written_is_what_stands_beside_the_preset_or_above(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("train: {batch: 4096, epochs: 1600}\n")
    (tmp_path / "recipe.yaml").write_text("base: base.yaml\ntrain: {preset: auto, epochs: 5}\n")

    def written(recipe: str, *overrides: str) -> set[str]:
        return {*written_with("train.preset", PretrainConfig, tmp_path / recipe, overrides)}

    assert written("recipe.yaml", "out=run") == {"train.preset", "train.epochs", "out"}
    assert written("base.yaml", "out=run", "train.preset=auto") == {"out", "train.preset"}
    assert written("base.yaml", "out=run") == set()


TINY = [
    "model.name=resnet18", "model.drop_path=0", "data.input_size=[64,64]", "decoder.width=32", "device=cpu",
    "data.root=pictures", "out=run", "train.preset=auto", "train.epochs=1",
]  # fmt: skip


def test_a_run_tells_its_numbers_and_keeps_them_when_it_goes_on(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text("train: {batch: 4096}\n")
    assert main(["pretrain", "recipe.yaml", *TINY, "--dry-run"]) == 0
    told = capsys.readouterr()
    assert not Path("run").exists()
    table = {line.split()[0]: line for line in told.err.splitlines() if line.startswith("  ") and "=" in line}
    assert "as you set it; the preset would take " in table["train.epochs=1"]
    assert "warning: an image has only 4 patches (2 x 2)" in told.out
    assert "set data.input_size=[96,96] or more" in told.out
    assert {"train.batch=8", "train.warmup_epochs=0", "train.recompute=false"} <= table.keys()
    assert "GiB that are free, measured" in table["train.device_batch=null"]
    assert "steps    1 (1 in each of 1 epoch, 8 images in a step)" in told.out

    assert main(["pretrain", "recipe.yaml", *TINY]) == 0
    before = OmegaConf.load("run/config.yaml")
    assert (before.train.batch, before.train.epochs, before.train.preset) == (8, 1, "auto")
    monkeypatch.setattr(sizing, "_free_memory", lambda: 1)  # it would have split the batch
    capsys.readouterr()
    assert main(["pretrain", "recipe.yaml", *TINY]) == 0
    told_again = capsys.readouterr().err
    assert "keeps the numbers that it began with" in told_again
    assert "is finished already" in told_again
    assert OmegaConf.load("run/config.yaml") == before
    assert main(["pretrain", "recipe.yaml", *TINY, "train.batch=4"]) == 2
    assert "train.batch was 8, is 4" in capsys.readouterr().err


def test_a_warm_up_that_is_longer_than_the_training_is_shortened(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sizing, "step_cost", lambda *_: measure(False))
    Path("recipe.yaml").write_text("{}\n")
    assert main(["pretrain", "recipe.yaml", *TINY, "train.warmup_epochs=3", "--dry-run"]) == 0
    assert "train.warmup_epochs=3 is not less than train.epochs=1: warm-up is shortened" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"train\.preset=best must be auto or none"):
        read_recipe(None, ["out=run", "data.root=photos", "train.preset=best"])
