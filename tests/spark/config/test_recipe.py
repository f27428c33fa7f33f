"""Recipes are diffs of typed defaults; mistakes are named, all at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from paths import ROOT

from spark.config.pretrain import PretrainConfig
from spark.config.recipe import save_resolved
from spark.errors import UserError
from spark.methods.registry import read_recipe

NEEDED = ["out=runs/x", "data.root=photos"]
RECIPES = sorted((ROOT / "configs" / "pretrain").glob("*.yaml"))


def load(*overrides: str, recipe: Path | None = None) -> PretrainConfig:
    return read_recipe(recipe, [*NEEDED, *overrides])


def test_the_defaults_are_the_papers() -> None:
    config = load()
    assert (config.mask.ratio, config.train.epochs, config.train.batch) == (0.6, 1600, 4096)
    assert config.learning_rate == pytest.approx(2e-4 * 16)


@pytest.mark.parametrize("written", ["4e-4", "0.0004", "4.0e-4", ".0004"])
def test_numbers_may_be_written_in_any_way(written: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"optimizer: {{base_lr: {written}}}\n")
    assert load(f"optimizer.base_lr={written}").optimizer.base_lr == 4e-4
    assert load(recipe=recipe).optimizer.base_lr == 4e-4


def test_overrides_come_on_top_of_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("train: {epochs: 100, batch: 8}\nmodel: {name: resnet18}\n")
    config = load("train.epochs=50", "data.input_size=[64, 96]", recipe=recipe)
    assert (config.train.epochs, config.train.batch, config.model.name) == (50, 8, "resnet18")
    assert list(config.data.input_size) == [64, 96]


def test_an_unknown_key_names_the_nearest_one() -> None:
    with pytest.raises(UserError, match=r"unknown key 'optimizer\.bas_lr'\. Did you mean optimizer\.base_lr"):
        load("optimizer.bas_lr=1")


def test_all_mistakes_are_listed_at_once(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("train: {epoch: 3}\nmask: {ratio: much}\n")
    with pytest.raises(UserError) as caught:
        load("data.worker=1", "train.batch=many", recipe=recipe)
    message = str(caught.value)
    for part in (str(recipe), "train.epoch'", "mask.ratio", "data.worker'", "train.batch"):
        assert part in message
    assert "\n" not in message


def test_all_unsound_values_are_listed_at_once() -> None:
    with pytest.raises(UserError) as caught:
        load("mask.ratio=1.5", "train.batch=0", "optimizer.name=lam", "data.input_size=[64]", "train.epochs=10")
    for part in ("mask.ratio=1.5", "train.batch=0", "Did you mean lamb", "input_size"):
        assert part in str(caught.value)


def test_what_a_shell_makes_of_braces_is_refused() -> None:
    with pytest.raises(UserError, match=r"'data\.root' is given twice .* 's-0\.tar'; .*quoted") as caught:
        load("data.root=s-0.tar", "data.root=s-1.tar")
    assert "\n" not in str(caught.value)
    assert load("train.batch=8", "seed=1", "train.batch=4").train.batch == 4  # what comes later counts


def test_required_keys_are_asked_for() -> None:
    with pytest.raises(UserError, match=r"'data\.root' is required.*'out' is required"):
        read_recipe(None, [])


@pytest.mark.parametrize("content", ["a: [1", "- 1\n- 2\n", "just text", "\x00\x01"])
def test_a_recipe_that_is_no_mapping_is_one_line(content: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(content)
    with pytest.raises(UserError) as caught:
        load(recipe=recipe)
    assert "\n" not in str(caught.value)
    assert str(recipe) in str(caught.value)


@pytest.mark.parametrize("glued", ["{output_stride:16}", "{output_stride=16}", "{a: 2, output_stride :16}"])
def test_a_colon_without_a_space_is_told(glued: str, tmp_path: Path) -> None:
    """To YAML, that is a key without a value; nothing would be set, and no word said."""
    hint = r"has no value: write 'output_stride: 16', with a space after the colon"
    with pytest.raises(UserError, match=hint):
        load(f"model.options={glued}")
    for text in (f"model: {{options: {glued}}}\n", f"model:\n  options: {glued}\n"):
        (tmp_path / "recipe.yaml").write_text(text)
        with pytest.raises(UserError, match=rf"recipe\.yaml': .*{hint}"):
            load(recipe=tmp_path / "recipe.yaml")
    assert load("model.options={'a:1': 2, b: null}").model.options == {"a:1": 2, "b": None}


def test_an_override_without_a_value_is_refused() -> None:
    with pytest.raises(UserError, match="write key=value"):
        load("train.batch")


def test_a_missing_recipe_names_a_neighbour(tmp_path: Path) -> None:
    (tmp_path / "resnet50.yaml").write_text("{}")
    with pytest.raises(UserError, match=r"does not exist\. Did you mean .*resnet50\.yaml"):
        load(recipe=tmp_path / "resnet5.yaml")


def test_the_resolved_configuration_loads_as_itself(tmp_path: Path) -> None:
    config = load("train.batch=8", "optimizer.base_lr=1e-5", "data.input_size=[64,96]")
    save_resolved(config, tmp_path / "config.yaml")
    assert read_recipe(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_sound(recipe: Path) -> None:
    assert load(recipe=recipe).out == "runs/x"


def test_a_recipe_is_a_diff_of_its_base(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "basic.yaml").write_text("train: {epochs: 100, batch: 8}\nmask: {ratio: 0.7}\n")
    (tmp_path / "middle.yaml").write_text("base: shared/basic.yaml\ntrain: {batch: 16}\nmodel: {name: resnet18}\n")
    (tmp_path / "top.yaml").write_text("base: middle.yaml\nmodel: {name: resnet34}\n")
    config = load("train.batch=32", recipe=tmp_path / "top.yaml")
    assert (config.model.name, config.train.epochs, config.train.batch, config.mask.ratio) == ("resnet34", 100, 32, 0.7)


@pytest.mark.parametrize(
    ("base", "part"),
    [("no.yaml", "no.yaml' does not exist"), ("other.yaml", "is based on itself"), ("[1]", "must be the path")],
)
def test_a_wrong_base_is_one_line(base: str, part: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(f"base: {base}\n")
    (tmp_path / "other.yaml").write_text("base: recipe.yaml\n")
    with pytest.raises(UserError, match=part):
        load(recipe=tmp_path / "recipe.yaml")
