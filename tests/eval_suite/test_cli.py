"""The command line: bad input is one line and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval_suite.cli import main
from spark import __version__


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [
    ["finetune", "configs/finetune/nowhere.yaml"],
    ["finetune", "{recipe}", "out={tmp}/run", "data.root={tmp}/nowhere"],
    ["finetune", "{recipe}", "optimizer.nme=lamb"],
    ["finetune", "{recipe}", "not-an-override"],
    ["report", "{tmp}"],
    ["report", "{tmp}/nowhere"],
])
def test_bad_input_is_one_line(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Path(__file__).parents[2] / "configs/finetune/resnet18_demo.yaml"
    assert main([argument.format(recipe=recipe, tmp=tmp_path) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_every_recipe_is_sound() -> None:
    from eval_suite.finetune_config import FinetuneConfig
    from spark.config import load_recipe

    recipes = sorted((Path(__file__).parents[2] / "configs/finetune").glob("*.yaml"))
    assert recipes
    for recipe in recipes:
        assert load_recipe(FinetuneConfig, recipe, []).out.startswith("runs/")
        assert "# Expected:" in recipe.read_text()
