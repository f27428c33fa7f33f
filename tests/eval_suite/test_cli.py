"""The command line: bad input is one line and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest
from paths import ROOT

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
    ["probe", "configs/probe/linear.yaml"],
    ["probe", "configs/probe/linear.yaml", "data.root={tmp}/nowhere", "out={tmp}/run"],
    ["knn", "configs/probe/knn.yaml", "data.root={tmp}", "neighbours=[]"],
    ["report", "{tmp}"],
    ["report", "{tmp}/nowhere"],
])
def test_bad_input_is_one_line(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ROOT / "configs/finetune/resnet18_demo.yaml"
    assert main([argument.format(recipe=recipe, tmp=tmp_path) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
