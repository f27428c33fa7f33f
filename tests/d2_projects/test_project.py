"""The engine trains, evaluates and records a project that has nothing of COCO."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import toy_project
import yaml
from tiny_coco import RECIPE

from d2_projects.engine.checkpoints import BEST
from d2_projects.engine.config import load
from d2_projects.engine.run import run
from d2_projects.instance_segmentation import InstanceSegmentation
from spark.errors import UserError
from spark.runs.checkpoint import load_file
from spark.runs.metrics import read_metrics
from spark.runs.record import load_record


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    file = tmp_path / "toy.py"
    file.write_text(toy_project.RECIPE)
    return str(file)


def test_another_project_is_trained_and_recorded(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shades, out = toy_project.make(tmp_path / "shades"), tmp_path / "run"
    words = [f"data.shades={shades}", f"out={out}", "test.tta=true"]
    path = run(recipe, words)
    assert path == out / "result.json"
    told = capsys.readouterr().out
    assert "data     shades: 4 shades\nnote     shades are gray" in told
    assert told.splitlines()[-1].startswith("shade/correct ")

    record = load_record(path)
    assert (record.task, record.task_version, record.main_metric) == ("toy_brightness", 3, "shade/correct")
    assert record.metrics.keys() == {"shade/correct", "tta/shade/correct", "best/shade/correct"}
    assert all(metric.unit == "%" for metric in record.metrics.values())
    assert record.protocol["shades"] == ["0.00.png", "0.33.png", "0.67.png", "1.00.png"]
    assert record.epochs == 1  # two iterations of two of four images
    log = read_metrics(out)
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2]
    evaluations = {entry["step"]: entry["shade/correct"] for entry in log if "shade/correct" in entry}
    assert list(evaluations) == [1, 2]
    best = load_file(out / "checkpoints" / BEST)
    assert best["shade/correct"] == max(evaluations.values()) == record.metrics["best/shade/correct"].value
    assert (out / "curves.png").is_file()

    before = path.stat().st_mtime_ns
    assert run(recipe, words) == path
    assert path.stat().st_mtime_ns == before
    evaluated = run(recipe, [*words, "eval_only=true", "weights=best"])
    assert json.loads(evaluated.read_text())["val_sha256"] == "of the shades"
    assert (out / "evaluation" / "found.txt").read_text().startswith("toy, init scratch")
    run(recipe, [*words, "resume=never", "train.max_iter=1", "train.eval_period=0"])
    assert load_record(path).metrics.keys() == {"shade/correct", "tta/shade/correct"}


def test_what_a_project_finds_is_told(recipe: str, tmp_path: Path) -> None:
    shades, out = toy_project.make(tmp_path / "shades"), tmp_path / "run"
    with pytest.raises(UserError, match="no shades in 'nowhere'"):
        run(recipe, [f"out={out}"])
    with pytest.raises(UserError, match=r"model\.levels=9, but there are 4 shades"):
        run(recipe, [f"out={out}", f"data.shades={shades}", "model.levels=9"])
    assert not out.exists()


def test_a_project_decides_about_the_numbers_unless_it_is_the_first(recipe: str, tmp_path: Path) -> None:
    toy = load(recipe, [])
    assert yaml.safe_load(toy.protocol_text())["project"] == {
        "_target_": "toy_project.Brightness", "tolerance": 0.3}
    assert load(recipe, ["project.tolerance=0.2"]).protocol_text() != toy.protocol_text()
    assert load(recipe, ["project.tolerance=0.2"]).project.tolerance == 0.2

    named = load(RECIPE, [])
    assert isinstance(named.project, InstanceSegmentation)
    assert "project" not in named.cfg
    unnamed = Path(RECIPE).with_name("mask_rcnn_r50_fpn.py").read_text().replace("project =", "_project =")
    (tmp_path / "own.py").write_text(unnamed)  # as people wrote recipes before they could name one
    own = load(str(tmp_path / "own.py"), [])
    assert isinstance(own.project, InstanceSegmentation)
    assert own.protocol_text() == load(str(Path(RECIPE).with_name("mask_rcnn_r50_fpn.py")), []).protocol_text()


@pytest.mark.parametrize("project", ['{"name": "toy"}', '{"_target_": "builtins.str"}'])
def test_what_is_no_project_is_refused(project: str, recipe: str) -> None:
    Path(recipe).write_text(f"{toy_project.RECIPE}\nproject = {project}")
    with pytest.raises(UserError, match=r"recipe's project is a (DictConfig|str), not a d2_projects\.project\.Project"):
        load(recipe, [])
