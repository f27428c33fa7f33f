"""The recipes in configs/pretrain/ are the paper's where they say so, and each tells what it is."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import timm
from paths import ROOT

from spark.backbones.timm_pyramid import build_pyramid
from spark.config.pretrain import PretrainConfig
from spark.methods.registry import read_recipe

FOLDER = ROOT / "configs" / "pretrain"
RECIPES = sorted(FOLDER.rglob("*.yaml"))
NAMES = {path: str(path.relative_to(FOLDER).with_suffix("")) for path in RECIPES}
BUDGETS = [path for path in FOLDER.glob("*.yaml") if path.stem.endswith(("_300e", "_800e"))]
BN, LN = [0.9, 0.95], [0.9, 0.999]


class Paper(NamedTuple):
    """What differs between models in the paper's recipe, and the accuracy that it reports."""

    model: str
    drop_path: float
    betas: list[float]
    top1: str
    size: int = 224
    ratio: float = 0.6
    batch: int = 4096
    base_lr: float = 2e-4


PAPER = {
    "resnet50": Paper("resnet50", 0.05, BN, "80.6"),
    "resnet101": Paper("resnet101", 0.08, BN, "82.2"),
    "resnet152": Paper("resnet152", 0.10, BN, "82.7"),
    "resnet200": Paper("resnet200", 0.15, BN, "83.1"),
    "convnext_small": Paper("convnext_small", 0.2, LN, "84.1"),
    "convnext_base": Paper("convnext_base", 0.3, LN, "84.8"),
    "convnext_large": Paper("convnext_large", 0.4, LN, "85.4"),
    "convnext_large_384": Paper("convnext_large", 0.4, LN, "86.0", size=384, ratio=0.75, batch=2048, base_lr=4e-4),
}
OTHERS = {"convnext_tiny": LN, "convnextv2_tiny": LN, "regnety_016": BN, "efficientnet_b0": BN}


def load(recipe: Path) -> PretrainConfig:
    return read_recipe(recipe, ["out=runs/x", "data.root=photos"])


def head(recipe: Path) -> str:
    return " ".join(line[1:].strip() for line in recipe.read_text().splitlines() if line.startswith("#"))


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_models_have_its_settings(name: str) -> None:
    config, paper = load(ROOT / f"configs/pretrain/{name}.yaml"), PAPER[name]
    assert (config.model.name, config.model.drop_path) == (paper.model, paper.drop_path)
    assert list(config.data.input_size) == [paper.size, paper.size]
    assert (config.mask.ratio, config.train.batch) == (paper.ratio, paper.batch)
    assert list(config.optimizer.betas) == paper.betas
    assert config.learning_rate == pytest.approx(paper.base_lr * paper.batch / 256)
    assert f"{paper.top1} % top-1" in head(ROOT / f"configs/pretrain/{name}.yaml")
    assert_common(config)


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_borrow_the_papers_settings(name: str) -> None:
    recipe = ROOT / f"configs/pretrain/{name}.yaml"
    config = load(recipe)
    assert config.model.name == name
    assert list(config.optimizer.betas) == OTHERS[name]
    assert config.learning_rate == pytest.approx(3.2e-3)
    assert "no published number" in head(recipe)
    assert_common(config)


def assert_common(config: PretrainConfig) -> None:
    optimizer, train = config.optimizer, config.train
    assert (optimizer.name, optimizer.clip_grad_norm) == ("lamb", 5.0)
    assert (optimizer.weight_decay, optimizer.weight_decay_end) == (0.04, 0.2)
    assert (train.epochs, train.warmup_epochs) == (1600, 40)
    assert (config.data.min_scale, config.decoder.width) == (0.67, 768)


@pytest.mark.parametrize("recipe", BUDGETS, ids=lambda path: path.stem)
def test_budgets_differ_in_the_schedule_only(recipe: Path) -> None:
    name, _, budget = recipe.stem.rpartition("_")
    short, full = load(recipe), load(recipe.with_name(f"{name}.yaml"))
    assert short.train.epochs == int(budget.removesuffix("e"))
    assert 0 < short.train.warmup_epochs <= full.train.warmup_epochs
    short.train.epochs, short.train.warmup_epochs = full.train.epochs, full.train.warmup_epochs
    assert short == full


def test_every_model_has_both_budgets() -> None:
    wanted = {f"{name}_{epochs}e" for name in (*PAPER, "convnext_tiny") for epochs in (300, 800)}
    assert {path.stem for path in BUDGETS} == wanted


@pytest.mark.parametrize("recipe", RECIPES, ids=NAMES.get)
def test_a_head_tells_what_why_how_and_how_much(recipe: Path) -> None:
    text = head(recipe)
    places = [text.index(label) for label in ("Reproduces:", "Command:", "Expected:", "Cost:")]
    assert places == sorted(places)
    assert f"spark pretrain {recipe.relative_to(ROOT)}" in text


@pytest.mark.parametrize("recipe", RECIPES, ids=NAMES.get)
def test_the_network_exists(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load(recipe)
    model = config.model
    assert config.method == (recipe.parent.name if recipe.parent != FOLDER else "spark")
    if ":" in model.name:
        build_pyramid(model.name, model.in_chans, model.drop_path, model.options)
    else:
        assert timm.is_model(model.name)


MAE = ("adamw", 1.5e-4, [0.9, 0.95], 0.05, 0.05, 0.0, "mae")
PUBLISHED = {
    "um_mae/swin_tiny": ("um_swin_tiny", MAE, 4096, 200, 10, "82.04"),
    "um_mae/pvt_small": ("um_pvt_small", MAE, 4096, 200, 10, "79.31"),
    "um_mae/swin_large": ("um_swin_large", MAE, 4096, 800, 40, "85.2"),
    "um_mae/vit_base": ("vit_base_patch16_224", MAE, 4096, 200, 10, "82.88"),
    "simmim/um_swin_tiny": ("um_swin_tiny", MAE, 4096, 200, 10, "82.20"),
    "simmim/um_pvt_small": ("um_pvt_small", MAE, 4096, 200, 10, "79.28"),
    "mae/um_vit_base": ("vit_base_patch16_224", MAE, 4096, 200, 10, "82.88"),
    "mae/vit_base_1600e": ("vit_base_patch16_224", MAE, 4096, 1600, 40, "83.6"),
    "simmim/swin_base": (
        "swin_base_patch4_window7_224", ("adamw", 1e-4, [0.9, 0.999], 0.05, 0.05, 5.0, "simmim"), 2048, 100, 10, "82.8"
    ),
    "simmim/swin_base_800e": (
        "swin_base_patch4_window7_224", ("adamw", 5e-5, [0.9, 0.999], 0.05, 0.05, 5.0, "simmim_steps"), 2048, 800, 10,
        "84.0",
    ),
    "simmim/swin_large_800e": (
        "swin_large_patch4_window12_384", ("adamw", 5e-5, [0.9, 0.999], 0.05, 0.05, 5.0, "simmim_steps"), 2048, 800, 10,
        "85.4",
    ),
    **{
        f"fcmae/convnextv2_{size}": (f"convnextv2_{size}", MAE, 4096, 1600, 40, top1)
        for size, top1 in {"atto": "76.7", "femto": "78.5", "pico": "80.3", "nano": "81.9", "tiny": "83.0",
                           "base": "84.9", "large": "85.8"}.items()
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_rows_of_the_other_methods_have_their_settings(name: str) -> None:
    recipe = FOLDER / f"{name}.yaml"
    config = load(recipe)
    model, optimizer, batch, epochs, warmup, top1 = PUBLISHED[name]
    assert (config.model.name, config.model.drop_path) == (model, 0)
    assert tuple(vars(config.optimizer).values()) == optimizer
    assert (config.train.batch, config.train.epochs, config.train.warmup_epochs) == (batch, epochs, warmup)
    assert f"{top1} % top-1" in head(recipe)


def test_um_maes_recipes_are_as_published_and_repaired() -> None:
    published, repaired = (load(FOLDER / f"um_mae/{name}.yaml") for name in ("swin_tiny", "swin_tiny_repaired"))
    assert (published.sampling, published.decoder_positions) == ("pool", "legacy")
    assert (repaired.sampling, repaired.decoder_positions) == ("independent", "true")
    repaired.sampling, repaired.decoder_positions = published.sampling, published.decoder_positions
    assert repaired == published


def test_cifar_images_are_whole_patches_of_eight_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load(ROOT / "configs/pretrain/cifar10.yaml")
    pyramid = build_pyramid(config.model.name, config.model.in_chans, config.model.drop_path, config.model.options)
    assert (list(config.data.input_size), pyramid.strides[-1]) == ([32, 32], 8)
