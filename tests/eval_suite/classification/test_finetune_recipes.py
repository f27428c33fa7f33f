"""The recipes in configs/finetune/ and configs/probe/ are the paper's where they say so, and each tells what it is."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from paths import ROOT

from eval_suite.classification.finetune_config import FinetuneConfig
from eval_suite.classification.probe_config import KnnConfig, ProbeConfig
from spark.config.recipe import load_recipe

CONFIGS = ROOT / "configs"
RECIPES = sorted((CONFIGS / "finetune").glob("*.yaml"))
PROBES = {"linear": ProbeConfig, "linear_recalibrated": ProbeConfig, "knn": KnnConfig}


class Paper(NamedTuple):
    """What differs between models in the paper's recipe, and the accuracy that it reports."""

    model: str
    top1: str
    base_lr: float
    drop_path: float
    decay: float = 0.7
    weight_decay: float = 0.02
    epochs: tuple[int, int] = (300, 5)
    batch: int = 2048
    ema: float = 0.9999


PAPER = {
    "resnet50": Paper("resnet50", "80.6", 2e-3, 0.05),
    "resnet101": Paper("resnet101", "82.2", 1e-3, 0.2, 0.8),
    "resnet152": Paper("resnet152", "82.7", 1e-3, 0.2, 0.8),
    "resnet200": Paper("resnet200", "83.1", 1e-3, 0.2, 0.8),
    "convnext_small": Paper("convnext_small", "84.1", 2e-4, 0.3, 0.7, 0.01, (400, 20), 4096),
    "convnext_base": Paper("convnext_base", "84.8", 1e-4, 0.4, 0.7, 0.01, (400, 20), 4096),
    "convnext_large": Paper("convnext_large", "85.4", 1e-4, 0.5, 0.7, 0.02, (200, 10), 4096),
    "convnext_large_384": Paper("convnext_large", "86.0", 6e-5, 0.5, 0.7, 0.02, (200, 20), 1024, 0.99995),
}


def load(name: str, *overrides: str) -> FinetuneConfig:
    return load_recipe(FinetuneConfig, CONFIGS / f"finetune/{name}.yaml", ["data.root=imagenet", *overrides])


def head(recipe: Path) -> str:
    return " ".join(line[1:].strip() for line in recipe.read_text().splitlines() if line.startswith("#"))


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_models_have_its_settings(name: str) -> None:
    config, paper = load(name), PAPER[name]
    train, optimizer, augment = config.train, config.optimizer, config.augment
    resnet = paper.model.startswith("resnet")
    assert (config.model.name, config.model.drop_path) == (paper.model, paper.drop_path)
    assert (optimizer.name, train.loss) == (("lamb", "bce") if resnet else ("adamw", "soft_target_ce"))
    assert config.learning_rate == pytest.approx(paper.base_lr * paper.batch / 256)
    assert (optimizer.layer_decay, optimizer.weight_decay) == (paper.decay, paper.weight_decay)
    assert ((train.epochs, train.warmup_epochs), train.batch, train.ema_decay) == (
        paper.epochs, paper.batch, paper.ema)
    assert (augment.mixup, augment.cutmix) == (0.1 if resnet else 0.8, 1.0)
    assert augment.repeated_augmentation == (0 if resnet else 3)
    assert (augment.label_smoothing, augment.random_erasing) == (0.1, 0.25)
    assert (config.data.input_size, augment.policy) == ((384, "autoaugment") if "384" in name else (224, "trivial"))
    assert config.data.crop_pct == 0.95
    assert f"{paper.top1} % top-1: the paper's number" in head(CONFIGS / f"finetune/{name}.yaml")


def test_only_those_claim_the_papers_number() -> None:
    assert {path.stem for path in RECIPES if "the paper's number" in head(path)} == set(PAPER)
    stable = load("resnet50_stable")
    assert stable.learning_rate < load("resnet50").learning_rate
    assert (stable.optimizer.clip, stable.train.on_divergence) == (1.0, "rollback")
    assert load("resnet50_1pct").labels.fraction == 0.01
    assert load("resnet50_10pct").labels.fraction == 0.1


@pytest.mark.parametrize("recipe", [*RECIPES, *sorted((CONFIGS / "probe").glob("*.yaml"))], ids=lambda path: path.stem)
def test_each_says_what_it_is_and_is_sound(recipe: Path) -> None:
    config = load_recipe(PROBES.get(recipe.stem, FinetuneConfig), recipe, ["data.root=imagenet"])
    assert config.out.startswith("runs/")
    for title in ("Reproduces:", "Command: ", "Expected: ", "Cost: "):
        assert f" {title} " in head(recipe)
    assert recipe.name in head(recipe)
