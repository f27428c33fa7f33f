"""Runs, studies, exports and records that the first version left are resumed, read and compared as it would have.

`written/` holds them as they were left, but for pictures; `old_images.py` draws the images that they were made of.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import old_images
import pytest
import torch
from safetensors.torch import load_file

from eval_suite.cli import main as spark_eval
from eval_suite.study.cluster import ClusterConfig, Resources
from eval_suite.study.config import load_study
from eval_suite.study.graph import build_graph
from eval_suite.study.progress import finished
from spark.cli import main as spark
from spark.formats.encoder import load_encoder
from spark.methods.load import load_pretrained
from spark.runs.metrics import read_metrics
from spark.runs.record import load_record

WRITTEN = Path(__file__).parent / "written"
RECORDS = sorted(path.relative_to(WRITTEN) for path in WRITTEN.rglob("result.json"))
EVALUATIONS = ("finetune", "probe")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of what was left, with the images, to stand in."""
    folder = shutil.copytree(WRITTEN, tmp_path / "written")
    old_images.make_class_folders(folder / "images")
    monkeypatch.chdir(folder)
    return folder


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether they are the same to rounding, which another processor may do otherwise."""
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], rtol=1e-4, atol=1e-6) for name in a)


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(run) if "loss" in record]


def test_a_stopped_pretraining_goes_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert spark(["pretrain", "pretrain.yaml", "out=pretrain_stopped"]) == 0
    assert "resuming pretrain_stopped after step 5 of 12" in capsys.readouterr().err
    stopped, whole = here / "pretrain_stopped", here / "pretrain_whole"
    assert close(*(load_file(run / "encoder.safetensors") for run in (stopped, whole)))
    assert losses(stopped) == pytest.approx(losses(whole), rel=1e-4)
    ours, theirs = (json.loads((run / "encoder.json").read_text()) for run in (stopped, whole))
    assert {key: ours[key] for key in ("config_hash", "recipe_hash", "method", "model", "epochs")} == {
        key: theirs[key] for key in ("config_hash", "recipe_hash", "method", "model", "epochs")}


def test_a_finished_pretraining_is_left_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (here / "pretrain_whole" / "encoder.safetensors").read_bytes()
    assert spark(["pretrain", "pretrain.yaml", "out=pretrain_whole"]) == 0
    assert "is finished already" in capsys.readouterr().err
    assert (here / "pretrain_whole" / "encoder.safetensors").read_bytes() == before


@pytest.mark.parametrize("verb", EVALUATIONS)
def test_a_stopped_evaluation_goes_on(here: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [verb, f"{verb}.yaml", "init=pretrain_whole", f"out={verb}_stopped"]
    assert spark_eval(words) == 0
    assert f"resuming {verb}_stopped after step" in capsys.readouterr().err
    ours, theirs = (load_record(here / f"{verb}_{state}" / "result.json") for state in ("stopped", "whole"))
    assert ours.protocol_id == theirs.protocol_id
    assert ours.init == theirs.init
    assert {name: metric.value for name, metric in ours.metrics.items()} == {
        name: metric.value for name, metric in theirs.metrics.items()}
    assert losses(here / f"{verb}_stopped") == pytest.approx(losses(here / f"{verb}_whole"), rel=1e-4)


@pytest.mark.parametrize("verb", [*EVALUATIONS, "knn"])
def test_a_finished_evaluation_is_left_alone(here: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = (here / f"{verb}_whole" / "result.json").read_bytes()
    assert spark_eval([verb, f"{verb}.yaml", "init=pretrain_whole", f"out={verb}_whole"]) == 0
    assert "is finished already" in capsys.readouterr().err
    assert (here / f"{verb}_whole" / "result.json").read_bytes() == before


@pytest.mark.parametrize("path", RECORDS, ids=str)
def test_records_are_read_with_their_ids(path: Path) -> None:
    stored = json.loads((WRITTEN / path).read_text())
    assert load_record(WRITTEN / path).protocol_id == stored["protocol_id"]


def test_exports_and_whole_models_are_read(here: Path) -> None:
    encoder = load_encoder(here / "pretrain_whole")
    assert encoder.info.method == "spark"
    pretrained = load_pretrained(here / "pretrain_whole", trust=["tiny_network.py:Tiny"])
    assert pretrained.step == 12
    assert close(pretrained.model.encoder_state(), encoder.state)


def test_a_finished_study_stays_finished(here: Path) -> None:
    graph = build_graph(load_study("study.yaml"), ClusterConfig(
        scheduler="local", resources=Resources(gpus_per_process=0)))
    assert len(graph) == 5
    assert all(finished(graph, node) for node in graph)
    assert sorted(path.name for path in (here / "study").iterdir() if path.is_dir()) == sorted(
        node.name for node in graph)


def test_old_runs_are_compared_and_reported(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert spark_eval(["diff", "finetune_whole", "finetune_stopped"]) in (0, 1)
    assert spark_eval(["report", ".", "--out", "report"]) == 0
    table = (here / "report" / "table.md").read_text()
    for path in RECORDS:
        assert json.loads((here / path).read_text())["protocol_id"] in table
